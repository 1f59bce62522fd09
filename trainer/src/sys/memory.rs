//! How much memory a process needs, holds and may take, on a GPU and on the host. The paths for GPUs are untested: no machine
//! with a GPU has run them yet.
#![expect(unsafe_code, reason = "libtorch's C++ interface is called through C functions")]

use super::torch::panic_on_error;
use std::ffi::c_int;
use std::fs;
use std::path::Path;
use tch::Device;

unsafe extern "C" {
    fn codinet_memory_stats(device: c_int, bytes: *mut i64) -> bool;
    fn codinet_memory_reset(device: c_int, release: bool) -> bool;
    fn codinet_host_memory_release();
}

/// The largest amount of memory in use since the start or the last reset, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeakMemory {
    /// On a GPU, tensors; on a CPU the same as `held`.
    pub tensors: u64,
    /// On a GPU, tensors and what libtorch's allocator keeps for reuse; on a CPU, the process's RAM (VmHWM).
    pub held: u64,
}

/// This process's peak on `device`.
pub fn peak_memory(device: Device) -> PeakMemory {
    match gpu_memory(device) {
        Some(GpuMemory { peak_tensors, peak_held, .. }) => {
            PeakMemory { tensors: peak_tensors, held: peak_held }
        }
        None => {
            let held = status_bytes("VmHWM:");
            PeakMemory { tensors: held, held }
        }
    }
}

/// What this process holds on `device` now, in bytes: on a GPU, tensors and what libtorch's allocator keeps for reuse; on a CPU,
/// RAM (VmRSS).
pub fn held_memory(device: Device) -> u64 {
    held_bytes(gpu_memory(device))
}

fn held_bytes(gpu: Option<GpuMemory>) -> u64 {
    gpu.map_or_else(|| status_bytes("VmRSS:"), |gpu| gpu.held)
}

/// Restarts a GPU's peaks. A CPU's peak cannot fall, because freed memory stays with the process ([`super::restart_with_settings`]).
pub fn reset_peak_memory(device: Device) {
    reset_gpu(device, false);
}

/// Returns freed memory to the device or the system, and restarts peaks.
pub fn release_memory(device: Device) {
    reset_gpu(device, true);
    if !device.is_cuda() {
        // SAFETY: glibc's malloc_trim, which may be called at any time.
        unsafe { codinet_host_memory_release() };
        let _ = fs::write("/proc/self/clear_refs", "5"); // where the kernel refuses it, the peak is not restarted
    }
}

/// Bytes that this process may use on `device`: those it holds and those that are free. On a CPU free memory is limited by the
/// host and by the process's cgroups, and divided evenly among `ranks` processes.
pub fn available_memory(device: Device, ranks: usize) -> u64 {
    if let Some(GpuMemory { held, free, .. }) = gpu_memory(device) {
        return held + free;
    }
    let free = field_bytes(&fs::read_to_string("/proc/meminfo").unwrap_or_default(), "MemAvailable:");
    let group = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let group = group.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default().to_owned();
    let root = Path::new("/sys/fs/cgroup");
    let number = |path: &Path| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let folder = root.join(group);
    let groups = folder.ancestors().take_while(|folder| folder.starts_with(root)).filter_map(|folder| {
        Some(number(&folder.join("memory.max"))?.saturating_sub(number(&folder.join("memory.current"))?))
    });
    groups.chain([free]).min().unwrap_or(free) / ranks as u64 + status_bytes("VmRSS:")
}

/// `bytes` as `1.25 GiB`.
pub fn format_gib(bytes: u64) -> String {
    format!("{:.2} GiB", bytes as f64 / f64::from(1 << 30))
}

/// A GPU's memory, in bytes.
struct GpuMemory {
    /// The peak of tensors.
    peak_tensors: u64,
    /// The peak of what libtorch's allocator holds.
    peak_held: u64,
    /// What libtorch's allocator holds.
    held: u64,
    /// What the device has left.
    free: u64,
}

impl GpuMemory {
    /// Of the numbers of `codinet_memory_stats`.
    fn new(bytes: [i64; 4]) -> Self {
        let [peak_tensors, peak_held, held, free] = bytes.map(|bytes| bytes.max(0) as u64);
        Self { peak_tensors, peak_held, held, free }
    }
}

/// `None` on a CPU.
fn gpu_memory(device: Device) -> Option<GpuMemory> {
    let Device::Cuda(index) = device else { return None };
    let mut bytes = [0i64; 4];
    // SAFETY: room for the four numbers that are written; the result is checked.
    let read = unsafe { codinet_memory_stats(index as c_int, bytes.as_mut_ptr()) };
    panic_on_error(read, "reading the GPU's memory");
    Some(GpuMemory::new(bytes))
}

fn reset_gpu(device: Device, release: bool) {
    if let Device::Cuda(index) = device {
        // SAFETY: a number and a flag; the result is checked.
        let reset = unsafe { codinet_memory_reset(index as c_int, release) };
        panic_on_error(reset, "resetting the GPU's memory peaks");
    }
}

/// A line of /proc/self/status, in bytes.
pub(super) fn status_bytes(name: &str) -> u64 {
    field_bytes(&fs::read_to_string("/proc/self/status").unwrap_or_default(), name)
}

/// The line `NAME  123 kB` of `text`, in bytes; 0 if it has none.
fn field_bytes(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) << 10
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn held_memory_is_the_allocators_on_a_gpu_and_ram_on_a_cpu() {
        let gpu = GpuMemory::new([3 << 30, 5 << 30, 4 << 30, -1]);
        assert_eq!(gpu.free, 0);
        assert_eq!(held_bytes(Some(gpu)), 4 << 30);
        let ram = held_memory(Device::Cpu);
        assert!(ram > 1 << 20 && ram <= peak_memory(Device::Cpu).held);
    }
}
