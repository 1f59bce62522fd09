//! The section `model`: the backbone, its gates and its routers.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Model {
    /// The backbone: ResNet-20, 32, 44, 56, 74 and 110 are those for 32×32 images, ResNet-18, 34, 50, 101 and 152 those for
    /// 224×224.
    pub arch: Arch,
    /// Which blocks have a router.
    pub gates: Gates,
    /// Who decides for the gates: routers, or a baseline that routing must beat.
    pub routing: Routing,
    /// What replaces a skipped block that changes the shape.
    pub skip: SkipBranch,
    /// Where a bottleneck block has its stride: conv1 is ResNet v1 (the paper's 3.86 G), conv2 v1.5
    /// (torchvision's).
    pub stride_in: StrideIn,
    /// Whether the last norm of each block starts at 0, so that blocks start as identities (arXiv 1706.02677).
    pub zero_init_last_norm: bool,
    /// Stochastic depth of a static network (arXiv 1603.09382): the probability that the last block's residual branch is dropped for a
    /// view in training. It falls linearly to 0 for the first block. What is kept is divided by its probability, as in timm.
    #[schemars(range(min = 0.0), extend("exclusiveMaximum" = 1))]
    pub drop_path: f64,
    /// Whether batch norm computes its statistics over all ranks' batches (SyncBatchNorm), not over each rank's own.
    pub sync_batch_norm: bool,
    /// The routers, and how their decisions are trained.
    #[serde(deserialize_with = "crate::or_default")]
    pub router: Router,
    /// Initial weights: a .safetensors file with torchvision's names, a run directory or a step folder; null: random.
    pub init_from: Option<String>,
}

/// Which blocks have a router.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Gates {
    /// All of them.
    All,
    /// Blocks whose output has the shape of their input, as in SkipNet and BlockDrop.
    SameShape,
    /// None: the static backbone.
    None,
}

/// Who decides for the gates.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Routing {
    /// Routers, for each image.
    Routers,
    /// Nobody: only the gates' blocks with these numbers, counted from 0, are in the network, which is static. `codinet-infer path`
    /// chooses them by a trained network.
    Fixed(Vec<usize>),
    /// Chance: each gate runs its block with this probability, drawn for each sample and step in training and for each image in
    /// evaluation.
    Random(#[schemars(extend("exclusiveMinimum" = 0, "exclusiveMaximum" = 1))] f64),
}

/// What replaces a skipped block that changes the shape. Other skipped blocks are replaced by their input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SkipBranch {
    /// A 1×1 convolution of its own, batch norm and ReLU.
    Project,
    /// The block's own shortcut, and ReLU.
    Shortcut,
}

/// A backbone: He et al., arXiv 1512.03385.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the name is the meaning: ResNet of that many layers")]
pub enum Arch {
    // For 32×32 images.
    ResNet20,
    ResNet32,
    ResNet44,
    ResNet56,
    ResNet74,
    ResNet110,
    // For 224×224 images.
    ResNet18,
    ResNet34,
    ResNet50,
    ResNet101,
    ResNet152,
}

/// Where a bottleneck block has its stride.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum StrideIn {
    /// In the first 1×1 convolution.
    Conv1,
    /// In the 3×3 convolution.
    Conv2,
}

/// The routers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Router {
    /// The layers of a router: the paper's Appendix A.2.
    pub kind: RouterKind,
    /// d, the hidden layer's width in `fc` and `cnn` routers: `ratio: r` of the block's input channels, or
    /// `units: d`.
    pub hidden: Hidden,
    /// What follows the hidden layer of `fc` and `cnn` routers.
    pub activation: HiddenActivation,
    /// Initial bias of "run" over "skip": above 0, most blocks run at first.
    pub open_bias: f64,
    /// How decisions become differentiable: the paper's Appendix A.1.
    pub relaxation: Relaxation,
    /// T of the Gumbel-Softmax (Eq. 6): a number, or a schedule over the steps of all stages whose routers train.
    pub temperature: Temperature,
    /// Which views share Gumbel noise. Views of one sample that share it differ only by their pixels, which is what L_con
    /// measures.
    pub noise: Noise,
}

/// What follows a router's hidden layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum HiddenActivation {
    /// A ReLU.
    Relu,
    /// Nothing, as in the authors' code.
    None,
}

