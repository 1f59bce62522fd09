//! Importers: published data sets, as their authors distribute them, to shards.
//!
//! What an importer writes is one folder a split, with a `dataset.json` that is written last. Small sets of
//! raw pixels ([`Import`]) are encoded; an import that was killed leaves no `dataset.json`, and its shards
//! are overwritten by the next. Large sets of encoded images ([`ImageImport`]) are kept as they are; an
//! import that was killed is resumed.

use std::ffi::OsStr;
use std::fs::{self, File, TryLockError};
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;

use crate::dataset::{Dataset, DatasetInfo};
use crate::decode::Channels;
use crate::encode::{Encoder, Encoding};
use crate::error::{Error, IoContext, Result};
use crate::shard::ShardWriter;

mod cifar;
mod devkit;
mod fashion_mnist;
mod idx;
mod image_folder;
mod imagenet;
mod images;
mod mat;
#[cfg(feature = "parquet")]
mod parquet;
mod places;
mod plan;
mod prepare;
mod svhn;

pub use images::{ImageImport, ImageNetSplit, ImageSource, Progress};

/// A data set that can be imported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Published {
    /// Four IDX files, `train-images-idx3-ubyte` and so on, each plain or with `.gz`.
    FashionMnist,
    /// The binary version: `cifar-10-batches-bin/`, in or as the source folder, or `cifar-10-binary.tar.gz`.
    Cifar10,
    /// The binary version with its 100 fine labels: `cifar-100-binary/`, or `cifar-100-binary.tar.gz`.
    Cifar100,
    /// The cropped digits: `train_32x32.mat`, `test_32x32.mat` and, where it is there, `extra_32x32.mat`.
    Svhn,
}

/// What to import, and how.
#[derive(Debug, Clone)]
pub struct Import {
    /// Which data set.
    pub dataset: Published,
    /// Folder of the published files.
    pub source: PathBuf,
    /// Where `train/`, `test/` and so on are written.
    pub out: PathBuf,
    /// How the images are stored.
    pub encoding: Encoding,
    /// Samples in a shard.
    pub shard_size: u32,
}

/// One split as it was imported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Split {
    /// Its folder.
    pub folder: PathBuf,
    /// What its `dataset.json` says.
    pub info: DatasetInfo,
    /// Whether it had to be written.
    pub outcome: Outcome,
    /// Images that can't be used, left out and listed in `bad_imports.txt`.
    pub left_out: u64,
    /// Files of the source that were passed over, not being called images.
    pub ignored: u64,
}

/// What became of one split.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Its shards have been written.
    Written,
    /// They were all there already, with the same settings.
    AlreadyComplete,
}

/// The published files of a data set, found and ready to be read.
struct Source {
    name: &'static str,
    classes: usize,
    class_names: Option<Vec<String>>,
    /// Width and height of every image.
    image_size: usize,
    channels: Channels,
    splits: Vec<SourceSplit>,
}

/// One split of a [`Source`].
struct SourceSplit {
    name: &'static str,
    /// Hands on every sample in the order of the files, at least one, its label checked. It is called twice,
    /// so that a broken file is found before anything is written and yet none has to be held in memory.
    read: Box<ReadAll>,
}

type ReadAll = dyn Fn(&mut Each) -> Result<()>;

/// Takes one sample: its pixels, u8 [H, W, C], and its label.
type Each<'a> = dyn FnMut(&[u8], u8) -> Result<()> + 'a;

impl Import {
    /// Imports all splits. `progress` is called with the samples done and in all, after each sample.
    ///
    /// # Errors
    /// A source file that is missing or broken, labels that don't match the images, a disk that can't be
    /// written.
    pub fn run(&self, mut progress: impl FnMut(u64, u64)) -> Result<Vec<Split>> {
        if self.shard_size == 0 {
            return Err(Error::InvalidArgument("shard_size must be at least 1, not 0".into()));
        }
        let source = match self.dataset {
            Published::FashionMnist => fashion_mnist::source(&self.source),
            Published::Cifar10 => cifar::source(&self.source, &cifar::CIFAR10)?,
            Published::Cifar100 => cifar::source(&self.source, &cifar::CIFAR100)?,
            Published::Svhn => svhn::source(&self.source),
        };
        // All splits are read and checked before anything is written.
        let counts: Vec<u64> = source.splits.iter().map(count).collect::<Result<_>>()?;
        let total = counts.iter().sum();
        let mut done = 0;
        let mut splits = Vec::new();
        for (split, samples) in source.splits.iter().zip(counts) {
            let folder = self.out.join(split.name);
            let info = self.info(&source, split.name, samples);
            let outcome = if is_complete(&folder, &info, self.encoding) {
                done += samples;
                Outcome::AlreadyComplete
            } else {
                self.write(&source, split, &folder, &info, || {
                    done += 1;
                    progress(done, total);
                })?;
                Outcome::Written
            };
            progress(done, total);
            splits.push(Split { folder, info, outcome, left_out: 0, ignored: 0 });
        }
        Ok(splits)
    }

