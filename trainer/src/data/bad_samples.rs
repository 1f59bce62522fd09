//! `bad_samples.jsonl`: the samples that could not be read or decoded, one line each, once.

use crate::sys::error::{Error, Exit, Result};
use codinet_dataloader::BadSample;
use serde_json::{Value, json};
use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// What is known to be bad in a data set: by this rank, and by all that write to the same file.
#[derive(Debug)]
pub struct BadSamples {
    /// `train` or `val`.
    data: &'static str,
    samples: usize,
    most: f64,
    /// The shard's file name, for shards may be elsewhere when a run goes on, and the key.
    known: HashSet<[String; 2]>,
    file: Option<PathBuf>,
    /// How much of the file has been read.
    read: u64,
}

impl BadSamples {
    /// Of the `samples` samples of `data`, `train` or `val`, a share of `most` may be bad.
    pub fn new(data: &'static str, samples: usize, most: f64) -> Self {
        Self { data, samples, most, known: HashSet::new(), file: None, read: 0 }
    }

    /// From here on they are recorded in `dir`, where other ranks record theirs, and a run that is resumed has.
    pub fn record_in(&mut self, dir: &Path) {
        self.file = Some(dir.join("bad_samples.jsonl"));
    }

    /// This rank: records what it has met. More than the share that may be bad is an error.
    pub fn note(&mut self, bad: &[BadSample]) -> Result<()> {
        for BadSample { sample, shard, key, reason } in bad {
            let (data, shard) = (self.data, shard.display().to_string());
            let name = [file_name(&shard), key.clone()];
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

    /// Takes in what is new in the file; where hosts do not share the folder, each has one of its own.
    fn read_file(&mut self) {
        let mut text = String::new();
        let file = self.file.as_ref().and_then(|file| File::open(file).ok());
        let read = file.map(|mut file| {
            file.seek(SeekFrom::Start(self.read)).and_then(|_| file.read_to_string(&mut text))
        });
        if !matches!(read, Some(Ok(_))) {
            return;
        }
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        self.read += whole as u64;
        let lines = text[..whole].lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        self.known.extend(lines.filter(|line| line["data"] == self.data).map(|line| {
            let field = |name: &str| line[name].as_str().unwrap_or_default().to_owned();
            [file_name(&field("shard")), field("key")]
        }));
    }

    /// A whole line in one write: ranks share the file. Where a rank has no such folder, its terminal has it.
    fn write(&self, line: &Value) {
        let Some(file) = &self.file else { return };
        let file = OpenOptions::new().create(true).append(true).open(file);
        let _ = file.and_then(|mut file| file.write_all(format!("{line}\n").as_bytes()));
    }
}

fn file_name(shard: &str) -> String {
    Path::new(shard).file_name().unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn each_is_recorded_once_and_too_many_are_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let in_folder = |folder: &str, sample: u32| BadSample {
            sample,
            shard: format!("{folder}/x-0.tar").into(),
            key: format!("k{sample}"),
            reason: "broken".into(),
        };
        let bad = |sample| in_folder("there", sample);
        let open = |data| {
            let mut samples = BadSamples::new(data, 100, 0.02);
            samples.record_in(dir.path());
            samples
        };
        let (mut one, mut other) = (open("train"), open("train")); // two ranks
        one.note(&[bad(3), bad(4), bad(3)]).unwrap();
        open("val").note(&[bad(3)]).unwrap();
        other.note(&[in_folder("elsewhere", 4)]).unwrap();
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
