//! `bad_samples.jsonl`: the samples that could not be read or decoded, one line each, once.

use crate::error::{Error, Exit, Result};
use codinet_dataloader::BadSample;
use serde_json::{Value, json};
use std::collections::HashSet;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

/// What is known to be bad in a data set: by this rank, and by all that write to the same file.
#[derive(Debug)]
pub struct BadSamples {
    /// `train` or `val`.
    data: &'static str,
    samples: usize,
    most: f64,
    /// Shard and key.
    known: HashSet<[String; 2]>,
    file: Option<PathBuf>,
}

impl BadSamples {
    /// Of the `samples` samples of `data`, `train` or `val`, a share of `most` may be bad.
    pub fn new(data: &'static str, samples: usize, most: f64) -> Self {
        Self { data, samples, most, known: HashSet::new(), file: None }
    }

    /// From here on they are recorded in `dir`, where other ranks record theirs, and a run that is resumed has.
    pub fn record_in(&mut self, dir: &Path) {
        self.file = Some(dir.join("bad_samples.jsonl"));
    }

    /// This rank: records what it has met. More than the share that may be bad is an error.
    pub fn note(&mut self, bad: &[BadSample]) -> Result<()> {
        for BadSample { sample, shard, key, reason } in bad {
            let (data, shard) = (self.data, shard.display().to_string());
            let name = [shard.clone(), key.clone()];
            if self.known.contains(&name) {
                continue;
            }
            self.read_file(); // another rank may have met it
            if self.known.insert(name) {
                eprintln!("note: left out of {data}: {shard}, key '{key}': {reason}");
                self.write(
                    &json!({"data": data, "sample": sample, "shard": shard, "key": key, "reason": reason}),
                );
            }
            let (count, samples, most) = (self.known.len(), self.samples, self.most);
            if count as f64 > most * samples as f64 {
                return Err(Error::new(
                    Exit::Data,
                    format!(
                        "{count} of {samples} samples of data.{data} can't be used, and data.max_bad_fraction is {most}; \
                         the last: {shard}, key '{key}': {reason}"
                    ),
                ));
            }
        }
        Ok(())
    }

    /// Takes in what the file has; where hosts do not share the folder, each has one of its own.
    fn read_file(&mut self) {
        let text = self.file.as_ref().and_then(|file| fs::read_to_string(file).ok()).unwrap_or_default();
        let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        self.known.extend(
            lines.filter(|line| line["data"] == self.data).map(|line| {
                ["shard", "key"].map(|field| line[field].as_str().unwrap_or_default().to_owned())
            }),
        );
    }

    /// A whole line in one write: ranks share the file. Where a rank has no such folder, its terminal has it.
    fn write(&self, line: &Value) {
        let Some(file) = &self.file else { return };
        let file = OpenOptions::new().create(true).append(true).open(file);
        let _ = file.and_then(|mut file| file.write_all(format!("{line}\n").as_bytes()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_recorded_once_and_too_many_are_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let bad = |sample: u32| BadSample {
            sample,
            shard: "x-0.tar".into(),
            key: format!("k{sample}"),
            reason: "broken".into(),
        };
        let open = |data| {
            let mut samples = BadSamples::new(data, 100, 0.02);
            samples.record_in(dir.path());
            samples
        };
        let (mut one, mut other) = (open("train"), open("train")); // two ranks
        one.note(&[bad(3), bad(4), bad(3)]).unwrap();
        open("val").note(&[bad(3)]).unwrap();
        other.note(&[bad(4)]).unwrap();
        let error = other.note(&[bad(5)]).unwrap_err().to_string();
        assert!(
            error.contains("3 of 100 samples of data.train") && error.contains("x-0.tar, key 'k5'"),
            "{error}"
        );
        let text = fs::read_to_string(dir.path().join("bad_samples.jsonl")).unwrap();
        let keys: Vec<Value> =
            text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["key"].clone()).collect();
        assert_eq!(keys, ["k3", "k4", "k3", "k5"]);
    }
}
