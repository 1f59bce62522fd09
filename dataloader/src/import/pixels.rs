//! Imports of small sets of raw pixels, which are encoded as they are written. An import that was killed leaves no
//! `dataset.json`, and the next one overwrites its shards.

use std::fs;
use std::path::{Path, PathBuf};

use super::entry::PixelImporter;
use super::pixel_source::{PixelSource, PixelSplit};
use super::{Split, SplitStatus, lock_folder};
use crate::dataset::{Dataset, DatasetInfo};
use crate::encode::{Encoder, Encoding};
use crate::error::{Error, IoContext, Result};
use crate::left_out::LeftOut;
use crate::shard::ShardWriter;

/// The JPEG quality of encoded pixels. Fashion-MNIST's come back within 4 of 255 levels, on average within 0.4.
pub const PIXEL_JPEG_QUALITY: u8 = 98;

/// An import of raw pixels.
#[derive(Debug)]
pub struct PixelImport {
    /// How the files are read.
    pub importer: &'static PixelImporter,
    /// Folder of the published files.
    pub source: PathBuf,
    /// Where `train/`, `test/` and so on are written.
    pub out: PathBuf,
    /// How the images are stored.
    pub encoding: Encoding,
    /// Samples in a shard.
    pub shard_size: u32,
}

impl PixelImport {
    /// Imports all splits. `progress` is called after each sample with the number of finished samples and of all.
    ///
    /// # Errors
    /// A source file that is missing or broken, labels that don't match the images, a disk that can't be
    /// written.
    pub fn run(&self, mut progress: impl FnMut(u64, u64)) -> Result<Vec<Split>> {
        if self.shard_size == 0 {
            return Err(Error::InvalidArgument("shard_size must be at least 1, not 0".into()));
        }
        let source = (self.importer.open)(&self.source)?;
        // All splits are read and checked before anything is written.
        let counts: Vec<u64> = source.splits.iter().map(count_samples).collect::<Result<_>>()?;
        let total = counts.iter().sum();
        let mut finished = 0;
        let mut splits = Vec::new();
        for (split, samples) in source.splits.iter().zip(counts) {
            let folder = self.out.join(split.name);
            let info = self.dataset_info(&source, split.name, samples);
            let status = if is_complete(&folder, &info, self.encoding) {
                finished += samples;
                SplitStatus::AlreadyComplete
            } else {
                self.write_split(&source, split, &folder, &info, || {
                    finished += 1;
                    progress(finished, total);
                })?;
                SplitStatus::Written
            };
            progress(finished, total);
            splits.push(Split { folder, info, status, bad: 0, left_out: LeftOut::default() });
        }
        Ok(splits)
    }

    fn dataset_info(&self, source: &PixelSource, split: &str, samples: u64) -> DatasetInfo {
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

    fn write_split(
        &self,
        source: &PixelSource,
        split: &PixelSplit,
        folder: &Path,
        info: &DatasetInfo,
        mut progress: impl FnMut(),
    ) -> Result<()> {
        let _lock = lock_folder(folder)?;
        clear_split(folder, split.name)?;
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
            let what = format!("the files of {} changed during the import; import again", split.name);
            return Err(Error::malformed(&self.source, what));
        }
        info.save(folder)
    }
}

/// Reads all samples, and counts them.
fn count_samples(split: &PixelSplit) -> Result<u64> {
    let mut samples = 0;
    (split.read)(&mut |_, _| {
        samples += 1;
        Ok(())
    })?;
    Ok(samples)
}

/// Whether `folder` already holds what an import would write. A folder that doesn't open is written again.
fn is_complete(folder: &Path, expected: &DatasetInfo, encoding: Encoding) -> bool {
    let Some(dataset) = folder.to_str().and_then(|pattern| Dataset::open(pattern).ok()) else { return false };
    let same_format =
        dataset.sample_info(0).is_some_and(|sample| sample.name.ends_with(encoding.extension()));
    dataset.info() == Some(expected) && same_format
}

/// Prepares `folder` for writing: removes `dataset.json` and the shards of the split `name`. A run with larger shards
/// would leave some of the old ones.
fn clear_split(folder: &Path, name: &str) -> Result<()> {
    DatasetInfo::remove(folder)?;
    for entry in folder.read_dir().context("list", folder)? {
        let path = entry.context("list", folder)?.path();
        if path.file_name().and_then(|file| file.to_str()).is_some_and(|file| is_shard_file(file, name)) {
            fs::remove_file(&path).context("remove", &path)?;
        }
    }
    Ok(())
}

/// Whether `file` is `NAME-000000.tar`, its index, or its temporary file.
fn is_shard_file(file: &str, name: &str) -> bool {
    let rest = file.strip_prefix(name).and_then(|rest| rest.strip_prefix('-'));
    let Some((number, extension)) = rest.and_then(|rest| rest.split_once('.')) else { return false };
    number.len() >= 6
        && number.bytes().all(|b| b.is_ascii_digit())
        && matches!(extension, "tar" | "idx" | "tar.tmp")
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
}
