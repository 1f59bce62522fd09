//! glibc's allocator as tensors need it. By default each large tensor is mapped anew and given back at once, and every
//! page of it is a fault: a sixth of a training step on a CPU.

use crate::env;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

/// Freed memory is kept, so that a process stays as large as it once was, and lies on huge pages where the system has them.
const TUNABLES: &str = "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=1099511627776:\
                        glibc.malloc.top_pad=67108864:glibc.malloc.hugetlb=1";

/// Starts this program anew, once, in place of itself, with these settings, which are read at a start alone; those that a
/// user has made of the allocator stay.
pub fn tune() {
    let Ok(set) = env::raw(env::GLIBC_TUNABLES).unwrap_or_default().into_string() else { return };
    if set.contains("glibc.malloc.") {
        return;
    }
    let tunables = if set.is_empty() { TUNABLES.to_owned() } else { format!("{set}:{TUNABLES}") };
    let mut words = std::env::args_os();
    let (Some(name), Ok(program)) = (words.next(), std::env::current_exe()) else { return };
    if Path::new(&name).file_name() != program.file_name() {
        return; // started by a loader or under another name: what would start then is not known
    }
    let _ = Command::new(program).arg0(name).args(words).env(env::GLIBC_TUNABLES.name, tunables).exec(); // where it fails: as it was
}
