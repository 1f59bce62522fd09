//! How a data set is opened.

use std::path::PathBuf;
use std::time::Duration;

/// How a dataset is opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Where shards from stores are kept on this machine; without it each sample is read from the store.
    pub cache: Option<Cache>,
    /// The longest that one read from a store may take, with all that is tried again in it.
    pub timeout: Duration,
    /// Whether to make every index anew, even one that fits.
    pub rebuild_indices: bool,
}

impl Default for Options {
    /// No cache, 2 minutes, indices that fit are kept.
    fn default() -> Options {
        Options { cache: None, timeout: Duration::from_secs(120), rebuild_indices: false }
    }
}

/// A folder that holds whole shards from stores. All processes of a machine may share it: each shard is fetched
/// once, and the one that was read longest ago makes room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cache {
    /// The folder, best on a local disk; it is made where needed, and holds nothing else.
    pub folder: PathBuf,
    /// Bytes that it may take. A shard for which there is no room is read from the store.
    pub limit_bytes: u64,
}