    fn info(&self, source: &Source, split: &str, samples: u64) -> DatasetInfo {
        DatasetInfo {
            version: 1,
            name: format!("{} {split}", source.name),
            classes: source.classes,
            channels: source.channels.count(),
            image_size: Some(source.image_size as u32),
            samples,
            shards: samples.div_ceil(self.shard_size.into()),
            class_names: source.class_names.clone(),
        }
    }

    fn write(
        &self,
        source: &Source,
        split: &SourceSplit,
        folder: &Path,
        info: &DatasetInfo,
        mut progress: impl FnMut(),
    ) -> Result<()> {
        let _lock = lock(folder)?;
        clear(folder, split.name)?;
        let mut writer = ShardWriter::new(folder, split.name, self.shard_size)?;
        let mut encoder = Encoder::new(self.encoding)?;
        let size = source.image_size as u32;
        let mut position = 0;
        (split.read)(&mut |pixels, label| {
            let encoded = encoder.encode(pixels, size, size, source.channels)?;
            writer.write(&format!("{position:08}"), self.encoding.extension(), &encoded, label.into())?;
            position += 1;
            progress();
            Ok(())
        })?;
        writer.finish()?;
        if position != info.samples {
            let what = format!("the files changed while {} of them was read; import again", split.name);
            return Err(Error::malformed(&self.source, what));
        }
        info.save(folder)
    }
}

/// The number of samples, all of which are read.
fn count(split: &SourceSplit) -> Result<u64> {
    let mut samples = 0;
    (split.read)(&mut |_, _| {
        samples += 1;
        Ok(())
    })?;
    Ok(samples)
}

/// Whether `folder` already holds what an import would write.
fn is_complete(folder: &Path, expected: &DatasetInfo, encoding: Encoding) -> bool {
    // Anything wrong with what is there, down to a missing shard, is mended by writing it again.
    let Some(dataset) = folder.to_str().and_then(|pattern| Dataset::open(pattern).ok()) else { return false };
    let same_format =
        dataset.sample_info(0).is_some_and(|sample| sample.name.ends_with(encoding.extension()));
    dataset.info() == Some(expected) && same_format
}

/// Makes `folder`, and this program the only one that imports into it while the lock is held: until it ends, however it
/// does. File systems without locks go without.
fn lock(folder: &Path) -> Result<File> {
    fs::create_dir_all(folder).context("create folder", folder)?;
    let lock = File::open(folder).context("open", folder)?;
    match lock.try_lock() {
        Err(TryLockError::WouldBlock) => {
            Err(Error::malformed(folder, "another import is writing here; wait for it to end"))
        }
        _ => Ok(lock),
    }
}

/// Makes `folder` ready to be written: incomplete from now on, and without shards of a split named `name`, of
/// which a run with larger shards would leave some behind.
fn clear(folder: &Path, name: &str) -> Result<()> {
    DatasetInfo::remove(folder)?;
    for entry in folder.read_dir().context("list", folder)? {
        let path = entry.context("list", folder)?.path();
        if path.file_name().and_then(|file| file.to_str()).is_some_and(|file| is_shard_file(file, name)) {
            fs::remove_file(&path).context("remove", &path)?;
        }
    }
    Ok(())
}

