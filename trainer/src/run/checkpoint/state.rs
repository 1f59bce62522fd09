//! `state.json`: what a checkpoint holds besides tensors.

use crate::config::OptimizerKind;
use crate::metrics::MetricsSum;
use crate::optim::GammaController;
use crate::run_dir::{CHECKPOINTS, step_name};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// The format that this program writes and reads.
pub(super) const VERSION: u32 = 4;

/// The position of a run: what a step changes, besides tensors.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct TrainState {
    /// [`VERSION`] of the program that wrote it.
    pub version: u32,
    /// Completed steps of the run.
    pub step: u64,
    /// The current stage, from 0.
    pub stage: usize,
    /// Completed epochs of that stage.
    pub epoch: u64,
    /// Completed samples of the current epoch, over all ranks.
    pub epoch_samples: u64,
    /// Completed samples of the run, over all ranks.
    pub samples: u64,
    /// Seconds since the start of the run, without pauses between its processes.
    pub seconds: f64,
    /// Those of them spent in training steps.
    pub training_seconds: f64,
    /// What the optimiser's state is of. Checkpoints from before other optimisers came have SGD's.
    #[serde(default)]
    pub optimizer: OptimizerKind,
    /// The number of micro-batches in the global batch, over all ranks.
    pub micro_batches: usize,
    /// Updates skipped because something was not finite.
    pub skipped: u64,
    /// γ and its controller.
    #[serde(rename = "price")]
    pub gamma: GammaController,
    /// What the ranks gathered in the last step and the next one acts on: the mean of each gate's decisions in inference; none
    /// at an epoch's start.
    #[serde(default)]
    pub gathered_rates: Option<Vec<f64>>,
    pub best: Option<Best>,
    /// The sum of the metrics since the last log line.
    #[serde(rename = "tally")]
    pub metrics_sum: MetricsSum,
    /// The finite losses of the current epoch.
    pub epoch_loss: Mean,
    /// Mean training loss of the last completed epoch; none before that, or if no loss of it was finite.
    pub train_loss: Option<f64>,
    /// The results of the completed stages.
    pub stages: Vec<StageResult>,
    pub order: Order,
    /// SHA-256 of each file of the checkpoint.
    pub files: BTreeMap<String, String>,
}

impl TrainState {
    /// Drops the best checkpoint if the run directory lacks it: it belongs to the run that this one branched off from.
    pub fn forget_lost_best(&mut self, run: &Path) {
        self.best = self.best.filter(|best| run.join(CHECKPOINTS).join(step_name(best.step)).exists());
    }
}

/// A running mean.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Mean {
    sum: f64,
    count: u64,
}

impl Mean {
    pub fn add(&mut self, value: f64) {
        self.sum += value;
        self.count += 1;
    }

    /// The mean of the values so far, if there are any.
    pub fn get(self) -> Option<f64> {
        (self.count > 0).then(|| self.sum / self.count as f64)
    }
}

/// What the order of samples is a function of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Order {
    pub seed: u64,
    /// The number of training samples.
    pub samples: u64,
    /// The training set's fingerprint.
    pub data: String,
}

/// The results of a stage, as in `summary.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct StageResult {
    pub name: String,
    pub epochs: u64,
    pub top1: f64,
    pub top5: f64,
    /// Top-1 with the relaxed decisions of training, without noise.
    pub top1_as_trained: f64,
    /// `top1_as_trained` less `top1` (Section 3.4).
    pub training_inference_gap: f64,
    pub gmacs: f64,
    pub budget_gmacs: Option<f64>,
    pub distinct_paths: usize,
    /// Mean training loss of the last epoch.
    pub train_loss: Option<f64>,
}

/// The best evaluation of a run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Best {
    pub top1: f64,
    /// The step after which it was measured.
    pub step: u64,
}
