//! Importers: published data sets, as their authors distribute them, become shards.
//!
//! An import writes one folder for each split, and its `dataset.json` last. Small sets of raw pixels
//! ([`PixelImport`]) are encoded. Large sets of encoded images ([`ImageImport`]) are kept as they are, and an import
//! that was killed is resumed. [`ENTRIES`] lists the data sets.

use std::ffi::OsStr;
use std::fs::{self, File, TryLockError};
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;

use crate::dataset::DatasetInfo;
use crate::error::{Error, IoContext, Result};
use crate::left_out::LeftOut;

mod download;
mod entry;
mod formats;
mod image_set;
mod images;
mod inputs;
mod pixel_source;
mod pixels;
pub(crate) mod prepare;
mod record;
mod sets;
mod split_shards;

pub use download::{FetchStatus, fetch};
pub use entry::{
    Access, Entry, ImageImporter, ImageRequest, ImportOption, Importer, PixelImporter, Published,
    PublishedFile,
};
pub use images::{ImageImport, Progress};
pub use pixels::{PIXEL_JPEG_QUALITY, PixelImport};
pub use sets::ENTRIES;

/// One split after its import.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Split {
    /// Its folder.
    pub folder: PathBuf,
    /// The contents of its `dataset.json`.
    pub info: DatasetInfo,
    /// Whether it had to be written.
    pub status: SplitStatus,
    /// Images that can't be used, left out and listed in `bad_imports.txt`.
    pub bad: u64,
    /// Files of the source that aren't images.
    pub left_out: LeftOut,
}

/// Whether a split had to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SplitStatus {
    /// Its shards have been written.
    Written,
    /// Its shards were complete before, with the same settings.
    AlreadyComplete,
}

/// Creates `folder`, and locks it against other imports until this program ends. File systems without locks go without.
fn lock_folder(folder: &Path) -> Result<File> {
    fs::create_dir_all(folder).context("create folder", folder)?;
    let lock = File::open(folder).context("open", folder)?;
    match lock.try_lock() {
        Err(TryLockError::WouldBlock) => {
            Err(Error::malformed(folder, "another import or fetch is writing here; wait for it to end"))
        }
        _ => Ok(lock),
    }
}

/// The error of a broken source file.
fn broken_source(path: &Path, what: &str) -> Error {
    Error::malformed(path, format!("{what}; fetch the file again"))
}

/// Describes a source that ends early, or whose compression is broken.
fn describe_unreadable(error: io::Error) -> String {
    format!("cut short or unreadable ({error})")
}

/// Limit of the bytes that are unpacked into memory: more than any file here has.
const MAX_MEMBER_BYTES: u64 = 1 << 30;

/// The contents of the member named `file`, in any folder of a gzipped tar.
fn read_gzipped_member(archive: File, file: &str) -> io::Result<Option<Vec<u8>>> {
    let mut tar = tar::Archive::new(MultiGzDecoder::new(BufReader::new(archive)));
    let mut contents = None;
    for entry in tar.entries()? {
        let mut entry = entry?;
        if entry.path()?.file_name() == Some(OsStr::new(file)) {
            let mut bytes = Vec::new();
            entry.by_ref().take(MAX_MEMBER_BYTES + 1).read_to_end(&mut bytes)?;
            if bytes.len() as u64 > MAX_MEMBER_BYTES {
                return Err(io::Error::other(format!("{file} has over {MAX_MEMBER_BYTES} bytes")));
            }
            contents = Some(bytes);
        }
    }
    io::copy(&mut tar.into_inner(), &mut io::sink())?; // to the checksum at the very end
    Ok(contents)
}

/// Reads `bytes`, from a file in `folder`, as each format; see [`crate::fuzzing`].
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn read_as_any(folder: &Path, bytes: &[u8]) {
    use formats::{idx, mat};
    fs::write(folder.join("fuzzed"), bytes).expect("the folder can be written");
    let _ = [1, 3].map(|rank| idx::read(folder, "fuzzed", rank));
    let _ = ["X", "y"].map(|name| mat::Array::open(&folder.join("fuzzed"), name)?.read_numbers());
    let _ = mat::read_records(bytes, "synsets", &["ILSVRC2012_ID", "WNID"]);
    fs::write(folder.join("data_batch_1.bin"), bytes).expect("the folder can be written");
    let _ = sets::read_cifar(folder);
}
