//! Files that are replaced as a whole, and folders whose renames survive a power cut.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::error::{IoContext, Result};

/// Replaces the file at `path` by `contents` in one step: a reader sees the old file or the new one.
/// Several processes, on several machines, may do so at once; the last one wins.
pub(crate) fn replace_file(path: &Path, contents: &[u8]) -> Result<()> {
    replace_file_by(path, |file| file.write_all(contents))
}

/// As [`replace_file`], by what `write` writes.
pub(crate) fn replace_file_by(path: &Path, write: impl FnOnce(&mut File) -> io::Result<()>) -> Result<()> {
    let temporary = unique_sibling(path);
    let written = File::create(&temporary)
        .and_then(|mut file| write(&mut file).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        let _ = fs::remove_file(&temporary); // the first error is the one to report
    }
    written.context("write", path)
}

/// Creates the folder of the file at `path`, if it is missing.
pub(crate) fn create_parent(path: &Path) -> Result<()> {
    let folder = path.parent().unwrap_or(path);
    fs::create_dir_all(folder).context("create", folder)
}

/// Removes the file at `path`; a missing one is no error.
pub(crate) fn remove_if_exists(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        removed => removed.context("remove", path),
    }
}

/// Removes the temporary files that killed programs left in `folder`. The caller must be the only writer there.
pub(crate) fn remove_temporaries(folder: &Path) -> Result<()> {
    for entry in folder.read_dir().context("list", folder)? {
        let path = entry.context("list", folder)?.path();
        let name = file_name(&path);
        if name.ends_with(".tmp") && (name.starts_with('.') || name.ends_with(".tar.tmp")) {
            fs::remove_file(&path).context("remove", &path)?;
        }
    }
    Ok(())
}

/// Makes the renames in `folder` survive a power cut, where the file system can: some network and FUSE file systems
/// refuse `fsync` of a folder, and there the rename is as safe as that file system makes it.
///
/// # Errors
/// The folder can't be opened, or the disk failed.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    ignore_unsupported(File::open(folder)?.sync_all())
}

/// Ignores EINVAL, ENOSYS and ENOTSUP.
fn ignore_unsupported(synced: io::Result<()>) -> io::Result<()> {
    match synced {
        Err(error) if matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported) => Ok(()),
        synced => synced,
    }
}

/// The file's name for messages and fingerprints; lossy where it isn't UTF-8.
pub(crate) fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// A hidden name in the folder of `path` that no other thread, process or machine picks. Process ids repeat across
/// machines that share a file system, hence the clock as well.
fn unique_sibling(path: &Path) -> PathBuf {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let count = COUNTER.fetch_add(1, Ordering::Relaxed);
    let nanos = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_nanos());
    path.with_file_name(format!(".{}.{}-{nanos}-{count}.tmp", file_name(path), std::process::id()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::Errno;

    #[test]
    fn file_systems_without_fsync_of_folders_are_no_error() {
        let sync = |errno: Errno| ignore_unsupported(Err(io::Error::from_raw_os_error(errno.raw_os_error())));
        assert!([Errno::INVAL, Errno::NOSYS, Errno::NOTSUP].into_iter().all(|errno| sync(errno).is_ok()));
        assert!([Errno::IO, Errno::NOSPC, Errno::DQUOT].into_iter().all(|errno| sync(errno).is_err()));
        let folder = tempfile::tempdir().unwrap();
        assert!(sync_folder(folder.path()).is_ok());
        assert!(sync_folder(&folder.path().join("missing")).is_err());
    }
}
