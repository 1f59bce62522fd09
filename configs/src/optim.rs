//! The section `optim`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;

/// The optimiser and the batch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Optim {
    /// Samples a step over all ranks together; each has `data.views` views.
    #[schemars(range(min = 1, max = 1048576))]
    pub batch_size: usize,
    /// Samples a step over all ranks in evaluation.
    #[schemars(range(min = 1, max = 1048576))]
    pub eval_batch_size: usize,
    /// What moves the weights. A key of the others, such as `momentum` with `adamw`, is refused unless it has its default.
    pub optimizer: OptimizerKind,
    /// SGD's momentum.
    #[schemars(range(min = 0.0), extend("exclusiveMaximum" = 1))]
    pub momentum: f64,
    /// Weight decay λ: SGD adds λ·w to the gradient, LAMB to its update; AdamW takes lr·λ·w from the weight.
    #[schemars(range(min = 0.0))]
    pub weight_decay: f64,
    /// Whether weight decay includes norms' scales and biases; null: with SGD, as in the paper, and not with AdamW and LAMB.
    /// LAMB's trust ratio scales only tensors that decay, as in timm.
    pub decay_norm_and_bias: Option<bool>,
    /// Nesterov's momentum.
    pub nesterov: bool,
    /// β₁ and β₂ of AdamW and LAMB: the decay per step of the means of gradients and of their squares.
    pub betas: (f64, f64),
    /// ε of AdamW and LAMB, added to the root of the mean square; null: 1e-8 with AdamW, as PyTorch, 1e-6 with LAMB, as timm.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub eps: Option<f64>,
    /// Learning rates of parts of the network, as factors of the stage's `lr`.
    #[serde(deserialize_with = "crate::or_default")]
    pub lr_factors: LrFactors,
    /// Micro-batches per rank and step: their gradients are averaged before the update. A run that is resumed on fewer ranks uses
    /// more of them, so that its steps stay the same.
    pub accumulate: usize,
    /// L_cls of Eq. 12 in training; an evaluation reports the cross entropy.
    pub loss: LossKind,
    /// Targets of the binary cross entropy above this number become 1, the others 0; null: they stay as they are. With 0.2 both classes
    /// of a mixed image are full targets, if each has a larger share than that (arXiv 2110.00476).
    #[schemars(range(min = 0.0), extend("exclusiveMaximum" = 1))]
    pub bce_threshold: Option<f64>,
    /// ε of label smoothing (arXiv 1512.00567): a target t becomes (1 − ε)·t + ε/classes.
    #[schemars(range(min = 0.0), extend("exclusiveMaximum" = 1))]
    pub label_smoothing: f64,
    /// Largest L² norm of the gradient; a larger gradient is scaled down to it; null: no limit, but 1 with LAMB, as timm.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub clip_norm: Option<f64>,
    /// What to do after a step whose loss or gradient is not finite.
    pub on_nonfinite: OnNonfinite,
    /// Decay of the moving average (EMA) of the weights, such as 0.999; the average is evaluated too; null: no average.
    #[schemars(extend("exclusiveMinimum" = 0, "exclusiveMaximum" = 1))]
    pub ema_decay: Option<f64>,
    /// The `batch_size` for which the stages' learning rates are meant; with another one they are scaled in proportion
    /// (arXiv 1706.02677); null: not scaled.
    #[schemars(range(min = 1, max = 1048576))]
    pub lr_batch_size: Option<usize>,
}

/// What moves the weights along a gradient.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerKind {
    /// Stochastic gradient descent with momentum, as torch.optim.SGD.
    #[default]
    Sgd,
    /// Adam with decoupled weight decay (arXiv 1711.05101), as torch.optim.AdamW.
    AdamW,
    /// Adam's update, scaled for each tensor by a trust ratio |w|/|update| (arXiv 1904.00962), as timm's `Lamb`.
    Lamb,
}

impl fmt::Display for OptimizerKind {
    /// As in a config.
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Sgd => "sgd",
            Self::AdamW => "adamw",
            Self::Lamb => "lamb",
        })
    }
}

/// A classification loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LossKind {
    /// The cross entropy of the softmax.
    CrossEntropy,
    /// The binary cross entropy of each class's sigmoid, mean over images and classes, as timm's `BinaryCrossEntropy` without
    /// `sum_classes`.
    BinaryCrossEntropy,
}

/// Learning rates of parts of the network, as factors of the stage's `lr`; that of all other parts is 1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LrFactors {
    /// Of the routers.
    #[schemars(range(min = 0.0))]
    pub routers: f64,
    /// Of the head: the linear layer whose outputs are the logits.
    #[schemars(range(min = 0.0))]
    pub head: f64,
}

impl Default for LrFactors {
    fn default() -> Self {
        Self { routers: 1.0, head: 1.0 }
    }
}

impl Optim {
    /// Whether norms' scales and biases decay.
    pub fn decays_norm_and_bias(&self) -> bool {
        self.decay_norm_and_bias.unwrap_or(self.optimizer == OptimizerKind::Sgd)
    }

    /// ε of AdamW and LAMB.
    pub fn epsilon(&self) -> f64 {
        self.eps.unwrap_or(if self.optimizer == OptimizerKind::Lamb { 1e-6 } else { 1e-8 })
    }

    /// The gradient's largest L² norm, if it has a limit.
    pub fn norm_limit(&self) -> Option<f64> {
        self.clip_norm.or((self.optimizer == OptimizerKind::Lamb).then_some(1.0))
    }
}

/// What to do after a step whose loss or gradient is not finite on any rank. A step with such a gradient changes no weights; it
/// is noticed at the next log line or checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnNonfinite {
    /// The run ends.
    Stop,
    /// Log the step, skip the update, continue.
    Skip,
}

impl Default for Optim {
    fn default() -> Self {
        Self {
            batch_size: 128,
            eval_batch_size: 256,
            optimizer: OptimizerKind::Sgd,
            momentum: 0.9,
            weight_decay: 1e-4,
            decay_norm_and_bias: None,
            nesterov: false,
            betas: (0.9, 0.999),
            eps: None,
            lr_factors: LrFactors::default(),
            accumulate: 1,
            loss: LossKind::CrossEntropy,
            bce_threshold: None,
            label_smoothing: 0.0,
            clip_norm: None,
            on_nonfinite: OnNonfinite::Stop,
            ema_decay: None,
            lr_batch_size: None,
        }
    }
}
