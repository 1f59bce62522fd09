//! Imports of encoded images: how a set of images becomes shards.
//!
//! The samples are shuffled by a seed, so that every shard is a fair sample of all classes, and split into shards. A
//! shard is a pure function of the source, the settings and its number. So threads write whole shards, and an import
//! that was killed resumes with the missing ones. `import.json` records the settings from the start, and
//! `dataset.json` is written when all shards are complete.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use sha2::{Digest, Sha256};

use super::entry::{ImageImporter, ImageRequest};
use super::image_set::ImageSet;
use super::prepare::Preparer;
use super::record::ImportRecord;
use super::split_shards::SplitShards;
use super::{Split, SplitStatus, lock_folder};
use crate::dataset::DatasetInfo;
use crate::error::{Error, Result};
use crate::{files, parallel};

/// An import of encoded images. The same settings write the same shards, to the byte.
#[derive(Debug)]
pub struct ImageImport {
    /// How the files are read.
    pub importer: &'static ImageImporter,
    /// The files to import, and the folder for the shards.
    pub request: ImageRequest,
    /// Decides the order of the samples.
    pub seed: u64,
    /// Samples in a shard.
    pub shard_size: u32,
    /// Number of threads; each writes one shard at a time.
    pub threads: usize,
    /// Whether JPEGs become tiled, losslessly; see [`tile`](crate::jpeg::tile).
    pub tile: bool,
    /// Limit of an image's longer side in pixels. Larger images are shrunk and encoded again, which changes the data.
    pub max_side: Option<u32>,
    /// Limit of an image's pixels; larger images can't be used. See
    /// [`DEFAULT_MAX_PIXELS`](crate::DEFAULT_MAX_PIXELS).
    pub max_pixels: u64,
    /// Whether images that can't be used are left out, and listed in `bad_imports.txt`; otherwise they are an error.
    pub skip_bad: bool,
}

/// The progress of an import.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Samples in finished shards, those of earlier runs included.
    pub done: u64,
    /// Samples in all.
    pub total: u64,
    /// Bytes of images read by this run.
    pub bytes: u64,
}

impl ImageImport {
    /// Imports all splits. `progress` is called from all threads, after each sample.
    ///
    /// # Errors
    /// A broken source, an image that can't be used, an output folder that holds other data, a disk that can't be
    /// written.
    pub fn run(&self, progress: &(dyn Fn(Progress) + Sync)) -> Result<Vec<Split>> {
        for (name, value) in [("shard_size", self.shard_size), ("max_side", self.max_side.unwrap_or(1))] {
            if value == 0 {
                return Err(Error::InvalidArgument(format!("{name} must be at least 1, not 0")));
            }
        }
        let sets = (self.importer.find)(&self.request)?;
        let total = sets.iter().map(|set| set.samples.len() as u64).sum();
        let counter = ProgressCounter { done: AtomicU64::new(0), bytes: AtomicU64::new(0), total, progress };
        let import = |set: &ImageSet| {
            let out = &self.request.out;
            let folder = if self.importer.split_folders { out.join(&set.split) } else { out.clone() };
            self.import_split(set, folder, &counter)
        };
        sets.iter().map(import).collect()
    }

    fn import_split(&self, set: &ImageSet, folder: PathBuf, counter: &ProgressCounter) -> Result<Split> {
        if u32::try_from(set.samples.len()).is_err() {
            return Err(Error::InvalidArgument(format!(
                "{} samples; import fewer than 2³²",
                set.samples.len()
            )));
        }
        if set.classes > MAX_CLASSES {
            let what = format!("{} classes; class numbers begin at 0, without large gaps", set.classes);
            return Err(Error::malformed(set.images.path(0), what));
        }
        let _lock = lock_folder(&folder)?;
        self.record(set).save_or_check(&folder)?;
        files::remove_temporaries(&folder)?;
        let order = set.images.shuffle_samples(set.samples.len(), self.seed);
        let shards =
            SplitShards { set, folder: &folder, order, shard_size: self.shard_size, skip_bad: self.skip_bad };
        let preparer = || Preparer::new(self.tile, self.max_side, self.max_pixels);
        let split = |(info, bad), status| Split {
            folder: folder.clone(),
            info,
            status,
            bad,
            left_out: set.left_out.clone(),
        };
        if let Some(complete) = shards.find_complete()? {
            counter.add(set.samples.len() as u64, 0);
            return Ok(split(complete, SplitStatus::AlreadyComplete));
        }
        DatasetInfo::remove(&folder)?;
        let (complete, missing): (Vec<u32>, Vec<u32>) =
            (0..shards.count()).partition(|&number| shards.is_complete(number));
        for &sample in complete.iter().flat_map(|&number| shards.samples(number)) {
            set.images.skip(sample as usize);
        }
        counter.add(complete.iter().map(|&number| shards.samples(number).len() as u64).sum(), 0);
        parallel::for_each(missing.len(), self.threads, preparer, |preparer, at| {
            shards.write_shard(missing[at], preparer, |bytes| counter.add(1, bytes))
        })?;
        Ok(split(shards.finish(preparer()?)?, SplitStatus::Written))
    }

    fn record(&self, set: &ImageSet) -> ImportRecord {
        let mut hash = Sha256::new();
        for (key, label) in &set.samples {
            hash.update((key.len() as u64).to_le_bytes());
            hash.update(key.as_bytes());
            hash.update(label.to_le_bytes());
        }
        ImportRecord {
            version: 1,
            name: set.name.clone(),
            samples: set.samples.len() as u64,
            keys_and_labels: hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect(),
            seed: self.seed,
            shard_size: self.shard_size,
            tile: self.tile,
            max_side: self.max_side,
        }
    }
}

/// Limit of classes; larger labels aren't class numbers.
const MAX_CLASSES: usize = 1 << 20;

/// Counts the progress of all threads, and reports it to the caller.
struct ProgressCounter<'a> {
    done: AtomicU64,
    bytes: AtomicU64,
    total: u64,
    progress: &'a (dyn Fn(Progress) + Sync),
}

impl ProgressCounter<'_> {
    fn add(&self, samples: u64, bytes: u64) {
        let done = self.done.fetch_add(samples, Ordering::Relaxed) + samples;
        let bytes = self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        (self.progress)(Progress { done, total: self.total, bytes });
    }
}
