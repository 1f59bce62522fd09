//! How a run steps.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How the run steps.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Optim {
    /// Samples a step over all ranks together; each brings `data.views` views.
    #[schemars(range(min = 1, max = 1048576))]
    pub batch_size: usize,
    /// Samples a step over all ranks in evaluation.
    #[schemars(range(min = 1, max = 1048576))]
    pub eval_batch_size: usize,
    /// SGD's momentum.
    #[schemars(range(min = 0.0), extend("exclusiveMaximum" = 1))]
    pub momentum: f64,
    /// SGD's weight decay.
    #[schemars(range(min = 0.0))]
    pub weight_decay: f64,
    /// Whether weight decay takes in norms' scales and biases, as the paper's does.
    pub decay_norm_and_bias: bool,
    /// Nesterov's momentum.
    pub nesterov: bool,
    /// Micro-batches per rank and step: gradients of so many passes are averaged before the update. A run that is resumed
    /// by fewer ranks takes as many more of them, so that its steps stay what they were.
    pub accumulate: usize,
    /// ε of label smoothing in the cross entropy (arXiv 1512.00567).
    #[schemars(range(min = 0.0), extend("exclusiveMaximum" = 1))]
    pub label_smoothing: f64,
    /// Largest L² norm of the gradient; a longer one is scaled down to it; null: any.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub clip_norm: Option<f64>,
    /// What becomes of a step whose loss or gradient is not finite.
    pub on_nonfinite: OnNonfinite,
    /// Share of the running mean of weights that is kept each step, such as 0.999; it is evaluated too; null: none.
    #[schemars(extend("exclusiveMinimum" = 0, "exclusiveMaximum" = 1))]
    pub ema_decay: Option<f64>,
    /// The `batch_size` that the stages' learning rates are meant for: at another they are scaled in proportion
    /// (arXiv 1706.02677); null: not scaled.
    #[schemars(range(min = 1, max = 1048576))]
    pub lr_batch_size: Option<usize>,
}

/// What becomes of a step whose loss or gradient is not finite, on whichever rank. Where the gradient is not, nothing has
/// moved by the time that it is noticed: at the next log line or checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnNonfinite {
    /// The run ends.
    Stop,
    /// The step is told and counted, and the run goes on.
    Skip,
}

impl Default for Optim {
    fn default() -> Self {
        Self {
            batch_size: 128,
            eval_batch_size: 256,
            momentum: 0.9,
            weight_decay: 1e-4,
            decay_norm_and_bias: true,
            nesterov: false,
            accumulate: 1,
            label_smoothing: 0.0,
            clip_norm: None,
            on_nonfinite: OnNonfinite::Stop,
            ema_decay: None,
            lr_batch_size: None,
        }
    }
}
