//! Writes the records of a run: `metrics.jsonl`, and the same numbers for TensorBoard.

use super::hook::RecordHook;
use super::scalars::Names;
use super::tensorboard::EventFile;
use super::{disk, git, heatmap, hparams, scalars, write_atomically};
use crate::config::Config;
use crate::metrics::classes::Confusion;
use crate::run_dir::{METRICS, TENSORBOARD};
use crate::sys::error::{Error, Result};
use codinet_dataloader::contact_sheet::ContactSheet;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Map, Value};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// The open files of a run's records.
#[derive(Debug)]
pub(super) struct Recorder {
    /// The run directory, locked against other runs.
    _lock: File,
    path: PathBuf,
    metrics: File,
    events: EventFile,
    hook: Option<RecordHook>,
    names: Names,
    /// Seconds of the run before this process.
    earlier_seconds: f64,
    start: Instant,
}

impl Recorder {
    /// Locks the run directory and opens its files. What a run that resumes at `step` had recorded after that step is removed;
    /// unless `evaluated`, the evaluation at `step` too, which will be repeated. The run has taken `earlier_seconds` up to `step`.
    pub fn open(dir: &Path, step: u64, evaluated: bool, earlier_seconds: f64, names: Names) -> Result<Self> {
        let lock = disk::lock(dir)?;
        let path = dir.join(METRICS);
        let text = fs::read_to_string(&path).unwrap_or_default();
        let kept = lines_until(&text, step, evaluated);
        if kept.len() < text.lines().count() {
            let text: String = kept.iter().flat_map(|line| [line, "\n"]).collect();
            write_atomically(&path, text.as_bytes())?;
        }
        let metrics = OpenOptions::new().create(true).append(true).open(&path);
        let metrics = metrics.map_err(|error| Error::disk("open", &path, &error))?;
        move_old_events(dir);
        let events = EventFile::create(dir, step);
        let start = Instant::now();
        Ok(Self { _lock: lock, path, metrics, events, hook: None, names, earlier_seconds, start })
    }

    /// From now on sends each record to `command` too.
    pub fn start_hook(&mut self, command: &str) {
        self.hook = Some(RecordHook::start(command));
    }

    /// Writes for TensorBoard: the config, as a text and for the table of hyperparameters; the command that started the run; the
    /// commit; the charts that show several curves.
    pub fn record_start(&mut self, config: &Config, command: &str) {
        hparams::write_start(&mut self.events, &serde_json::to_value(config).expect("a config is JSON"));
        let code = |text: &str| text.lines().map(|line| format!("    {line}\n")).collect::<String>();
        let yaml = serde_saphyr::to_string(config).expect("a config is YAML");
        self.events.text("run/config", &code(&yaml));
        self.events.text("run/command", &code(command));
        let commit = std::env::current_dir().ok().and_then(|folder| git::commit(&folder));
        let commit = commit.map(|commit| format!("; the commit of the folder it runs in is `{commit}`"));
        let version = env!("CARGO_PKG_VERSION");
        self.events.text("run/version", &format!("codinet-train {version}{}", commit.unwrap_or_default()));
        self.events.layout(scalars::CHARTS);
    }

    /// Marks the run as ended in that table.
    pub fn record_end(&mut self) {
        hparams::write_end(&mut self.events);
    }

    /// Draws the gates' rates of the run so far for TensorBoard.
    pub fn draw_gate_rates(&mut self, step: u64) {
        let text = fs::read_to_string(&self.path).unwrap_or_default();
        self.image(step, scalars::RATES_IMAGE, heatmap::gate_rates(&text));
    }

    /// Draws an evaluation's confusion matrix for TensorBoard.
    pub fn draw_confusion(&mut self, step: u64, confusion: &Confusion) {
        let picture = heatmap::confusion(confusion, &self.names.classes);
        self.image(step, scalars::CONFUSION_IMAGE, picture);
    }

