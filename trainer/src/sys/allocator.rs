//! glibc's allocator, tuned for tensors. By default it maps each large tensor newly and unmaps it at once, and the page faults
//! take a sixth of a training step on a CPU.

use crate::env;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

/// Freed memory stays with the process, which therefore does not shrink, and huge pages are used where the system has them.
const TUNABLES: &str = "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=1099511627776:\
                        glibc.malloc.top_pad=67108864:glibc.malloc.hugetlb=1";

/// Restarts this program once, in the same process, with [`TUNABLES`]: glibc reads them only at start-up. Does nothing if the
/// user has set any of malloc's tunables.
pub fn tune_allocator() {
    let Ok(set) = env::raw(env::GLIBC_TUNABLES).unwrap_or_default().into_string() else { return };
    if set.contains("glibc.malloc.") {
        return;
    }
    let tunables = if set.is_empty() { TUNABLES.to_owned() } else { format!("{set}:{TUNABLES}") };
    let mut args = std::env::args_os();
    let (Some(name), Ok(program)) = (args.next(), std::env::current_exe()) else { return };
    if Path::new(&name).file_name() != program.file_name() {
        return; // run by a loader or under another name, so a restart might run something else
    }
    let mut command = Command::new(program);
    command.arg0(name).args(args).env(env::GLIBC_TUNABLES.name, tunables);
    let _ = command.exec(); // returns only on failure: the program then goes on with the default allocator
}
