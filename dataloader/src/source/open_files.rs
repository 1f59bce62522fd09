//! Files that stay open between reads, within the process's limit. The least recently used one is closed for a new one.

use std::collections::HashMap;
use std::fs::File;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// File descriptors for everything else: logs, checkpoints, connections, GPUs.
const RESERVED: u64 = 256;

/// All open files of this process.
static OPEN_FILES: LazyLock<Mutex<OpenFiles>> = LazyLock::new(|| Mutex::new(OpenFiles::new()));

struct OpenFiles {
    /// Files for which the limit was raised.
    reserved: u64,
    capacity: usize,
    open: HashMap<u64, OpenFile>,
    next_id: u64,
    /// Counts the reads, which orders them.
    clock: u64,
}

struct OpenFile {
    file: Arc<File>,
    last_used: u64,
}

/// The place of a file among the open ones; dropping it closes the file.
#[derive(Debug)]
pub(super) struct FileSlot {
    id: u64,
}

/// Raises the process's limit on open files so that `count` more fit, as far as the hard limit allows.
pub(crate) fn reserve_open_files(count: usize) {
    let mut files = lock();
    files.reserved += count as u64;
    let wanted = files.reserved + RESERVED;
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|current| current < wanted) {
        let raised = limit.maximum.map_or(wanted, |maximum| maximum.min(wanted));
        let higher = Rlimit { current: Some(raised), maximum: limit.maximum };
        if setrlimit(Resource::Nofile, higher).is_ok() {
            limit = higher;
        }
    }
    files.capacity = limit.current.map_or(usize::MAX, capacity_within);
}

/// How many files may stay open within a limit on file descriptors.
fn capacity_within(limit: u64) -> usize {
    usize::try_from(limit.saturating_sub(RESERVED).max(limit / 2)).unwrap_or(usize::MAX)
}

impl FileSlot {
    pub(super) fn new() -> FileSlot {
        let mut files = lock();
        files.next_id += 1;
        FileSlot { id: files.next_id }
    }

    /// The file of this slot. `open` opens it where it is closed.
    pub(super) fn file<E>(
        &self,
        open: impl Fn() -> Result<File, E>,
        is_limit: impl Fn(&E) -> bool,
    ) -> Result<Arc<File>, E> {
        if let Some(file) = lock().touch(self.id) {
            return Ok(file);
        }
        let opened = match open() {
            Err(error) if is_limit(&error) && lock().close_half() => open(),
            opened => opened,
        };
        Ok(lock().insert(self.id, opened?))
    }
}

impl Drop for FileSlot {
    fn drop(&mut self) {
        lock().open.remove(&self.id);
    }
}

impl OpenFiles {
    fn new() -> OpenFiles {
        let capacity = getrlimit(Resource::Nofile).current.map_or(usize::MAX, capacity_within);
        OpenFiles { reserved: 0, capacity, open: HashMap::new(), next_id: 0, clock: 0 }
    }

    fn touch(&mut self, id: u64) -> Option<Arc<File>> {
        self.clock += 1;
        let open = self.open.get_mut(&id)?;
        open.last_used = self.clock;
        Some(open.file.clone())
    }

    fn insert(&mut self, id: u64, file: File) -> Arc<File> {
        while !self.open.is_empty() && self.open.len() >= self.capacity {
            self.close_least_recent();
        }
        self.clock += 1;
        let file = Arc::new(file);
        self.open.insert(id, OpenFile { file: file.clone(), last_used: self.clock });
        file
    }

    fn close_least_recent(&mut self) {
        if let Some(&id) = self.open.iter().min_by_key(|(_, open)| open.last_used).map(|(id, _)| id) {
            self.open.remove(&id);
        }
    }

    /// Other parts of the process use more descriptors than [`RESERVED`]: closes half of the files, and keeps no more
    /// from now on. False where none was open.
    fn close_half(&mut self) -> bool {
        let before = self.open.len();
        self.capacity = (before / 2).max(1);
        while self.open.len() > before / 2 {
            self.close_least_recent();
        }
        before > 0
    }
}

fn lock() -> MutexGuard<'static, OpenFiles> {
    OPEN_FILES.lock().unwrap_or_else(PoisonError::into_inner) // no code that could panic runs under the lock
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capacity_leaves_descriptors_for_the_rest() {
        assert_eq!([12, 300, 1024, 100_000].map(capacity_within), [6, 150, 768, 99_744]);
    }

    #[test]
    fn least_recently_used_file_is_closed() {
        let file = || tempfile::tempfile().unwrap();
        let mut files = OpenFiles { capacity: 2, ..OpenFiles::new() };
        files.insert(1, file());
        files.insert(2, file());
        assert!(files.touch(1).is_some());
        files.insert(3, file());
        assert!(files.touch(2).is_none() && files.touch(1).is_some() && files.touch(3).is_some());
        assert!(files.close_half() && files.open.len() == 1 && files.touch(3).is_some());
    }
}
