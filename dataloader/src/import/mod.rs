//! Importers: published data sets, as their authors distribute them, to shards.
//!
//! What an importer writes is one folder a split, with a `dataset.json` that is written last. An import that was
//! killed leaves none, and its shards are overwritten by the next.

use std::fs;
use std::path::Path;

use crate::dataset::{Dataset, DatasetInfo};
use crate::encode::Encoding;
use crate::error::{Error, IoContext, Result};

pub mod fashion_mnist;
mod idx;

/// What became of one split.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Its shards have been written.
    Written,
    /// They were all there already, with the same settings.
    AlreadyComplete,
}

/// Whether `folder` already holds what an import would write.
fn is_complete(folder: &Path, expected: &DatasetInfo, encoding: Encoding) -> bool {
    // Anything wrong with what is there, down to a missing shard, is mended by writing it again.
    let Some(dataset) = folder.to_str().and_then(|pattern| Dataset::open(pattern).ok()) else { return false };
    let same_format = dataset.meta(0).is_some_and(|sample| sample.name.ends_with(encoding.extension()));
    dataset.info() == Some(expected) && same_format
}

/// Makes `folder` ready to be written: incomplete from now on, and without shards of a split named `name`, of
/// which a run with larger shards would leave some behind.
fn clear(folder: &Path, name: &str) -> Result<()> {
    fs::create_dir_all(folder).context("create folder", folder)?;
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

/// Refuses a label that isn't one of the classes.
fn check_label(source: &Path, position: usize, label: u8, classes: usize) -> Result<()> {
    if usize::from(label) < classes {
        return Ok(());
    }
    let what = format!("label {position} is {label}, outside the {classes} classes; fetch the file again");
    Err(Error::malformed(source, what))
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
