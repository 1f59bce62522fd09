//! What a plan is made from: the config's facts, as `codinet-train --dry-run=json` tells them, and a run's speed.

use crate::trainer;
use serde::Deserialize;
use serde_json::Value;
use std::path::Path;
use std::process::Command;

/// What `codinet-train --dry-run=json` prints, as far as a plan needs it.
#[derive(Debug, Deserialize)]
pub struct Facts {
    /// The resolved config.
    pub config: Config,
    /// Numbers that are trained.
    pub parameters: u64,
    /// Of these, the routers'.
    pub router_parameters: u64,
    /// n.
    pub gates: u64,
    /// Multiply-accumulates of the static network, for one image.
    pub static_macs: u64,
    /// Epochs of all stages.
    pub epochs: u64,
    /// Samples an epoch; none where the shards cannot be read.
    pub samples: Option<u64>,
}

/// The config, as far as a plan needs it.
#[derive(Debug, Deserialize)]
pub struct Config {
    model: Value,
    /// What is seen.
    pub data: Data,
    /// How it steps.
    pub optim: Optim,
    /// How gradients travel.
    pub collective: Collective,
    /// Where it goes on.
    pub run: Run,
}

/// `collective`.
#[derive(Debug, Deserialize)]
pub struct Collective {
    /// fp32 or bf16.
    pub wire: String,
    /// Whether gradients leave while backward runs.
    pub overlap: bool,
    /// Megabytes of fp32 gradients that travel together.
    pub bucket_mb: f64,
    /// The same for the first to leave.
    pub first_bucket_mb: f64,
}

/// `data`.
#[derive(Debug, Deserialize)]
pub struct Data {
    image_size: u64,
    /// M.
    pub views: u64,
}

/// `optim`.
#[derive(Debug, Deserialize)]
pub struct Optim {
    /// Samples a step, over all ranks.
    pub batch_size: u64,
    /// Micro-batches per rank and step.
    pub accumulate: u64,
}

/// `run`.
#[derive(Debug, Deserialize)]
pub struct Run {
    precision: String,
    /// The run directory, where it is set.
    pub dir: Option<String>,
}

impl Facts {
    /// Asks `codinet-train` about `config`.
    pub fn of(config: &str, set: &[String]) -> Result<Self, String> {
        let mut command = Command::new(trainer());
        command.args([config, "--dry-run=json"]).args(set.iter().flat_map(|set| ["--set", set]));
        let output = command.output();
        let output = output.map_err(|error| {
            format!("cannot run {}: {error}; put it beside codinet-launch or on PATH", trainer().display())
        })?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(said.trim().trim_start_matches("error: ").to_owned());
        }
        serde_json::from_slice(&output.stdout).map_err(|error| {
            format!("{} is not of this codinet-launch's version: {error}", trainer().display())
        })
    }

    /// The first setting that makes a step of this config another than a step of `other`'s.
    fn differs_from(&self, other: &Self) -> Option<&'static str> {
        let (a, b) = (&self.config, &other.config);
        let network = |model: &Value| {
            let mut model = model.clone();
            model["init_from"] = Value::Null; // where weights start from costs no time
            model
        };
        let differing = [
            ("model", network(&a.model) != network(&b.model)),
            ("data.image_size", a.data.image_size != b.data.image_size),
            ("data.views", a.data.views != b.data.views),
            ("run.precision", a.run.precision != b.run.precision),
        ];
        differing.into_iter().find_map(|(name, differs)| differs.then_some(name))
    }
}

/// A measured speed.
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    /// Images a second of all GPUs together; every view counts.
    pub images_per_second: f64,
    /// GPUs.
    pub gpus: u64,
    /// Samples a GPU and step.
    pub samples: u64,
}

impl Measured {
    /// Reads the speed of the run in `dir`, which must have taken the steps of `facts`: the median of the lines of its
    /// `metrics.jsonl`, so that a slow start does not count.
    pub fn of_run(dir: &Path, facts: &Facts) -> Result<Self, String> {
        let read = |name: &str, else_do: &str| {
            let path = dir.join(name);
            std::fs::read_to_string(&path)
                .map_err(|error| format!("--run: cannot read {}: {error}; {else_do}", path.display()))
        };
        let summary =
            read("summary.json", "it is written when a run ends: let it, or give --images-per-second")?;
        let summary: Value = serde_json::from_str(&summary).unwrap_or_default();
        let gpus = summary["world_size"].as_u64().filter(|&gpus| gpus > 0);
        let speeds = read("metrics.jsonl", "name a run directory")?;
        let speeds = speeds.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let speeds = speeds.filter(|line| line["kind"] == "train");
        let mut speeds: Vec<f64> = speeds.filter_map(|line| line["images_per_second"].as_f64()).collect();
        speeds.sort_by(f64::total_cmp);
        let (Some(gpus), Some(&images_per_second)) = (gpus, speeds.get(speeds.len() / 2)) else {
            return Err(format!(
                "--run: {} tells no speed or no world size; lower run.log_every and run again, or give \
                 --images-per-second",
                dir.display()
            ));
        };
        let of_run = Facts::of(&dir.join("config.yaml").to_string_lossy(), &[])?;
        if let Some(name) = facts.differs_from(&of_run) {
            return Err(format!("--run: {} had another {name}; name a run of this config", dir.display()));
        }
        Ok(Self { images_per_second, gpus, samples: of_run.config.optim.batch_size / gpus })
    }
}