/// T of the Gumbel-Softmax, constant or falling.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged, deny_unknown_fields)]
pub enum Temperature {
    /// The same in all steps.
    Constant(#[schemars(extend("exclusiveMinimum" = 0))] f64),
    /// In equal steps of log T.
    Exponential {
        /// Its ends.
        exponential: TemperatureRange,
    },
    /// In equal steps of T.
    Linear {
        /// Its ends.
        linear: TemperatureRange,
    },
}

/// T at both ends of a schedule.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TemperatureRange {
    /// T in the first step.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub from: f64,
    /// T after the last step.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub to: f64,
}

/// Which views share Gumbel noise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Noise {
    /// None: each view has its own draw, as in the paper.
    PerView,
    /// Those of a sample.
    PerSample,
}

/// The layers of a router.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RouterKind {
    /// Global average pooling and two linear layers (Eqs. 3 and 4).
    Fc,
    /// A 3×3 convolution, global average pooling and a linear layer.
    Cnn,
    /// Global average pooling, a linear layer that blocks of equal width share, and an LSTM of hidden size 10 over the blocks.
    Rnn,
}

/// How decisions become differentiable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Relaxation {
    /// The re-parameterised Gumbel-Softmax: forward and backward by v of Eq. 6.
    Gumbel,
    /// The straight-through one: forward by v ≥ 0.5, backward as if by v.
    StraightThrough,
}

/// Width of a router's hidden layer.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Hidden {
    /// This share of the block's input channels.
    Ratio(#[schemars(extend("exclusiveMinimum" = 0, "maximum" = 16))] f64),
    /// This many units.
    Units(#[schemars(range(min = 1, max = 65536))] i64),
}

impl Default for Model {
    fn default() -> Self {
        Self {
            arch: Arch::ResNet20,
            gates: Gates::All,
            routing: Routing::Routers,
            skip: SkipBranch::Project,
            stride_in: StrideIn::Conv2,
            zero_init_last_norm: false,
            drop_path: 0.0,
            sync_batch_norm: false,
            router: Router::default(),
            init_from: None,
        }
    }
}

impl Default for Router {
    fn default() -> Self {
        Self {
            kind: RouterKind::Fc,
            hidden: Hidden::Ratio(1.0),
            activation: HiddenActivation::Relu,
            open_bias: 2.0,
            relaxation: Relaxation::Gumbel,
            temperature: Temperature::Constant(1.0),
            noise: Noise::PerView,
        }
    }
}

impl Gates {
    /// Whether a block has a gate; `keeps_shape`: whether its output has the shape of its input.
    pub fn include(self, keeps_shape: bool) -> bool {
        match self {
            Self::All => true,
            Self::SameShape => keeps_shape,
            Self::None => false,
        }
    }
}

impl std::fmt::Display for Arch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(&format!("{self:?}"))
    }
}

impl Temperature {
    /// T at `progress`, from 0 to 1, of the steps in which routers train.
    pub fn at_progress(self, progress: f64) -> f64 {
        match self {
            Self::Constant(temperature) => temperature,
            Self::Exponential { exponential: TemperatureRange { from, to } } => {
                from * (to / from).powf(progress)
            }
            Self::Linear { linear: TemperatureRange { from, to } } => from + (to - from) * progress,
        }
    }
}

impl Hidden {
    /// Units for a block of `channels` input channels.
    pub fn width(self, channels: i64) -> i64 {
        match self {
            Self::Ratio(ratio) => ((channels as f64 * ratio).round() as i64).max(1),
            Self::Units(units) => units,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn temperature_is_a_number_or_a_schedule() {
        let temperature = |value| serde_json::from_value::<Temperature>(value).unwrap();
        let half_way = (5.0 * 0.1f64).sqrt();
        for (value, at) in [
            (json!(2), [2.0, 2.0, 2.0]),
            (json!({"exponential": {"from": 5, "to": 0.1}}), [5.0, half_way, 0.1]),
            (json!({"linear": {"from": 5, "to": 0.1}}), [5.0, 2.55, 0.1]),
        ] {
            for (progress, expected) in [0.0, 0.5, 1.0].into_iter().zip(at) {
                let found = temperature(value.clone()).at_progress(progress);
                assert!((found - expected).abs() < 1e-12, "{value} at {progress}: {found}");
            }
        }
        let both = json!({"exponential": {"from": 5, "to": 0.1}, "linear": {"from": 5, "to": 0.1}});
        assert!(serde_json::from_value::<Temperature>(both).is_err());
    }
}
