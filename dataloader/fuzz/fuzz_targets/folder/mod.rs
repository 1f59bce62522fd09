//! Where files to be read are written.

use std::path::PathBuf;
use std::sync::LazyLock;

/// A folder of this process alone; in memory where the system has such a place.
pub static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
    let shared = PathBuf::from("/dev/shm");
    let parent = if shared.is_dir() { shared } else { std::env::temp_dir() };
    let folder = parent.join(format!("codinet-fuzz-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder can be made");
    folder
});
