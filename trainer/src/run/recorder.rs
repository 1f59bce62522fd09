//! Writes the records of a run: `metrics.jsonl`, and the same numbers for TensorBoard.

use super::tensorboard::EventFile;
use super::{gate_heatmap, hparams, write_atomically};
use crate::config::Config;
use crate::run_dir::{METRICS, TENSORBOARD};
use crate::sys::error::{Error, Exit, Result};
use serde::Serialize;
use serde_json::{Map, Value};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Numbers that tell when a line was written, not what was measured: TensorBoard shows no curves of them.
const POSITIONS: [&str; 3] = ["epoch", "samples", "images"];

/// The open files of a run's records.
#[derive(Debug)]
pub(super) struct Recorder {
    /// The run directory, locked against other runs.
    _lock: File,
    path: PathBuf,
    metrics: File,
    events: EventFile,
}

impl Recorder {
    /// Locks the run directory and opens its files. What a run that resumes at `step` had recorded after that step is removed;
    /// unless `evaluated`, the evaluation at `step` too, which will be repeated.
    pub fn open(dir: &Path, step: u64, evaluated: bool) -> Result<Self> {
        let lock = File::open(dir).map_err(|error| Error::disk("open", dir, &error))?;
        // On a file system without locks, the user has to see to it.
        if matches!(lock.try_lock(), Err(TryLockError::WouldBlock)) {
            let what = format!("{} is in use by another run; choose another run.dir", dir.display());
            return Err(Error::new(Exit::Config, what));
        }
        let path = dir.join(METRICS);
        let text = fs::read_to_string(&path).unwrap_or_default();
        let kept = lines_until(&text, step, evaluated);
        if kept.len() < text.lines().count() {
            let text: String = kept.iter().flat_map(|line| [line, "\n"]).collect();
            write_atomically(&path, text.as_bytes())?;
        }
        let metrics = OpenOptions::new().create(true).append(true).open(&path);
        let metrics = metrics.map_err(|error| Error::disk("open", &path, &error))?;
        Ok(Self { _lock: lock, path, metrics, events: EventFile::create(&dir.join(TENSORBOARD), step) })
    }

    /// Writes the config for TensorBoard's table of hyperparameters.
    pub fn record_config(&mut self, config: &Config) {
        hparams::write_start(&mut self.events, &serde_json::to_value(config).expect("a config is JSON"));
    }

    /// Marks the run as ended in that table.
    pub fn record_end(&mut self) {
        hparams::write_end(&mut self.events);
    }

    /// Draws the gates' rates of the run so far for TensorBoard.
    pub fn draw_gate_heatmap(&mut self, step: u64) {
        let text = fs::read_to_string(&self.path).unwrap_or_default();
        if let Some((png, size)) = gate_heatmap::draw(&text) {
            self.events.image(step, "train_rates/over_time", png, size);
        }
    }

    /// Records a line of `kind`, `train`, `eval` or `event`. Each measurement in it is also a scalar `kind/name` of
    /// TensorBoard.
    pub fn record(&mut self, kind: &str, step: u64, fields: &impl Serialize) -> Result<()> {
        let fields = serde_json::to_value(fields).expect("a record is JSON");
        let Value::Object(fields) = fields else { unreachable!("a record is an object") };
        let mut line = Map::new();
        line.insert("kind".into(), kind.into());
        line.insert("step".into(), step.into());
        line.extend(fields.clone());
        let line = Value::Object(line).to_string() + "\n";
        self.metrics.write_all(line.as_bytes()).map_err(|error| Error::disk("write", &self.path, &error))?;
        let mut scalars = Vec::new();
        for (name, value) in fields.iter().filter(|(name, _)| !POSITIONS.contains(&name.as_str())) {
            match value {
                Value::Number(number) => {
                    scalars.push((format!("{kind}/{name}"), number.as_f64().unwrap_or(f64::NAN)));
                }
                Value::Array(items) => {
                    let numbers = items.iter().enumerate().filter_map(|(i, item)| Some((i, item.as_f64()?)));
                    scalars.extend(numbers.map(|(i, number)| (format!("{kind}_{name}/{i:02}"), number)));
                }
                _ => {}
            }
        }
        self.events.scalars(step, &scalars);
        Ok(())
    }
}

/// The lines of `text` that were recorded before the checkpoint of `step`, which was saved after that step's evaluation if
/// `evaluated`. A torn line is none of them.
fn lines_until(text: &str, step: u64, evaluated: bool) -> Vec<&str> {
    let parse = |line| serde_json::from_str::<Value>(line).unwrap_or_default();
    let is_evaluation = |line: &Value| line["kind"] == "eval" && line["step"] == step;
    let lines = text.lines().map(|line| (line, parse(line)));
    lines
        .take_while(|(_, line)| evaluated || !is_evaluation(line))
        .filter(|(_, line)| line["step"].as_u64().is_some_and(|at| at <= step))
        .map(|(line, _)| line)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn resuming_removes_records_after_the_step() {
        let dir = tempfile::tempdir().unwrap();
        let mut records = Recorder::open(dir.path(), 0, true).unwrap();
        for step in 1..=4 {
            records.record("train", step, &json!({"loss": step})).unwrap();
        }
        records.record("eval", 2, &json!({"loss": 20})).unwrap();
        records.record("event", 2, &json!({"loss": 21})).unwrap();
        drop(records);
        let path = dir.path().join(METRICS);
        let torn = fs::read_to_string(&path).unwrap() + "{\"kind\":\"train\",\"st";
        fs::write(&path, torn).unwrap();
        let losses = |evaluated| -> Vec<Value> {
            Recorder::open(dir.path(), 2, evaluated)
                .unwrap()
                .record("train", 3, &json!({"loss": 30}))
                .unwrap();
            let lines = fs::read_to_string(&path).unwrap();
            lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["loss"].clone()).collect()
        };
        assert_eq!(losses(true), [1, 2, 20, 21, 30]);
        assert_eq!(losses(false), [1, 2, 30]);
    }
}