    /// Writes a picture, if there is one, for TensorBoard.
    pub fn image(&mut self, step: u64, tag: &str, picture: Option<ContactSheet>) {
        let Some(picture) = picture else { return };
        if let Ok(png) = picture.png() {
            self.events.image(step, tag, png, (picture.width, picture.height));
        }
    }

    /// Records a line of `kind`, `train`, `eval` or `event`. Each measurement in it is also a curve of TensorBoard.
    pub fn record(&mut self, kind: &str, step: u64, fields: &impl Serialize) -> Result<()> {
        let fields = serde_json::to_value(fields).expect("a record is JSON");
        let Value::Object(fields) = fields else { unreachable!("a record is an object") };
        let mut line = Map::new();
        line.insert("kind".into(), kind.into());
        line.insert("step".into(), step.into());
        line.insert("time".into(), format!("{:.3}", Timestamp::now()).into());
        let seconds = self.earlier_seconds + self.start.elapsed().as_secs_f64();
        line.insert("seconds".into(), ((seconds * 1e3).round() / 1e3).into());
        line.extend(fields.clone());
        let line = Value::Object(line).to_string() + "\n";
        self.metrics.write_all(line.as_bytes()).map_err(|error| Error::disk("write", &self.path, &error))?;
        if let Some(hook) = &mut self.hook {
            hook.send(line);
        }
        let mut curves = Vec::new();
        for (name, value) in &fields {
            match value {
                Value::Number(number) => {
                    curves.extend(scalars::of_number(kind, name, number.as_f64().unwrap_or(f64::NAN)));
                }
                Value::Array(items) => {
                    let number = |item: &Value| item.as_f64().unwrap_or(f64::NAN);
                    let numbers: Vec<f64> = items.iter().map(number).collect();
                    curves.extend(scalars::of_list(kind, name, &numbers, &self.names));
                }
                _ => {}
            }
        }
        let numbers = curves.iter().map(|curve| (curve.tag.as_str(), curve.description, curve.value));
        self.events.scalars(step, numbers);
        Ok(())
    }
}

/// Moves the event files of a run of version 0.1.0, which had them in a folder, next to the new one: TensorBoard takes a folder
/// for a run. One that cannot be moved stays where it is.
fn move_old_events(dir: &Path) {
    for entry in fs::read_dir(dir.join(TENSORBOARD)).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if name.to_string_lossy().starts_with("events.out.tfevents.") {
            let _ = fs::rename(entry.path(), dir.join(name));
        }
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
        let mut records = Recorder::open(dir.path(), 0, true, 0.0, Names::default()).unwrap();
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
            Recorder::open(dir.path(), 2, evaluated, 100.0, Names::default())
                .unwrap()
                .record("train", 3, &json!({"loss": 30}))
                .unwrap();
            let lines = fs::read_to_string(&path).unwrap();
            lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["loss"].clone()).collect()
        };
        assert_eq!(losses(true), [1, 2, 20, 21, 30]);
        let lines = fs::read_to_string(&path).unwrap();
        let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let seconds = |line: &Value| line["seconds"].as_f64().unwrap();
        assert!(seconds(&lines[3]) < 100.0 && seconds(&lines[4]) >= 100.0, "seconds continue after a resume");
        let time = |line: &Value| line["time"].as_str().unwrap().parse::<Timestamp>().unwrap();
        assert!(lines.is_sorted_by_key(time));
        assert_eq!(losses(false), [1, 2, 30]);
    }

    #[test]
    fn event_files_of_0_1_0_join_the_run() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join(TENSORBOARD);
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("events.out.tfevents.1.host.2"), "old").unwrap();
        fs::write(folder.join("projector_config.pbtxt"), "").unwrap();
        Recorder::open(dir.path(), 0, true, 0.0, Names::default()).unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("events.out.tfevents.1.host.2")).unwrap(), "old");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
    }
}
