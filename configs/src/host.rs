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

/// How many hardware threads this process may use.
pub fn usable_cpu_count() -> usize {
    std::thread::available_parallelism().map_or(1, |count| count.get())
}

/// How many hardware threads the machine has.
pub fn cpu_count() -> usize {
    let processors = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    processors.lines().filter(|line| line.starts_with("processor")).count()
}

/// How many GPUs the NVIDIA driver lists.
pub fn installed_gpus() -> usize {
    fs::read_dir("/proc/driver/nvidia/gpus").map_or(0, |gpus| gpus.count())
}
