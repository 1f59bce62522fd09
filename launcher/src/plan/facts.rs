//! The inputs of a plan: the config, its network's figures from `codinet-train --dry-run=json`, and a run's speed.

use crate::trainer;
use codinet_config::{Config, Model, load, run_dir};
use serde::Deserialize;
use serde_json::Value;
use std::path::Path;
use std::process::Command;

/// What `codinet-train --dry-run=json` prints about a config's network and data.
#[derive(Debug, Deserialize)]
pub struct Network {
    /// Trainable parameters.
    pub parameters: u64,
    /// Those of the routers.
    pub router_parameters: u64,
    /// n.
    pub gates: u64,
    /// Multiply-accumulates of the static network, for one image.
    pub static_macs: u64,
    /// Samples per epoch; `None` if the shards cannot be read.
    pub samples: Option<u64>,
}

/// Loads a config.
pub fn load_config(name: &str, set: &[String]) -> Result<Config, String> {
    load(name, set).map_err(|error| error.to_string())
}

impl Network {
    /// Asks `codinet-train` about the network of a config.
    pub fn query(config: &str, set: &[String]) -> Result<Self, String> {
        let program = trainer();
        let mut command = Command::new(&program);
        command.args([config, "--dry-run=json"]).args(set.iter().flat_map(|set| ["--set", set]));
        let output = command.output().map_err(|error| {
            format!("cannot run {}: {error}; put it next to codinet-launch or on PATH", program.display())
        })?;
        // What keeps a run from starting on this machine does not matter to a plan.
        if output.stdout.is_empty() {
            let stderr = String::from_utf8_lossy(&output.stderr);
            return Err(stderr.trim().trim_start_matches("error: ").to_owned());
        }
        serde_json::from_slice(&output.stdout).map_err(|error| {
            format!("{} is not of this codinet-launch's version: {error}", program.display())
        })
    }
}

/// The first setting that makes a step of `a` a different computation from a step of `b`.
fn first_difference(a: &Config, b: &Config) -> Option<&'static str> {
    let network = |model: &Model| Model { init_from: None, ..model.clone() };
    let settings = [
        ("model", network(&a.model) != network(&b.model)),
        ("data.image_size", a.image_sizes() != b.image_sizes()),
        ("data.views", a.data.views != b.data.views),
        ("run.precision", a.run.precision != b.run.precision),
    ];
    settings.into_iter().find_map(|(name, differs)| differs.then_some(name))
}

/// A measured speed.
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    /// Images per second of all GPUs together; every view counts.
    pub images_per_second: f64,
    /// Number of GPUs.
    pub gpus: u64,
    /// Samples per GPU and step.
    pub samples: u64,
}

impl Measured {
    /// Reads the speed of the run in `dir`, whose steps must be those of `config`: the median of the lines of its
    /// `metrics.jsonl`, so that a slow start does not count.
    pub fn read_run(dir: &Path, config: &Config) -> Result<Self, String> {
        let read = |name: &str, advice: &str| {
            let path = dir.join(name);
            std::fs::read_to_string(&path)
                .map_err(|error| format!("--run: cannot read {}: {error}; {advice}", path.display()))
        };
        let summary = read(
            run_dir::SUMMARY,
            "it is written when a run ends: wait for that, or give --images-per-second",
        )?;
        let summary: Value = serde_json::from_str(&summary).unwrap_or_default();
        let gpus = summary["world_size"].as_u64().filter(|&gpus| gpus > 0);
        let metrics = read(run_dir::METRICS, "name a run directory")?;
        let lines = metrics.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let steps = lines.filter(|line| line["kind"] == "train");
        let mut speeds: Vec<f64> = steps.filter_map(|line| line["images_per_second"].as_f64()).collect();
        speeds.sort_by(f64::total_cmp);
        let (Some(gpus), Some(&images_per_second)) = (gpus, speeds.get(speeds.len() / 2)) else {
            return Err(format!(
                "--run: {} records no speed or no world size; lower run.log_every and run again, or give \
                 --images-per-second",
                dir.display()
            ));
        };
        let of_run = load_config(&dir.join(run_dir::CONFIG).to_string_lossy(), &[])?;
        if let Some(name) = first_difference(config, &of_run) {
            return Err(format!("--run: {} had another {name}; name a run of this config", dir.display()));
        }
        Ok(Self { images_per_second, gpus, samples: of_run.optim.batch_size as u64 / gpus })
    }
}
