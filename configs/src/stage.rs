//! The stages of training, and the learning rate over each.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One stage of training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Stage {
    /// Its name in logs and in `summary.json`.
    pub name: String,
    /// How many epochs it takes.
    #[schemars(range(min = 1, max = 1000000))]
    pub epochs: u64,
    /// Highest learning rate.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub lr: f64,
    /// How the rate falls.
    pub schedule: Schedule,
    /// Epochs of linear warm-up from 0, at the start.
    #[schemars(range(min = 0.0))]
    pub warmup_epochs: f64,
    /// What trains and how gates decide.
    pub routers: Routers,
    /// α in this stage; null: as `consistency` has it where routers train, 0 where they are frozen (whose hard
    /// decisions have no gradient: a weight there changes what is reported as the loss, and nothing else).
    pub alpha: Option<f64>,
    /// β in this stage, likewise.
    pub beta: Option<f64>,
    /// γ in this stage, likewise.
    pub gamma: Option<f64>,
}

/// What a stage does with the routers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Routers {
    /// They train, by relaxed decisions: the paper's first stage.
    Train,
    /// They are frozen and decide hard, without noise, and the rest is fine-tuned: its second.
    Freeze,
}

/// How the learning rate falls over a stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Schedule {
    /// Not at all.
    Constant,
    /// Times `factor` at each milestone.
    MultiStep {
        /// Epochs of the stage after which the rate falls.
        milestones: Vec<u64>,
        /// What it is multiplied by.
        #[schemars(extend("exclusiveMinimum" = 0))]
        factor: f64,
    },
    /// Along half a cosine, to 0.
    Cosine,
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
            alpha: None,
            beta: None,
            gamma: None,
        }
    }
}
