//! The sections of the loss terms. A term whose only setting is its weight has [`TermWeight`].

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The path vectors r of Eqs. 8 and 9, which L_con and L_div compare.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Paths {
    /// The number that stands for a gate in r; null: `decision`, but `probability` with `relaxation: straight_through`, because
    /// the margins mean little for binary numbers.
    pub values: Option<PathValue>,
    /// Which of the softmax's two outputs r has for each gate.
    pub outputs: PathOutputs,
}

/// The number that stands for a gate in a path vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PathValue {
    /// What the gate decided: v with its noise and T, or u.
    Decision,
    /// The probability that the block runs: v without noise at T = 1, σ(U₁ − U₀).
    Probability,
}

/// Which of the softmax's two outputs a path vector has for each gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PathOutputs {
    /// That of "run": v, n numbers, as in the paper.
    Run,
    /// Those of "run" and "skip": v and 1 − v, 2n numbers, as in the authors' code. Distances are √2 larger.
    Both,
}

/// The consistency loss, Eq. 8.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Consistency {
    /// α of Eq. 12; 0: not minimised, but still reported.
    #[schemars(range(min = 0.0))]
    pub weight: f64,
    /// m_c: distance of a view's path from its sample's centre below which the loss is zero.
    #[schemars(range(min = 0.0))]
    pub margin: f64,
}

/// The diversity loss, Eq. 9.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Diversity {
    /// β of Eq. 12; 0: not minimised, but still reported.
    #[schemars(range(min = 0.0))]
    pub weight: f64,
    /// m_d: distance between two samples' centres above which the loss is zero.
    #[schemars(range(min = 0.0))]
    pub margin: f64,
    /// Samples that the loss compares, and over which `target_rate` computes its rates; with `optim.accumulate` 1 both values are
    /// the same.
    pub scope: Scope,
}

/// The samples of the diversity loss and of Conv-AIG's rates, if `optim.accumulate` is above 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// A micro-batch, over all ranks.
    MicroBatch,
    /// The global batch; needs a second forward pass.
    GlobalBatch,
}

/// The cost loss, Eq. 11, and a budget that adjusts γ.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Cost {
    /// γ of Eq. 12; with `control: price`, its first value.
    #[schemars(range(min = 0.0))]
    pub gamma: f64,
    /// The unit of c_k: γ is the price of one.
    pub unit: CostUnit,
    /// Mean MACs per image, in billions, that training is steered to meet; null: γ is constant.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub budget_gmacs: Option<f64>,
    /// The share of the epochs whose routers train over which the budget goes from the MACs of all blocks to `budget_gmacs`;
    /// 0: at once, and most gates close before the blocks have learned which of them matter.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub budget_ramp: f64,
    /// What steers training to the budget.
    pub control: Control,
    /// With `control: penalty`, its weight.
    #[schemars(range(min = 0.0))]
    pub penalty: f64,
    /// With `control: price`, the change of γ a step, as the price of the mean block, for each 100 % that the network's MACs are off the budget.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub gamma_step: f64,
    /// Whether each stage ends with one bias on all gates that makes held-out training images meet the budget. The next stage
    /// starts from it; after the last stage the network meets the budget.
    pub calibrate: bool,
    /// How many training images are held out for calibration.
    #[schemars(range(min = 1))]
    pub calibration_samples: usize,
}

/// What steers training to a budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Control {
    /// A term of the loss, `cost.penalty` · (F − θ)²: F is the mean MACs of a batch by v and θ the budget, in shares of the static
    /// network (Verelst & Tuytelaars, CVPR 2020; arXiv 2308.15949). γ is constant.
    Penalty,
    /// γ, the price of a block, changes from step to step.
    Price,
}

/// The unit of a block's cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CostUnit {
    /// The mean gated block: Σ c_k = n.
    Blocks,
    /// The static network.
    Fraction,
    /// 10⁹ multiply-accumulates.
    Gmacs,
}

/// Conv-AIG's loss (Veit & Belongie, ECCV 2018): Σ_k (mean v_k − rate)², each block's rate over the batch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TargetRate {
    /// Its weight; 0: not minimised.
    #[schemars(range(min = 0.0))]
    pub weight: f64,
    /// The share of inputs for which each block should run.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub rate: f64,
}

/// A loss term whose only setting is its weight.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TermWeight {
    /// Its weight; 0: not minimised, but still reported.
    #[schemars(range(min = 0.0))]
    pub weight: f64,
}

/// Distillation from a trained network, the teacher (Hinton et al., arXiv 1503.02531): with p and q the softmax of the teacher's
/// and the network's logits over T, the loss is (1 − w)·L_cls + w·T²·KL(p ‖ q).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Distill {
    /// The teacher: a run directory or a step folder of a network for the same images and classes; null: no distillation.
    pub from: Option<String>,
    /// T, by which both networks' logits are divided.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub temperature: f64,
    /// w, the teacher's share of the loss.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub weight: f64,
}

impl Distill {
    /// w; 0 without a teacher.
    pub fn active_weight(&self) -> f64 {
        if self.from.is_some() { self.weight } else { 0.0 }
    }
}

impl Default for Distill {
    fn default() -> Self {
        Self { from: None, temperature: 4.0, weight: 0.5 }
    }
}

impl Default for Paths {
    fn default() -> Self {
        Self { values: None, outputs: PathOutputs::Run }
    }
}

impl Default for Consistency {
    fn default() -> Self {
        Self { weight: 0.2, margin: 0.2 }
    }
}

impl Default for Diversity {
    fn default() -> Self {
        Self { weight: 0.2, margin: 0.5, scope: Scope::MicroBatch }
    }
}

impl Default for Cost {
    fn default() -> Self {
        Self {
            gamma: 0.01,
            unit: CostUnit::Blocks,
            budget_gmacs: None,
            budget_ramp: 0.33,
            control: Control::Penalty,
            penalty: 10.0,
            gamma_step: 2e-4,
            calibrate: false,
            calibration_samples: 2000,
        }
    }
}

impl Default for TargetRate {
    fn default() -> Self {
        Self { weight: 0.0, rate: 0.7 }
    }
}
