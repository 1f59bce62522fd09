//! Local copies of shards from stores and slow file systems, in a folder that processes share.
//!
//! A copy is `NAME-HASH.tar`. The hash covers its URL, version and size, so a changed object is another file. An
//! incomplete copy is `NAME-HASH.part`, locked by the process that fetches it. So after a process dies, every `.tar` is
//! complete, and a `.part` without a lock is abandoned.

use std::fs::{self, File, FileTimes, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use sha2::{Digest, Sha256};

use super::options::Cache;
use crate::error::{IoContext, Result};

/// The folder and its size limit.
#[derive(Debug)]
pub(crate) struct SharedFolder {
    folder: PathBuf,
    limit: u64,
    device: Option<u64>,
}

impl SharedFolder {
    pub(crate) fn open(cache: &Cache) -> Result<SharedFolder> {
        let Cache { folder, limit_bytes } = cache;
        fs::create_dir_all(folder).context("create folder", folder)?;
        let device = fs::metadata(folder).ok().map(|metadata| metadata.dev());
        Ok(SharedFolder { folder: folder.clone(), limit: *limit_bytes, device })
    }

    /// The number of its file system.
    pub(crate) fn device(&self) -> Option<u64> {
        self.device
    }

    /// The path of a shard's copy; `url` is the shard's URL or absolute path.
    pub(crate) fn copy_path(&self, url: &str, version: &str, size: u64) -> PathBuf {
        let mut hash = Sha256::new();
        for part in [url, version] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        hash.update(size.to_le_bytes());
        let hash: String = hash.finalize()[..8].iter().map(|byte| format!("{byte:02x}")).collect();
        let name = url.rsplit('/').next().unwrap_or_default();
        let name =
            name.trim_end_matches(".tar").replace(|c: char| !c.is_ascii_alphanumeric() && c != '_', "-");
        self.folder.join(format!("{}-{hash}.tar", name.chars().take(100).collect::<String>()))
    }

    /// Opens the complete copy at `path`, which `fetch` writes if it is missing. Of several threads or processes, one
    /// fetches and the others wait for it. `None` where the folder has no space for it.
    pub(crate) fn open_or_fetch(
        &self,
        path: &Path,
        size: u64,
        fetch: impl Fn(&File) -> Result<()>,
    ) -> Result<Option<File>> {
        loop {
            if let Some(file) = open_complete(path, size) {
                // Marks it as recently used. A file system without access times removes copies in any order.
                let _ = file.set_times(FileTimes::new().set_accessed(SystemTime::now()));
                return Ok(Some(file));
            }
            let part = path.with_extension("part");
            let open = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&part);
            let file = open.context("create", &part)?;
            file.lock().context("lock", &part)?;
            if !is_same_file(&file, &part) {
                continue; // the process that held the lock has completed or removed it
            }
            if !self.make_space(&file, &part, size)? {
                let _ = fs::remove_file(&part);
                return Ok(None);
            }
            let fetched = fetch(&file)
                .and_then(|()| file.sync_all().context("write", &part))
                .and_then(|()| fs::rename(&part, path).context("rename to", path));
            if let Err(error) = fetched {
                let _ = fs::remove_file(&part); // the first error is the one to report
                return Err(error);
            }
        }
    }

    /// Removes copies until `size` bytes fit, and reserves them for `file` at `part`. False where they can't fit.
    fn make_space(&self, file: &File, part: &Path, size: u64) -> Result<bool> {
        let lock = self.folder.join(".lock");
        let one_at_a_time = File::create(&lock).context("create", &lock)?;
        one_at_a_time.lock().context("lock", &lock)?;
        let mut used = 0;
        let mut copies = Vec::new();
        for entry in self.folder.read_dir().context("list", &self.folder)? {
            let path = entry.context("list", &self.folder)?.path();
            let Ok(metadata) = path.metadata() else { continue }; // removed meanwhile
            let extension = path.extension().unwrap_or_default();
            if path == part || extension == "part" && remove_abandoned(&path) {
                continue;
            }
            used += metadata.len();
            if extension == "tar" {
                copies.push((metadata.accessed().context("read", &path)?, path, metadata.len()));
            }
        }
        copies.sort();
        for (_, path, bytes) in copies {
            if used.saturating_add(size) <= self.limit || size > self.limit {
                break;
            }
            fs::remove_file(&path).context("remove", &path)?;
            used -= bytes;
        }
        let fits = used.saturating_add(size) <= self.limit;
        if fits {
            file.set_len(size).context("write", part)?; // others count it from now on
        }
        Ok(fits)
    }
}

/// Opens the copy at `path` if it has the right length.
fn open_complete(path: &Path, size: u64) -> Option<File> {
    let file = File::open(path).ok()?;
    (file.metadata().ok()?.len() == size).then_some(file)
}

/// Whether `path` is still the path of `file`.
fn is_same_file(file: &File, path: &Path) -> bool {
    let (Ok(file), Ok(there)) = (file.metadata(), path.metadata()) else { return false };
    (file.dev(), file.ino()) == (there.dev(), there.ino())
}

/// Removes the part at `path` unless a process has it locked; false where one has. A process that waits for the lock
/// notices the removal.
fn remove_abandoned(path: &Path) -> bool {
    let Ok(file) = File::open(path) else { return true };
    file.try_lock().is_ok() && fs::remove_file(path).is_ok()
}
