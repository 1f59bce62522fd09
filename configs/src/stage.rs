//! The stages of training, and the learning rate over each.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One stage of training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Stage {
    /// Its name in logs and in `summary.json`.
    pub name: String,
    /// Its number of epochs.
    #[schemars(range(min = 1, max = 1000000))]
    pub epochs: u64,
    /// Highest learning rate.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub lr: f64,
    /// How the learning rate falls.
    pub schedule: Schedule,
    /// Epochs of linear warm-up from 0, at the start.
    pub warmup_epochs: f64,
    /// Whether routers train, and how gates decide.
    pub routers: Routers,
    /// Whether gates decide with Gumbel noise; null: while routers train. In the authors' code frozen routers do, too.
    pub noise: Option<bool>,
    /// Which branches of a gated block are computed where decisions are hard.
    pub skip: Skip,
    /// α in this stage; null: `consistency.weight` if routers train, 0 if they are frozen. Hard decisions have no gradient: with
    /// frozen routers a weight only changes the reported loss.
    pub alpha: Option<f64>,
    /// β in this stage, likewise.
    pub beta: Option<f64>,
    /// γ in this stage, likewise.
    pub gamma: Option<f64>,
}

/// Whether routers train in a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Routers {
    /// They train, with relaxed decisions: the paper's first stage.
    Train,
    /// They are frozen and decide hard; the rest is fine-tuned: the paper's second stage.
    Freeze,
}

/// Which branches of a gated block are computed where decisions are hard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Skip {
    /// Both, for all inputs; the decision masks one.
    Masked,
    /// For each input the one that it takes, as in inference. Batch norm has the statistics of the inputs that take its branch.
    Real,
}

/// How the learning rate falls over a stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Schedule {
    /// Not at all.
    Constant,
    /// Multiplied by `factor` at each milestone.
    MultiStep {
        /// Epochs of the stage after which the rate falls.
        milestones: Vec<u64>,
        /// The factor.
        #[schemars(extend("exclusiveMinimum" = 0))]
        factor: f64,
    },
    /// Along half a cosine, to 0.
    Cosine,
    /// In a straight line from the end of the warm-up, to 0.
    Linear,
    /// Up from 1/25 along a cosine, then down to almost 0 (arXiv 1708.07120), as PyTorch's OneCycleLR.
    OneCycle {
        /// Share of the stage in which it rises.
        #[schemars(extend("exclusiveMinimum" = 0, "exclusiveMaximum" = 1))]
        rise: f64,
    },
}

impl Default for Stage {
    fn default() -> Self {
        Self {
            name: "train".into(),
            epochs: 1,
            lr: 0.1,
            schedule: Schedule::Constant,
            warmup_epochs: 0.0,
            routers: Routers::Train,
            noise: None,
            skip: Skip::Masked,
            alpha: None,
            beta: None,
            gamma: None,
        }
    }
}

impl Stage {
    /// Whether gates decide with Gumbel noise.
    pub fn is_noisy(&self) -> bool {
        self.noise.unwrap_or(self.routers == Routers::Train)
    }
}
