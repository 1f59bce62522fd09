//! Local copies of shards from stores, in a folder that processes share.
//!
//! A copy is `NAME-HASH.tar`; the hash is of its URL, version and size, so that a changed object is another file.
//! Until it is whole it is `NAME-HASH.part`, held locked by the process that fetches it. Whenever a process dies,
//! a `.tar` is whole and a `.part` that nobody holds is rubbish.

use std::fs::{self, File, FileTimes, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use sha2::{Digest, Sha256};

use super::options::Cache;
use crate::error::{IoContext, Result};

/// The folder, and how much it may hold.
#[derive(Debug)]
pub(crate) struct SharedFolder {
    folder: PathBuf,
    limit: u64,
}

impl SharedFolder {
    pub(crate) fn open(cache: &Cache) -> Result<SharedFolder> {
        let Cache { folder, limit_bytes } = cache;
        fs::create_dir_all(folder).context("create folder", folder)?;
        Ok(SharedFolder { folder: folder.clone(), limit: *limit_bytes })
    }

    /// Where the copy of a shard belongs.
    pub(crate) fn path(&self, url: &str, version: &str, size: u64) -> PathBuf {
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

    /// The whole copy at `path`, which `fetch` writes if it isn't there; of several that ask at once, threads or
    /// processes, one fetches and the others wait for it. `None` where the folder has no room for it.
    pub(crate) fn file(
        &self,
        path: &Path,
        size: u64,
        fetch: impl Fn(&File) -> Result<()>,
    ) -> Result<Option<File>> {
        loop {
            if let Some(file) = whole(path, size) {
                // What was read longest ago goes first. A file system that can't note it falls back to any order.
                let _ = file.set_times(FileTimes::new().set_accessed(SystemTime::now()));
                return Ok(Some(file));
            }
            let part = path.with_extension("part");
            let open = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&part);
            let file = open.context("create", &part)?;
            file.lock().context("lock", &part)?;
            if !is_at(&file, &part) {
                continue; // whoever held it has completed it, or given up
            }
            if !self.make_room(&file, &part, size)? {
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

    /// Removes copies until `size` bytes fit, and takes them for `file` at `part`. False where they can't.
    fn make_room(&self, file: &File, part: &Path, size: u64) -> Result<bool> {
        let lock = self.folder.join(".lock");
        let one_at_a_time = File::create(&lock).context("create", &lock)?;
        one_at_a_time.lock().context("lock", &lock)?;
        let (mut used, mut copies) = (0, Vec::new());
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

/// The copy at `path`, if it is there and of the right length.
fn whole(path: &Path, size: u64) -> Option<File> {
    let file = File::open(path).ok()?;
    (file.metadata().ok()?.len() == size).then_some(file)
}

/// Whether `path` still names `file`.
fn is_at(file: &File, path: &Path) -> bool {
    let (Ok(file), Ok(there)) = (file.metadata(), path.metadata()) else { return false };
    (file.dev(), file.ino()) == (there.dev(), there.ino())
}

/// Removes the part at `path` if no process holds it; false where one does. Whoever waits for its lock finds that it
/// is gone.
fn remove_abandoned(path: &Path) -> bool {
    let Ok(file) = File::open(path) else { return true };
    file.try_lock().is_ok() && fs::remove_file(path).is_ok()
}
