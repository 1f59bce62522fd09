//! What is minimised beside the cross entropy: consistency, diversity, and what paths cost.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The consistency loss, Eq. 8.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Consistency {
    /// α of Eq. 12; 0: not minimised, but reported all the same.
    #[schemars(range(min = 0.0))]
    pub weight: f64,
    /// m_c: how far a view's path may lie from its sample's centre at no loss.
    #[schemars(range(min = 0.0))]
    pub margin: f64,
}

/// The diversity loss, Eq. 9.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Diversity {
    /// β of Eq. 12; 0: not minimised, but reported all the same.
    #[schemars(range(min = 0.0))]
    pub weight: f64,
    /// m_d: how far apart two samples' centres have to lie.
    #[schemars(range(min = 0.0))]
    pub margin: f64,
    /// Which samples are told apart where gradients are accumulated, and which `target_rate` takes its rates over; with
    /// `optim.accumulate` 1 both are the same.
    pub scope: Scope,
}

/// Which samples the diversity loss tells apart, and Conv-AIG's takes its rates over, where `optim.accumulate` is
/// above 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Those of a micro-batch, over all ranks.
    MicroBatch,
    /// Those of the whole global batch; costs a second forward pass.
    GlobalBatch,
}

/// The cost loss, Eq. 11, and the budget that may steer it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Cost {
    /// γ of Eq. 12; where there is a budget, its first value.
    #[schemars(range(min = 0.0))]
    pub gamma: f64,
    /// What c_k is measured in, and so what γ is the price of.
    pub unit: CostUnit,
    /// Mean MACs per image, in billions, that γ is moved to meet; null: γ stays as it is.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub budget_gmacs: Option<f64>,
    /// How far a step moves γ, as the price of the mean block, for each 100 % of the budget that the network's MACs are
    /// off it.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub gamma_step: f64,
    /// Whether, at each stage's end, one bias on all gates is set so that the budget is met on training images
    /// that were held out: the next stage trains at the budget, and the last leaves the network there.
    pub calibrate: bool,
    /// How many training images are held out for that.
    #[schemars(range(min = 1))]
    pub calibration_samples: usize,
}

/// What the cost of a block is measured in.
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
    /// The share of inputs that each block should run for.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub rate: f64,
}

/// SkipNet's penalty (Wang et al., ECCV 2018): the mean of v over inputs and blocks.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RunRate {
    /// Its weight; 0: not minimised.
    #[schemars(range(min = 0.0))]
    pub weight: f64,
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
