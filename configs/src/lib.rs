//! What a run may say, for the trainer and the launcher: the config ([`load`]), tables of configs, codinet-train's command
//! line, exit codes, environment variables, and the names in a run directory.
//!
//! Every key is documented where it is defined, with its range; every default is written once, in the `Default` of its section.
//! docs/config.md and its JSON schema are generated from these types (tests/docs/keys.rs).

mod built_in;
mod check;
mod collective;
mod data;
pub mod env;
pub mod exit;
pub mod host;
mod load;
mod model;
mod objective;
mod optim;
mod paths;
pub mod probe;
pub mod progress;
mod run;
pub mod run_dir;
mod set;
mod source;
mod stage;
mod table;
pub mod text;
mod train_args;
mod types;
mod yaml;

pub use built_in::{BUILT_IN, built_in, list};
pub use check::{Rule, SCHEMA, takes};
pub use collective::{Backend, Collective, OnDivergence, Wire};
pub use data::{Cache, Data, TrainData, TrainSet};
pub use load::{is_table, load, load_table, place_of, shipped};
pub use model::{
    Arch, Gates, Hidden, HiddenActivation, Model, Noise, Relaxation, Router, RouterKind, Routing, SkipBranch,
    StrideIn, Temperature, TemperatureRange,
};
pub use objective::{
    Consistency, Control, Cost, CostUnit, Distill, Diversity, PathOutputs, PathValue, Paths, Scope,
    TargetRate, TermWeight,
};
pub use optim::{LossKind, LrFactors, OnNonfinite, Optim, OptimizerKind};
pub use run::{DeviceChoice, Precision, Run};
pub use stage::{ImageSize, ProgressiveSize, Routers, Schedule, Skip, Stage};
pub use table::{Figures, Row, Table};
pub use train_args::{DryRunFormat, MemorySize, Resume, TrainArgs, key_as_option};

use codinet_dataloader::Options;
use codinet_dataloader::transform::Transform;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::BTreeSet;

/// A whole run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Another config, next to this file or shipped, whose values hold for keys that this one leaves out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub extends: Option<String>,
    /// The run directory, device, logging and checkpoints.
    #[serde(deserialize_with = "or_default")]
    pub run: Run,
    /// The images and how they are read.
    #[serde(deserialize_with = "or_default")]
    pub data: Data,
    /// The network.
    #[serde(deserialize_with = "or_default")]
    pub model: Model,
    /// The path vectors that L_con and L_div compare.
    #[serde(deserialize_with = "or_default")]
    pub paths: Paths,
    /// L_con: views of one sample take similar paths.
    #[serde(deserialize_with = "or_default")]
    pub consistency: Consistency,
    /// L_div: different samples take different paths.
    #[serde(deserialize_with = "or_default")]
    pub diversity: Diversity,
    /// L_cost: paths are short.
    #[serde(deserialize_with = "or_default")]
    pub cost: Cost,
    /// Conv-AIG's loss for shorter paths, for comparison.
    #[serde(deserialize_with = "or_default")]
    pub target_rate: TargetRate,
    /// SkipNet's loss for shorter paths, for comparison: the mean of v over inputs and blocks.
    #[serde(deserialize_with = "or_default")]
    pub run_rate: TermWeight,
    /// Distillation from a trained network.
    #[serde(deserialize_with = "or_default")]
    pub distill: Distill,
    /// The optimiser and the batch.
    #[serde(deserialize_with = "or_default")]
    pub optim: Optim,
    /// Communication between ranks.
    #[serde(deserialize_with = "or_default")]
    pub collective: Collective,
    /// The stages of training, in order: the paper's Section 3.4 has two.
    #[schemars(length(min = 1), extend("x-takes" = "a list of at least one stage"))]
    #[serde(deserialize_with = "or_default")]
    pub stages: Vec<Stage>,
}

/// A section; one that is empty, because all of its keys are commented out, has its defaults.
pub(crate) fn or_default<'de, T, D>(deserializer: D) -> Result<T, D::Error>
where
    T: Default + Deserialize<'de>,
    D: Deserializer<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

impl Config {
    /// How datasets are opened.
    pub fn dataset_options(&self) -> Options {
        let cache = self.data.cache.as_ref().map(|cache| codinet_dataloader::Cache {
            folder: cache.folder.clone().into(),
            limit_bytes: (cache.limit_gb * 1e9) as u64,
        });
        Options { cache, ..Options::default() }
    }

    /// The transform of training images.
    pub fn augmentation(&self) -> Transform {
        let data = &self.data;
        Transform::Train { crop: data.crop.clone(), flip: data.flip, augment: data.augment.clone() }
    }

    /// All sizes of training views, the largest last.
    pub fn image_sizes(&self) -> BTreeSet<u32> {
        self.stages.iter().flat_map(|stage| stage.image_sizes(self.data.image_size)).collect()
    }

    /// The smallest size of training views: it shows the smallest part of an image.
    pub fn smallest_view(&self) -> u32 {
        self.image_sizes().first().copied().unwrap_or(self.data.image_size)
    }

    /// Height and width of views as a function of the epoch, which is counted over all stages.
    pub fn image_size_by_epoch(&self) -> impl Fn(u64) -> u32 + Send + 'static {
        let default = self.data.image_size;
        let stages = self.stages.clone();
        move |mut epoch| {
            for stage in &stages {
                if epoch < stage.epochs {
                    return stage.image_size_at(epoch, default);
                }
                epoch -= stage.epochs;
            }
            default
        }
    }

    /// The transform of evaluation images.
    pub fn evaluation(&self) -> Transform {
        Transform::Eval { resize: self.data.eval_resize }
    }

    /// Whether there are routers to train.
    pub fn gated(&self) -> bool {
        self.model.gates != Gates::None && self.model.routing == Routing::Routers
    }

    /// The number that stands for a gate in the path vectors of L_con and L_div.
    pub fn path_value(&self) -> PathValue {
        self.paths.values.unwrap_or(match self.model.router.relaxation {
            Relaxation::Gumbel => PathValue::Decision,
            Relaxation::StraightThrough => PathValue::Probability,
        })
    }

    /// T of the relaxed paths of a trained network: that of its path vectors, at the end of a schedule.
    pub fn final_temperature(&self) -> f64 {
        match self.path_value() {
            PathValue::Decision => self.model.router.temperature.at_progress(1.0),
            PathValue::Probability => 1.0,
        }
    }

    /// The budget in GMACs, if there are gates to meet it.
    pub fn budget(&self) -> Option<f64> {
        self.cost.budget_gmacs.filter(|_| self.gated())
    }

    /// Whether a bias on all gates is set at each stage's end.
    pub fn calibrates(&self) -> bool {
        self.budget().is_some() && self.cost.calibrate
    }

    /// Whether the objective has a penalty for missing the budget in `stage`.
    pub fn penalizes(&self, stage: &Stage) -> bool {
        self.budget().is_some() && stage.routers == Routers::Train && self.cost.control == Control::Penalty
    }

    /// Whether a budget adjusts γ in `stage`.
    pub fn adjusts_gamma(&self, stage: &Stage) -> bool {
        let trains = stage.routers == Routers::Train && stage.gamma.is_none();
        self.budget().is_some() && trains && self.cost.control == Control::Price
    }
}
