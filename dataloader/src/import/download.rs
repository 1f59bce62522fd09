//! Downloads the published files of a data set. A download that was killed resumes where it stopped.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::entry::PublishedFile;
use super::lock_folder;
use crate::error::{Error, IoContext, Result};
use crate::files::{remove_if_exists, sync_folder};
use crate::source::{Location, Options, Storage, join};

/// Whether a file had to be downloaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FetchStatus {
    /// It has been downloaded.
    Downloaded,
    /// It was in the folder before, with the published checksum.
    AlreadyComplete,
}

/// Downloads `file` from `base`, a URL or a folder, into `folder`, which is created if it is missing. Until the file is complete
/// and has the published checksum, its name ends in `.part`. `progress` gets the bytes that are downloaded so far.
///
/// # Errors
/// The file is not at `base` or has another size there; the network or a disk fails, in which case a later call resumes; the
/// checksum is wrong, in which case nothing is kept; another file of this name is in the folder.
pub fn fetch(file: &PublishedFile, base: &str, folder: &Path, progress: &dyn Fn(u64)) -> Result<FetchStatus> {
    let lock = lock_folder(folder)?;
    let status = fetch_locked(file, base, folder, progress);
    let _ = lock.unlock(); // a process that another thread has just forked may hold it open
    status
}

fn fetch_locked(
    file: &PublishedFile,
    base: &str,
    folder: &Path,
    progress: &dyn Fn(u64),
) -> Result<FetchStatus> {
    let path = folder.join(file.name);
    if path.exists() {
        if compute_sha256(&path)? == file.sha256 {
            return Ok(FetchStatus::AlreadyComplete);
        }
        return Err(Error::malformed(
            &path,
            "is not the published file: its SHA-256 differs; remove it, and fetch again",
        ));
    }
    let url = join(base, file.name);
    let source = Storage::new(&Options::default()).open(&Location::new(&url))?;
    if source.size() != file.bytes {
        let what = format!(
            "has {} bytes; the published file has {}; try another --mirror",
            source.size(),
            file.bytes
        );
        return Err(Error::malformed(Path::new(&url), what));
    }
    let partial = PathBuf::from(format!("{}.part", path.display()));
    let output = File::options().create(true).truncate(false).read(true).write(true).open(&partial);
    let output = output.context("create", &partial)?;
    let done = output.metadata().context("read", &partial)?.len().min(file.bytes);
    progress(done);
    source.stream(done, &mut |offset, bytes| {
        output.write_all_at(bytes, offset).context("write", &partial)?;
        progress(offset + bytes.len() as u64);
        Ok(())
    })?;
    output.set_len(file.bytes).and_then(|()| output.sync_all()).context("write", &partial)?;
    let found = compute_sha256(&partial)?;
    if found != file.sha256 {
        remove_if_exists(&partial)?;
        let what = format!(
            "its SHA-256 is {found}, not {}; it was removed: fetch again, or from another --mirror",
            file.sha256
        );
        return Err(Error::malformed(Path::new(&url), what));
    }
    fs::rename(&partial, &path).and_then(|()| sync_folder(folder)).context("write", &path)?;
    Ok(FetchStatus::Downloaded)
}

/// The SHA-256 of a file's contents, in hexadecimal.
fn compute_sha256(path: &Path) -> Result<String> {
    let hash = || -> io::Result<String> {
        let mut file = File::open(path)?;
        let mut hasher = Sha256::new();
        let mut block = vec![0; 1 << 20];
        loop {
            match file.read(&mut block)? {
                0 => return Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()),
                read => hasher.update(&block[..read]),
            }
        }
    };
    hash().context("read", path)
}
