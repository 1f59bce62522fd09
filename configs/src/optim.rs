//! The section `optim`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

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
    /// SGD's momentum.
    #[schemars(range(min = 0.0), extend("exclusiveMaximum" = 1))]
    pub momentum: f64,
    /// SGD's weight decay.
    #[schemars(range(min = 0.0))]
    pub weight_decay: f64,
    /// Whether weight decay includes norms' scales and biases, as in the paper.
    pub decay_norm_and_bias: bool,
    /// Nesterov's momentum.
    pub nesterov: bool,
    /// Micro-batches per rank and step: their gradients are averaged before the update. A run that is resumed on fewer ranks uses
    /// more of them, so that its steps stay the same.
    pub accumulate: usize,
    /// ε of label smoothing in the cross entropy (arXiv 1512.00567).
    #[schemars(range(min = 0.0), extend("exclusiveMaximum" = 1))]
    pub label_smoothing: f64,
    /// Largest L² norm of the gradient; a larger gradient is scaled down to it; null: no limit.
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
