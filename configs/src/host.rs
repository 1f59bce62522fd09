//! What Linux reports about this machine.

use std::fs;
use std::process::Command;

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

/// How many GPUs the NVIDIA driver lists: in /proc or, where containers and WSL 2 hide that, by nvidia-smi.
pub fn installed_gpus() -> usize {
    if let Ok(gpus) = fs::read_dir("/proc/driver/nvidia/gpus") {
        return gpus.count();
    }
    let list = Command::new("nvidia-smi").arg("--list-gpus").output().map(|output| output.stdout);
    String::from_utf8_lossy(&list.unwrap_or_default()).lines().filter(|line| line.starts_with("GPU ")).count()
}

/// Whether this process ignores signal `number`. Before a handler is installed: whether its parent made it so, as nohup does.
pub fn ignores_signal(number: i32) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (number - 1) & 1 == 1)
}

/// How many processes this machine has killed since it started because memory ran out.
pub fn out_of_memory_kills() -> u64 {
    let counters = fs::read_to_string("/proc/vmstat").unwrap_or_default();
    let count = counters.lines().find_map(|line| line.strip_prefix("oom_kill ")?.parse().ok());
    count.unwrap_or(0)
}
