//! A dataset: shards opened together, their samples numbered from 0 in the order of the shards.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::process::{Resource, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::{Error, IoContext, Result};
use crate::index::{IndexState, IndexedSample, ShardIndex};
use crate::{files, pattern};

/// The contents of `dataset.json`, which lies beside the shards and says what they are. It is written last, so
/// that its presence means that all of them are there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatasetInfo {
    /// Version of this format: 1.
    pub version: u32,
    /// What the data is, for people: `fashion-mnist train`.
    pub name: String,
    /// Number of classes; labels are 0..classes.
    pub classes: usize,
    /// Colour channels of the images: 1 (grey) or 3 (RGB).
    pub channels: usize,
    /// Width and height in pixels where all images share one size, else null.
    pub image_size: Option<u32>,
    /// Samples in all shards.
    pub samples: u64,
    /// Number of shards.
    pub shards: u64,
    /// The classes' names in the order of their numbers, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class_names: Option<Vec<String>>,
}

impl DatasetInfo {
    const FILE: &str = "dataset.json";

    /// Reads `folder`'s `dataset.json`; `None` where it has none.
    pub fn load(folder: &Path) -> Result<Option<DatasetInfo>> {
        let path = folder.join(Self::FILE);
        let text = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            read => read.context("read", &path)?,
        };
        let info: DatasetInfo = serde_json::from_slice(&text).map_err(|error| {
            Error::malformed(&path, format!("{error}; mend it or write the dataset again"))
        })?;
        let names = info.class_names.as_ref().map_or(info.classes, Vec::len);
        if info.version != 1 || names != info.classes {
            let what = format!(
                "version {}, {} classes, {names} class names; expected version 1 and a name a class",
                info.version, info.classes
            );
            return Err(Error::malformed(&path, what));
        }
        Ok(Some(info))
    }

    /// Writes it to `folder`, in one step.
    pub fn save(&self, folder: &Path) -> Result<()> {
        let path = folder.join(Self::FILE);
        let mut text = serde_json::to_vec_pretty(self).map_err(io::Error::from).context("write", &path)?;
        text.push(b'\n');
        files::replace(&path, &text)?;
        files::sync_folder(folder)
    }

    /// Removes `folder`'s `dataset.json`, if any: what is there is no longer complete.
    pub fn remove(folder: &Path) -> Result<()> {
        let path = folder.join(Self::FILE);
        match fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed.context("remove", &path),
        }
    }
}

/// Shards opened for reading. Every method takes `&self` and may be called from many threads.
#[derive(Debug)]
pub struct Dataset {
    shards: Vec<Shard>,
    len: usize,
    info: Option<DatasetInfo>,
}

#[derive(Debug)]
struct Shard {
    path: PathBuf,
    file: File,
    /// Number of its first sample.
    start: usize,
    index: ShardIndex,
    index_state: IndexState,
}

/// Where a sample comes from, and what it shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SampleInfo<'a> {
    /// The shard that holds it.
    pub shard: &'a Path,
    /// Its image member in the shard: the key and the extension.
    pub name: &'a str,
    /// Its key in the shard.
    pub key: &'a str,
    /// Its class number.
    pub label: u32,
    /// Bytes of the encoded image.
    pub length: u32,
}

/// One opened shard, as [`Dataset::shards`] lists them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShardInfo<'a> {
    /// The tar file.
    pub path: &'a Path,
    /// Samples in it.
    pub samples: usize,
    /// Bytes of the tar.
    pub bytes: u64,
    /// How its index was come by.
    pub index: IndexState,
}

impl Dataset {
    /// Opens the shards that `pattern` names: a folder (every `.tar` in it), a glob (`x-*.tar`), a range
    /// (`x-{000000..000012}.tar`) or one file.
    ///
    /// Where a `dataset.json` lies beside the first shard, a folder or glob must find the shards and samples it
    /// counts. A range or single file is taken at its word, to train on a part.
    ///
    /// # Errors
    /// No shards, one that is missing or broken (see [`ShardIndex::rebuild`]), other counts than
    /// `dataset.json`'s.
    pub fn open(pattern: &str) -> Result<Dataset> {
        let (paths, listed) = pattern::shards(pattern)?;
        let folder = paths[0].parent().unwrap_or(Path::new("")).to_owned();
        let info = DatasetInfo::load(&folder)?;
        let expect = |unit, expected: u64, found: u64| {
            if listed || expected == found {
                return Ok(());
            }
            Err(Error::Incomplete { manifest: folder.join(DatasetInfo::FILE), unit, expected, found })
        };
        if let Some(info) = &info {
            expect("shards", info.shards, paths.len() as u64)?;
        }
        allow_open_files(paths.len());
        let mut shards = Vec::with_capacity(paths.len());
        let mut len = 0;
        for path in paths {
            let (index, index_state) = ShardIndex::open(&path)?;
            let file = File::open(&path).context("open shard", &path)?;
            let start = len;
            len += index.len();
            shards.push(Shard { path, file, start, index, index_state });
        }
        if let Some(info) = &info {
            expect("samples", info.samples, len as u64)?;
        }
        if len == 0 {
            return Err(Error::Empty { what: "no samples in the shards", pattern: pattern.to_owned() });
        }
        if u32::try_from(len).is_err() {
            return Err(Error::InvalidArgument(format!(
                "'{pattern}' holds {len} samples; use fewer than 2³²"
            )));
        }
        Ok(Dataset { shards, len, info })
    }

