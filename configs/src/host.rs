//! What Linux reports about this machine.

use std::fs;

/// The machine's name; empty if the system does not report it.
pub fn name() -> String {
    fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned()
}

/// The hardware threads that this process may run on, as a list such as `0-3,8`.
pub fn allowed_cpus() -> String {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    allowed.unwrap_or_default().trim().to_owned()
}

/// How many GPUs the NVIDIA driver lists.
pub fn installed_gpus() -> usize {
    fs::read_dir("/proc/driver/nvidia/gpus").map_or(0, |gpus| gpus.count())
}
