//! `bad_samples.jsonl`: the samples that could not be read or decoded, one line each, once.

use crate::error::{Error, Exit, Result};
use codinet_dataloader::BadSample;
use serde_json::{Value, json};
use std::collections::HashSet;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

/// What is known to be bad, by this rank and by those that wrote to the file before it was opened.
#[derive(Debug, Default)]
pub struct BadSamples {
    /// Data set, shard and key.
    known: HashSet<[String; 3]>,
    file: Option<PathBuf>,
}

impl BadSamples {
    /// From here on they are recorded in `dir`, where a run that is resumed has recorded others.
    pub fn record_in(&mut self, dir: &Path) {
        let file = dir.join("bad_samples.jsonl");
        let before = fs::read_to_string(&file).unwrap_or_default();
        let lines = before.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        self.known.extend(lines.map(|line| {
            ["data", "shard", "key"].map(|field| line[field].as_str().unwrap_or_default().to_owned())
        }));
        self.file = Some(file);
    }

    /// This rank: records what it has met in `data`, `train` or `val`, of `samples` samples. More than a share of `most` is an
    /// error.
    pub fn note(&mut self, data: &str, samples: usize, most: f64, bad: &[BadSample]) -> Result<()> {
        for BadSample { sample, shard, key, reason } in bad {
            let shard = shard.display().to_string();
            if !self.known.insert([data.to_owned(), shard.clone(), key.clone()]) {
                continue;
            }
            eprintln!("note: left out of {data}: {shard}, key '{key}': {reason}");
            if let Some(file) = &self.file {
                let line =
                    json!({"data": data, "sample": sample, "shard": shard, "key": key, "reason": reason});
                // A whole line in one write: ranks share the file. Where a rank has no such folder, its terminal has it.
                let _ = OpenOptions::new()
                    .create(true)
                    .append(true)
                    .open(file)
                    .and_then(|mut file| file.write_all(format!("{line}\n").as_bytes()));
            }
            let count = self.known.iter().filter(|[known, ..]| known == data).count();
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
        let open = || {
            let mut samples = BadSamples::default();
            samples.record_in(dir.path());
            samples
        };
        let mut samples = open();
        samples.note("train", 100, 0.02, &[bad(3), bad(4), bad(3)]).unwrap();
        samples.note("val", 100, 0.02, &[bad(3)]).unwrap();
        let mut samples = open(); // a resumed run
        samples.note("train", 100, 0.02, &[bad(4)]).unwrap();
        let error = samples.note("train", 100, 0.02, &[bad(5)]).unwrap_err().to_string();
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