    /// Number of samples; at least 1, at most `u32::MAX`.
    #[expect(clippy::len_without_is_empty, reason = "a dataset without samples doesn't open")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// What `dataset.json` says, if there is one.
    pub fn info(&self) -> Option<&DatasetInfo> {
        self.info.as_ref()
    }

    /// Number of classes by `dataset.json`.
    pub fn classes(&self) -> Option<usize> {
        self.info.as_ref().map(|info| info.classes)
    }

    /// The shards in order.
    pub fn shards(&self) -> impl ExactSizeIterator<Item = ShardInfo<'_>> {
        self.shards.iter().map(|shard| ShardInfo {
            path: &shard.path,
            samples: shard.index.len(),
            bytes: shard.index.tar_size(),
            index: shard.index_state,
        })
    }

    /// Where sample `sample` comes from, and its label; `None` from [`len`](Self::len) on.
    pub fn meta(&self, sample: usize) -> Option<SampleInfo<'_>> {
        self.locate(sample).map(|(shard, found)| shard.meta(found))
    }

    /// Checks that every label is below `classes`.
    ///
    /// # Errors
    /// The first sample, in dataset order, whose label isn't.
    pub fn check_labels(&self, classes: usize) -> Result<()> {
        for shard in &self.shards {
            if let Some(bad) = shard.index.iter().find(|sample| sample.label as usize >= classes) {
                let reason = format!(
                    "label {} is outside the {classes} classes (0 to {}); mend the .cls member or the number of classes",
                    bad.label,
                    classes.saturating_sub(1)
                );
                return Err(Error::Label { shard: shard.path.clone(), key: bad.key().to_owned(), reason });
            }
        }
        Ok(())
    }

    /// Replaces the contents of `encoded` by the encoded image of `sample`, in one positional read, and returns
    /// the sample's origin.
    ///
    /// # Errors
    /// A sample from [`len`](Self::len) on, or a shard that can't be read.
    pub fn read(&self, sample: usize, encoded: &mut Vec<u8>) -> Result<SampleInfo<'_>> {
        let (shard, found) = self.locate(sample).ok_or_else(|| {
            Error::InvalidArgument(format!("sample {sample} was asked of a dataset of {}", self.len))
        })?;
        encoded.resize(found.length as usize, 0);
        shard.file.read_exact_at(encoded, found.offset).context("read", &shard.path)?;
        Ok(shard.meta(found))
    }

    /// SHA-256, in hex, over the shards' file names and sizes and every sample's name and label: equal where two
    /// ranks, or a run and its resumption, see the same dataset. The folder and the pixels have no part in it.
    pub fn fingerprint(&self) -> String {
        let mut hash = Sha256::new();
        for shard in &self.shards {
            // Lengths before contents, so that no two datasets write the same bytes.
            let name = files::file_name(&shard.path);
            hash.update((name.len() as u64).to_le_bytes());
            hash.update(name.as_bytes());
            hash.update(shard.index.tar_size().to_le_bytes());
            hash.update((shard.index.len() as u64).to_le_bytes());
            for sample in shard.index.iter() {
                hash.update((sample.name.len() as u64).to_le_bytes());
                hash.update(sample.name.as_bytes());
                hash.update(sample.label.to_le_bytes());
            }
        }
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn locate(&self, sample: usize) -> Option<(&Shard, IndexedSample<'_>)> {
        let after = self.shards.partition_point(|shard| shard.start <= sample);
        let shard = &self.shards[after.checked_sub(1)?];
        Some((shard, shard.index.get(sample - shard.start)?))
    }
}

/// Raises the process's limit on open files where `shards` come near it, as far as it may: each stays open. Where
/// that isn't far enough, opening one fails and says so.
fn allow_open_files(shards: usize) {
    let mut limit = getrlimit(Resource::Nofile);
    let wanted = shards as u64 + 256;
    if limit.current.is_some_and(|current| current < wanted) {
        limit.current = Some(limit.maximum.map_or(wanted, |most| most.min(wanted)));
        let _ = setrlimit(Resource::Nofile, limit);
    }
}

impl Shard {
    fn meta<'a>(&'a self, sample: IndexedSample<'a>) -> SampleInfo<'a> {
        let IndexedSample { name, length, label, .. } = sample;
        SampleInfo { shard: &self.path, name, key: sample.key(), label, length }
    }
}
