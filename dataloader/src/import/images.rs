//! Imports of encoded images, many of them, as they are: how a set of images becomes shards.
//!
//! The samples are shuffled by a seed, so that every shard is a fair sample of all classes, and cut into
//! shards. A shard is a pure function of the source, the settings and its number. So threads take whole
//! shards, and an import that was killed goes on with the shards that have no name yet; its plan,
//! `import.json`, lies beside them from the start, and `dataset.json` is written when all are there.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use sha2::{Digest, Sha256};

use super::places::Place;
use super::plan::Plan;
use super::prepare::Preparer;
use super::{Outcome, Split, image_folder, imagenet, lock};
use crate::dataset::DatasetInfo;
use crate::error::{BadImage, Error, Result};
use crate::random::{self, Domain};
use crate::shard::{ShardIndex, ShardWriter, shard_name};
use crate::{files, parallel};

/// Where encoded images are imported from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageSource {
    /// A folder of folders, one a class, of `.jpg`, `.jpeg` and `.png` files; classes are numbered in the
    /// order of their names.
    Folder(PathBuf),
    /// ImageNet as its authors distribute it, in archives or unpacked.
    ImageNet {
        /// The folder that holds `ILSVRC2012_img_train.tar`, or `train/`, and so on.
        folder: PathBuf,
        /// Which splits to import.
        splits: Vec<ImageNetSplit>,
        /// The labels of the validation images, where the devkit isn't to be asked: a line per image.
        val_labels: Option<PathBuf>,
    },
    /// Parquet files as Hugging Face distributes data sets of images, or folders or globs of such.
    Parquet(Vec<String>),
}

/// A split of ImageNet. (The test images are published without labels.)
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageNetSplit {
    /// For training.
    Train,
    /// For validation.
    Val,
}

/// An import of encoded images. The same settings make the same shards, to the byte.
#[derive(Debug, Clone)]
pub struct ImageImport {
    /// What to import.
    pub source: ImageSource,
    /// Where the shards are written: ImageNet's in folders `train` and `val` in it, others right there.
    pub out: PathBuf,
    /// Decides the order of the samples.
    pub seed: u64,
    /// Samples in a shard.
    pub shard_size: u32,
    /// How many threads read, prepare and write; each is at one shard.
    pub threads: usize,
    /// Whether JPEGs are made tiled, which loses nothing; see [`tile`](crate::jpeg::tile).
    pub tile: bool,
    /// The most pixels an image's longer side may have: larger ones are made smaller and encoded again, which
    /// changes the data.
    pub max_side: Option<u32>,
    /// Whether images that can't be used are left out, and listed in `bad_imports.txt`, rather than an error.
    pub skip_bad: bool,
}

/// How far an import is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Samples in shards, those that were there already included.
    pub done: u64,
    /// Samples in all.
    pub total: u64,
    /// Bytes of images read by this run.
    pub bytes: u64,
}

/// The images of one split, found but not read.
pub(super) struct ImageSet {
    /// What the data is, for `dataset.json`: `imagenet train`.
    pub(super) name: String,
    /// What its shards' names begin with.
    pub(super) split: String,
    pub(super) classes: usize,
    pub(super) class_names: Option<Vec<String>>,
    /// Each sample's key and label, in the order of the source.
    pub(super) samples: Vec<(Box<str>, u32)>,
    pub(super) images: Box<dyn Images>,
    /// Files that were passed over, not being called images.
    pub(super) ignored: u64,
}

/// Encoded images by number, read from many threads.
pub(super) trait Images: Send + Sync {
    /// Replaces the contents of `bytes` by image `sample`; of those of over
    /// [`MOST_IMAGE_BYTES`](crate::shard::MOST_IMAGE_BYTES), so many and one more.
    fn read(&self, sample: usize, bytes: &mut Vec<u8>) -> Result<()>;

    /// The file that holds the image.
    fn path(&self, sample: usize) -> &Path;

    /// Says that `sample` won't be read.
    fn pass_over(&self, _sample: usize) {}

    /// The order in which samples 0..count go into shards.
    fn order(&self, count: usize, seed: u64) -> Vec<u32> {
        let mut order: Vec<u32> = (0..count as u32).collect();
        random::shuffle(&mut random::stream(Domain::Import, seed, 0, 0, 0), &mut order);
        order
    }
}

/// What the names of the shards in `out` begin with: its own name, where that is a plain one.
pub(super) fn split_name(out: &Path) -> String {
    let name = out.file_name().and_then(|name| name.to_str());
    let plain = |name: &&str| name.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c));
    name.filter(plain).unwrap_or("images").to_owned()
}

impl Images for Vec<Place> {
    fn read(&self, sample: usize, bytes: &mut Vec<u8>) -> Result<()> {
        self[sample].read(bytes)
    }

