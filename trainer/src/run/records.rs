//! What a run records while it goes on: `metrics.jsonl`, and the same numbers for TensorBoard.

use super::tensorboard::EventFile;
use super::{hparams, rates};
use crate::config::Config;
use crate::run_dir::{METRICS, TENSORBOARD};
use crate::sys::error::{Error, Exit, Result};
use serde::Serialize;
use serde_json::{Map, Value};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Numbers that tell when a line was written, not what was measured: no curves in TensorBoard.
const WHEN: [&str; 3] = ["epoch", "samples", "images"];

/// The open files.
#[derive(Debug)]
pub struct Records {
    /// The folder, locked: a second run that is sent here is refused.
    _lock: File,
    path: PathBuf,
    metrics: File,
    events: EventFile,
}

impl Records {
    /// Opens a run's records; what a run that is resumed at `step` had recorded after it is taken back, the
    /// evaluation at `step` too where that is still to come.
    pub fn open(dir: &Path, step: u64, evaluated: bool) -> Result<Self> {
        let lock = File::open(dir).map_err(|error| Error::disk("open", dir, &error))?;
        // A file system without locks is trusted.
        if matches!(lock.try_lock(), Err(TryLockError::WouldBlock)) {
            let dir = dir.display();
            return Err(Error::new(
                Exit::Config,
                format!("{dir} is in use by another run; choose another run.dir"),
            ));
        }
        let path = dir.join(METRICS);
        let before = fs::read_to_string(&path).unwrap_or_default();
        let kept = recorded_before(&before, step, evaluated);
        if kept.len() < before.lines().count() {
            super::write_whole(
                &path,
                (kept.join("\n") + if kept.is_empty() { "" } else { "\n" }).as_bytes(),
            )?;
        }
        let metrics = OpenOptions::new().create(true).append(true).open(&path);
        let metrics = metrics.map_err(|error| Error::disk("open", &path, &error))?;
        Ok(Self { _lock: lock, path, metrics, events: EventFile::create(&dir.join(TENSORBOARD), step) })
    }

    /// Tells TensorBoard which settings the measurements belong to.
    pub fn settings(&mut self, config: &Config) {
        hparams::start(&mut self.events, &serde_json::to_value(config).expect("a config is JSON"));
    }

    /// Tells TensorBoard that the run came to its end.
    pub fn finished(&mut self) {
        hparams::end(&mut self.events);
    }

    /// Shows TensorBoard how often each gated block would have run so far, as one picture: a row a block, a column a log line.
    pub fn picture_rates(&mut self, step: u64) {
        let text = fs::read_to_string(&self.path).unwrap_or_default();
        if let Some((png, size)) = rates::picture(&text) {
            self.events.image(step, "train_rates/over_time", png, size);
        }
    }

    /// Records one line of `kind`; every measurement in it is a TensorBoard scalar as well, `kind/name`.
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
        for (name, value) in fields.iter().filter(|(name, _)| !WHEN.contains(&name.as_str())) {
            match value {
                Value::Number(number) => {
                    scalars.push((format!("{kind}/{name}"), number.as_f64().unwrap_or(f64::NAN)))
                }
                Value::Array(items) => scalars.extend(
                    items
                        .iter()
                        .enumerate()
                        .filter_map(|(i, item)| Some((format!("{kind}_{name}/{i:02}"), item.as_f64()?))),
                ),
                _ => {}
            }
        }
        self.events.scalars(step, &scalars);
        Ok(())
    }
}

/// The lines that were recorded before the checkpoint of `step`, which was saved once that step was evaluated or before;
/// a torn line was not.
fn recorded_before(text: &str, step: u64, evaluated: bool) -> Vec<&str> {
    let read = |line| serde_json::from_str::<Value>(line).unwrap_or_default();
    let evaluation = |line: &Value| line["kind"] == "eval" && line["step"] == step;
    let lines = text.lines().map(|line| (line, read(line)));
    let until = lines.take_while(|(_, line)| evaluated || !evaluation(line));
    until
        .filter(|(_, line)| line["step"].as_u64().is_some_and(|at| at <= step))
        .map(|(line, _)| line)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_resume_takes_back_what_came_after_its_step() {
        let dir = tempfile::tempdir().unwrap();
        let mut records = Records::open(dir.path(), 0, true).unwrap();
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
            Records::open(dir.path(), 2, evaluated)
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