/// Whether `file` is `NAME-000000.tar`, its index, or such a shard being written.
fn is_shard_file(file: &str, name: &str) -> bool {
    let rest = file.strip_prefix(name).and_then(|rest| rest.strip_prefix('-'));
    let Some((number, extension)) = rest.and_then(|rest| rest.split_once('.')) else { return false };
    number.len() >= 6
        && number.bytes().all(|b| b.is_ascii_digit())
        && matches!(extension, "tar" | "idx" | "tar.tmp")
}

/// What every broken source file comes to: it isn't for us to mend.
fn broken(path: &Path, what: &str) -> Error {
    Error::malformed(path, format!("{what}; fetch the file again"))
}

/// The words for a source that ends early, or whose compression is broken.
fn unreadable(error: std::io::Error) -> String {
    format!("cut short or unreadable ({error})")
}

/// The most bytes that are unpacked into memory: more than any file read so has.
const MOST_MEMBER_BYTES: u64 = 1 << 30;

/// The contents of the member named `file`, in whatever folder, of a gzipped tar.
fn gzipped_member(archive: File, file: &str) -> io::Result<Option<Vec<u8>>> {
    let mut tar = tar::Archive::new(MultiGzDecoder::new(BufReader::new(archive)));
    let mut found = None;
    for entry in tar.entries()? {
        let mut entry = entry?;
        if entry.path()?.file_name() == Some(OsStr::new(file)) {
            let mut bytes = Vec::new();
            entry.by_ref().take(MOST_MEMBER_BYTES + 1).read_to_end(&mut bytes)?;
            if bytes.len() as u64 > MOST_MEMBER_BYTES {
                return Err(io::Error::other(format!("{file} has over {MOST_MEMBER_BYTES} bytes")));
            }
            found = Some(bytes);
        }
    }
    io::copy(&mut tar.into_inner(), &mut io::sink())?; // to the checksum at the very end
    Ok(found)
}

/// Refuses a label that isn't one of the classes.
fn check_label(source: &Path, position: usize, label: u8, classes: usize) -> Result<()> {
    if usize::from(label) < classes {
        return Ok(());
    }
    Err(broken(source, &format!("label {position} is {label}, outside the {classes} classes")))
}

/// Makes [row, column, channel] of three square planes, one after the other, in which the next row is `down`
/// bytes further on, the next column `right`.
fn interleave(planes: &[u8], down: usize, right: usize) -> Vec<u8> {
    let plane = planes.len() / 3;
    let side = plane.isqrt();
    let places = (0..side).flat_map(|row| (0..side).map(move |column| row * down + column * right));
    places.flat_map(|at| [planes[at], planes[at + plane], planes[at + 2 * plane]]).collect()
}

/// Reads `bytes`, from a file in `folder`, as each format there is; see [`crate::fuzzing`].
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn read_as_any(folder: &Path, bytes: &[u8]) {
    fs::write(folder.join("fuzzed"), bytes).expect("the folder can be written");
    let _ = [1, 3].map(|rank| idx::read(folder, "fuzzed", rank));
    let _ = ["X", "y"].map(|name| mat::Array::open(&folder.join("fuzzed"), name)?.numbers());
    let _ = mat::records(bytes, "synsets", &["ILSVRC2012_ID", "WNID"]);
    fs::write(folder.join("data_batch_1.bin"), bytes).expect("the folder can be written");
    let _ = cifar::source(folder, &cifar::CIFAR10).map(|source| (source.splits[0].read)(&mut |_, _| Ok(())));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_of_the_split_are_cleared() {
        assert!(is_shard_file("train-000012.tar", "train"));
        assert!(is_shard_file("train-000012.idx", "train"));
        assert!(is_shard_file("train-000012.tar.tmp", "train"));
        for other in
            ["test-000012.tar", "train-notes.tar", "train-12.tar", "train-000012.txt", "dataset.json"]
        {
            assert!(!is_shard_file(other, "train"), "{other}");
        }
    }

    #[test]
    fn planes_by_rows_and_by_columns_are_interleaved() {
        let planes = [1, 2, 3, 4, 10, 20, 30, 40, 100, 200, 103, 104];
        assert_eq!(interleave(&planes, 2, 1), [1, 10, 100, 2, 20, 200, 3, 30, 103, 4, 40, 104]);
        assert_eq!(interleave(&planes, 1, 2), [1, 10, 100, 3, 30, 103, 2, 20, 200, 4, 40, 104]);
    }
}