    fn path(&self, sample: usize) -> &Path {
        self[sample].path()
    }
}

impl ImageImport {
    /// Imports all splits. `progress` is called from all threads, after each sample.
    ///
    /// # Errors
    /// A source that isn't what it should be, an image that can't be used, a folder that holds something
    /// else, a disk that can't be written.
    pub fn run(&self, progress: &(dyn Fn(Progress) + Sync)) -> Result<Vec<Split>> {
        for (name, value) in [("shard_size", self.shard_size), ("max_side", self.max_side.unwrap_or(1))] {
            if value == 0 {
                return Err(Error::InvalidArgument(format!("{name} must be at least 1, not 0")));
            }
        }
        let sets = match &self.source {
            ImageSource::Folder(folder) => vec![image_folder::find(folder, &self.out)?],
            ImageSource::ImageNet { folder, splits, val_labels } => {
                imagenet::find(folder, splits, val_labels.as_deref())?
            }
            ImageSource::Parquet(sources) => vec![parquet_set(sources, &self.out)?],
        };
        let total = sets.iter().map(|set| set.samples.len() as u64).sum();
        let counts = Counts { done: AtomicU64::new(0), bytes: AtomicU64::new(0), total, progress };
        let several = matches!(self.source, ImageSource::ImageNet { .. });
        let import = |set: &ImageSet| {
            let folder = if several { self.out.join(&set.split) } else { self.out.clone() };
            self.import(set, folder, &counts)
        };
        sets.iter().map(import).collect()
    }

    fn import(&self, set: &ImageSet, folder: PathBuf, counts: &Counts) -> Result<Split> {
        if u32::try_from(set.samples.len()).is_err() {
            return Err(Error::InvalidArgument(format!(
                "{} samples; import fewer than 2³²",
                set.samples.len()
            )));
        }
        if set.classes > MOST_CLASSES {
            let what = format!("{} classes; class numbers begin at 0, without large gaps", set.classes);
            return Err(Error::malformed(set.images.path(0), what));
        }
        let _lock = lock(&folder)?;
        self.plan(set).settle(&folder)?;
        files::remove_unfinished(&folder)?;
        let order = set.images.order(set.samples.len(), self.seed);
        let shards = Shards { import: self, set, folder: &folder, order };
        let split = |(info, left_out), outcome| Split {
            folder: folder.clone(),
            info,
            outcome,
            left_out,
            ignored: set.ignored,
        };
        if let Some(complete) = shards.complete()? {
            counts.add(set.samples.len() as u64, 0);
            return Ok(split(complete, Outcome::AlreadyComplete));
        }
        DatasetInfo::remove(&folder)?;
        let (whole, missing): (Vec<u32>, Vec<u32>) =
            (0..shards.count()).partition(|&number| shards.is_whole(number));
        for &sample in whole.iter().flat_map(|&number| shards.samples(number)) {
            set.images.pass_over(sample as usize);
        }
        counts.add(whole.iter().map(|&number| shards.samples(number).len() as u64).sum(), 0);
        parallel::for_each(
            missing.len(),
            self.threads,
            || Preparer::new(self.tile, self.max_side),
            |preparer, at| shards.write(missing[at], preparer, counts),
        )?;
        Ok(split(shards.finish()?, Outcome::Written))
    }

    fn plan(&self, set: &ImageSet) -> Plan {
        let mut hash = Sha256::new();
        for (key, label) in &set.samples {
            hash.update((key.len() as u64).to_le_bytes());
            hash.update(key.as_bytes());
            hash.update(label.to_le_bytes());
        }
        Plan {
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

#[cfg(feature = "parquet")]
fn parquet_set(sources: &[String], out: &Path) -> Result<ImageSet> {
    super::parquet::find(sources, out)
}

#[cfg(not(feature = "parquet"))]
fn parquet_set(_: &[String], _: &Path) -> Result<ImageSet> {
    let what = "this program was built without Parquet; build it with --features parquet";
    Err(Error::InvalidArgument(what.into()))
}

/// More classes than this are taken for labels that aren't class numbers.
const MOST_CLASSES: usize = 1 << 20;

/// Lists the images that were left out, a line each.
const BAD_FILE: &str = "bad_imports.txt";

/// Counts of all threads, of which the caller hears.
struct Counts<'a> {
    done: AtomicU64,
    bytes: AtomicU64,
    total: u64,
    progress: &'a (dyn Fn(Progress) + Sync),
}

impl Counts<'_> {
    fn add(&self, samples: u64, bytes: u64) {
        let done = self.done.fetch_add(samples, Ordering::Relaxed) + samples;
        let bytes = self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        (self.progress)(Progress { done, total: self.total, bytes });
    }
}

/// The shards of one split, written or yet to be.
struct Shards<'a> {
    import: &'a ImageImport,
    set: &'a ImageSet,
    folder: &'a Path,
    order: Vec<u32>,
}

