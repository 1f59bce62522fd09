//! `bad_samples.jsonl`: one line for each sample that could not be read or decoded.

use crate::run_dir::BAD_SAMPLES;
use crate::sys::error::{Error, Exit, Result};
use codinet_dataloader::BadSample;
use serde_json::{Value, json};
use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// The bad samples of a data set that this rank knows of: its own, and those that other ranks wrote to the same file.
#[derive(Debug)]
pub struct BadSamples {
    /// `train` or `val`.
    data: &'static str,
    samples: usize,
    limit: f64,
    /// File name of the shard and key. A resumed run may find its shards in another folder.
    known: HashSet<[String; 2]>,
    file: Option<PathBuf>,
    /// Bytes of the file that have been read.
    bytes_read: u64,
}

impl BadSamples {
    /// Of the `samples` samples of `data`, `train` or `val`, a share of `limit` may be bad.
    pub fn new(data: &'static str, samples: usize, limit: f64) -> Self {
        Self { data, samples, limit, known: HashSet::new(), file: None, bytes_read: 0 }
    }

    /// From now on bad samples are recorded in `dir`, which ranks share and a resumed run keeps.
    pub fn record_in(&mut self, dir: &Path) {
        self.file = Some(dir.join(BAD_SAMPLES));
    }

    /// This rank: records bad samples.
    ///
    /// # Errors
    /// More than the permitted share of the data set is bad.
    pub fn record(&mut self, bad: &[BadSample]) -> Result<()> {
        for BadSample { sample, shard, key, reason } in bad {
            let data = self.data;
            let shard = shard.display().to_string();
            let name = [file_name(&shard), key.clone()];
            if self.known.contains(&name) {
                continue;
            }
            self.read_file(); // another rank may have recorded it
            if self.known.insert(name) {
                crate::eprint_line!("note: left out of {data}: {shard}, key '{key}': {reason}");
                self.write(
                    &json!({"data": data, "sample": sample, "shard": shard, "key": key, "reason": reason}),
                );
            }
            let Self { samples, limit, .. } = *self;
            let count = self.known.len();
            if count as f64 > limit * samples as f64 {
                return Err(Error::new(
                    Exit::Data,
                    format!(
                        "{count} of {samples} samples of data.{data} can't be used, and data.max_bad_fraction is {limit}; \
                         the last: {shard}, key '{key}': {reason}"
                    ),
                ));
            }
        }
        Ok(())
    }

    /// Reads the file's new lines. Hosts that do not share the folder have a file each.
    fn read_file(&mut self) {
        let mut text = String::new();
        let file = self.file.as_ref().and_then(|file| File::open(file).ok());
        let read = file.map(|mut file| {
            file.seek(SeekFrom::Start(self.bytes_read)).and_then(|_| file.read_to_string(&mut text))
        });
        if !matches!(read, Some(Ok(_))) {
            return;
        }
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        self.bytes_read += whole as u64;
        let lines = text[..whole].lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        self.known.extend(lines.filter(|line| line["data"] == self.data).map(|line| {
            let field = |name: &str| line[name].as_str().unwrap_or_default().to_owned();
            [file_name(&field("shard")), field("key")]
        }));
    }

    /// Appends a line in one write, because ranks share the file. A rank without the folder has printed the line.
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
    fn bad_samples_are_recorded_once_and_limited() {
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
        let mut one = open("train"); // two ranks
        let mut other = open("train");
        one.record(&[bad(3), bad(4), bad(3)]).unwrap();
        open("val").record(&[bad(3)]).unwrap();
        other.record(&[in_folder("elsewhere", 4)]).unwrap();
        let error = other.record(&[bad(5)]).unwrap_err().to_string();
        assert!(
            error.contains("3 of 100 samples of data.train") && error.contains("x-0.tar, key 'k5'"),
            "{error}"
        );
        let text = fs::read_to_string(dir.path().join(BAD_SAMPLES)).unwrap();
        let keys: Vec<Value> =
            text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["key"].clone()).collect();
        assert_eq!(keys, ["k3", "k4", "k3", "k5"]);
    }
}
