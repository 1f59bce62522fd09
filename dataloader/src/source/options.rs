//! Options of opening a data set.

use std::path::PathBuf;
use std::time::Duration;

/// Options of opening a dataset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Where copies of shards are kept on this machine; without it each sample is read from the store or file system.
    pub cache: Option<Cache>,
    /// Time limit of one read from a store, retries included.
    pub timeout: Duration,
    /// Whether to rebuild every index, even a valid one.
    pub rebuild_indices: bool,
}

impl Default for Options {
    /// No cache, 2 minutes, valid indices are used.
    fn default() -> Options {
        Options { cache: None, timeout: Duration::from_secs(120), rebuild_indices: false }
    }
}

/// A folder of whole shards, copied from stores and from other file systems than its own. All processes of a machine may
/// share it: each shard is fetched once, and the least recently used one is removed to make space.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cache {
    /// The folder, ideally on a local disk. It is created where needed, and must hold nothing else.
    pub folder: PathBuf,
    /// Limit of its size in bytes. A shard that doesn't fit is read where it lies.
    pub limit_bytes: u64,
}