impl Shards<'_> {
    fn count(&self) -> u32 {
        self.order.len().div_ceil(self.import.shard_size as usize) as u32 // no more than samples
    }

    /// The samples planned for shard `number`.
    fn samples(&self, number: u32) -> &[u32] {
        let start = number as usize * self.import.shard_size as usize;
        &self.order[start..self.order.len().min(start + self.import.shard_size as usize)]
    }

    /// The samples of shard `number` that were left out of it; `None` where it isn't there, or not as
    /// planned.
    fn left_out(&self, number: u32) -> Option<Vec<u32>> {
        let path = self.folder.join(shard_name(&self.set.split, number));
        let (index, _) = ShardIndex::open(&path).ok()?;
        let mut found = index.iter().peekable();
        let mut left_out = Vec::new();
        for &sample in self.samples(number) {
            let (key, label) = &self.set.samples[sample as usize];
            match found.next_if(|found| found.key() == &**key && found.label == *label) {
                Some(_) => {}
                None => left_out.push(sample),
            }
        }
        (found.next().is_none()).then_some(left_out)
    }

    fn is_whole(&self, number: u32) -> bool {
        self.left_out(number).is_some_and(|left_out| self.import.skip_bad || left_out.is_empty())
    }

    fn write(&self, number: u32, preparer: &mut Preparer, counts: &Counts) -> Result<()> {
        let mut writer = ShardWriter::one(self.folder, &self.set.split, number)?;
        let mut bytes = Vec::new();
        for &sample in self.samples(number) {
            let (key, label) = &self.set.samples[sample as usize];
            self.set.images.read(sample as usize, &mut bytes)?;
            match preparer.prepare(&bytes) {
                Ok((extension, image)) => writer.write(key, extension, &image, *label)?,
                Err(_) if self.import.skip_bad => {}
                Err(BadImage(reason)) => {
                    let bad = BadImage(format!("{reason}, or leave such images out with --skip-bad"));
                    return Err(bad.at(self.set.images.path(sample as usize), key));
                }
            }
            counts.add(1, bytes.len() as u64);
        }
        writer.finish().map(drop)
    }

    /// What `dataset.json` says of shards that are all there, and the samples left out of them. A shard that
    /// isn't there is taken for one of which all were left out.
    fn sum_up(&self) -> (DatasetInfo, Vec<u32>) {
        let (mut shards, mut all_left_out) = (0, Vec::new());
        for number in 0..self.count() {
            let left_out = self.left_out(number);
            shards += u64::from(left_out.is_some());
            all_left_out.extend(left_out.unwrap_or_else(|| self.samples(number).to_vec()));
        }
        let info = DatasetInfo {
            version: 1,
            name: self.set.name.clone(),
            classes: self.set.classes,
            channels: 3,
            image_size: None,
            samples: (self.order.len() - all_left_out.len()) as u64,
            shards,
            class_names: self.set.class_names.clone(),
        };
        (info, all_left_out)
    }

    /// What an import that ended before this one left, if it is what this one would leave.
    fn complete(&self) -> Result<Option<(DatasetInfo, u64)>> {
        let Some(found) = DatasetInfo::load(self.folder)? else { return Ok(None) };
        let (info, left_out) = self.sum_up();
        let same = found == info && (self.import.skip_bad || left_out.is_empty());
        Ok(same.then_some((info, left_out.len() as u64)))
    }

    /// All shards are there: lists what was left out of them, and says so in `dataset.json`.
    fn finish(&self) -> Result<(DatasetInfo, u64)> {
        let (info, mut left_out) = self.sum_up();
        if info.samples == 0 {
            let what = "none of the images can be used; look at the first without --skip-bad";
            return Err(Error::malformed(self.set.images.path(0), what));
        }
        left_out.sort_unstable();
        let mut lines = String::new();
        let mut preparer = Preparer::new(self.import.tile, self.import.max_side)?;
        let mut bytes = Vec::new();
        for &sample in &left_out {
            let sample = sample as usize;
            self.set.images.read(sample, &mut bytes)?;
            let reason =
                preparer.prepare(&bytes).err().map_or("the source has changed since".into(), |bad| bad.0);
            let path = self.set.images.path(sample).display();
            lines.push_str(&format!("{path}, key '{}': {reason}\n", self.set.samples[sample].0));
        }
        let list = self.folder.join(BAD_FILE);
        match lines.is_empty() {
            true => files::remove(&list)?, // of an import before this one
            false => files::replace(&list, lines.as_bytes())?,
        }
        info.save(self.folder)?;
        Ok((info, left_out.len() as u64))
    }
}
