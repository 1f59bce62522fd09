//! glibc's allocator as tensors need it. By default each large tensor is mapped anew and given back at once, and every
//! page of it is a fault: a sixth of a training step on a CPU.

use std::os::unix::process::CommandExt;
use std::process::Command;

/// Freed memory is kept, and lies on huge pages where the system has them.
const TUNABLES: &str = "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=1099511627776:\
                        glibc.malloc.top_pad=67108864:glibc.malloc.hugetlb=1";
const NAME: &str = "GLIBC_TUNABLES";

/// Starts this program anew, once, in place of itself, with these settings, which are read at a start alone; those that a
/// user has made of the allocator stay.
pub fn tune() {
    let set = std::env::var(NAME).unwrap_or_default();
    if set.contains("glibc.malloc.") {
        return;
    }
    let tunables = if set.is_empty() { TUNABLES.to_owned() } else { format!("{set}:{TUNABLES}") };
    let mut words = std::env::args_os();
    let (Some(name), Ok(program)) = (words.next(), std::env::current_exe()) else { return };
    let _ = Command::new(program).arg0(name).args(words).env(NAME, tunables).exec(); // where it fails: as it was
}
