//! The folder of the files that targets read.

use std::path::PathBuf;
use std::sync::LazyLock;

/// A folder that only this process uses; in memory if possible.
pub static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
    let shared = PathBuf::from("/dev/shm");
    let parent = if shared.is_dir() { shared } else { std::env::temp_dir() };
    let folder = parent.join(format!("codinet-fuzz-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder can be made");
    folder
});
