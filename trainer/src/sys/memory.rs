//! glibc's allocator as tensors need it. By default each large tensor is mapped anew and given back at once, and every
//! page of it is a fault: a sixth of a training step on a CPU. And how much memory there is, was needed, and what to do where
//! it does not suffice. What needs a GPU is untested: none has run it yet.
#![expect(unsafe_code, reason = "libtorch's C++ interface is called through C functions")]

use crate::env;
use crate::sys::native::expect;
use std::ffi::c_int;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use tch::Device;

unsafe extern "C" {
    fn codinet_device_memory(device: c_int, bytes: *mut i64) -> bool;
    fn codinet_device_memory_reset(device: c_int, release: bool) -> bool;
    fn codinet_host_memory_release();
}

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

/// What to lower where memory does not suffice.
pub const MEND: &str = "lower optim.batch_size, raise optim.accumulate, lower data.views or set run.precision=bf16; \
                        codinet-train CONFIG --find-batch finds the largest batch that fits";

/// The words of libtorch, cuBLAS, cuDNN, oneDNN and C++'s allocator for memory that they did not get.
const WORDS: [&str; 7] = [
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "can't allocate memory",
    "not enough memory",
    "std::bad_alloc",
    "Cannot allocate memory",
];

/// oneDNN's words for whatever kept it from its work, memory among it.
const PERHAPS: [&str; 2] = ["could not create a primitive", "could not create a memory object"];

/// Whether a panic's words tell that memory did not suffice; where they leave it open, whether the process stands at the
/// limit of its address space (`ulimit -v`).
pub fn ran_out(words: &str) -> bool {
    let said = |what: &[&str]| what.iter().any(|what| words.contains(what));
    said(&WORDS) || (said(&PERHAPS) && at_limit())
}

fn at_limit() -> bool {
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let limit = limits.lines().find_map(|line| line.strip_prefix("Max address space"));
    let limit = limit.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    limit.is_some_and(|limit| status("VmPeak:") as f64 >= 0.9 * limit as f64)
}

/// The most memory that was needed since the start, or since it was forgotten; in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Peak {
    /// On a GPU, tensors'; on a CPU the same as `held`.
    pub tensors: u64,
    /// What the process held: on a GPU with what its allocator keeps for later, on a CPU in RAM (VmHWM).
    pub held: u64,
}

/// This process's peak on `device`.
pub fn peak(device: Device) -> Peak {
    match of_gpu(device) {
        Some([tensors, held, ..]) => Peak { tensors, held },
        None => {
            let held = status("VmHWM:");
            Peak { tensors: held, held }
        }
    }
}

/// On a GPU: peaks count from here on. A CPU's does not go down, for what was freed is kept ([`tune`]).
pub fn forget_peak(device: Device) {
    reset_gpu(device, false);
}

/// Gives back what was freed, and peaks count from here on.
pub fn release(device: Device) {
    reset_gpu(device, true);
    if !device.is_cuda() {
        // SAFETY: glibc's malloc_trim, which may be called at any time.
        unsafe { codinet_host_memory_release() };
        let _ = fs::write("/proc/self/clear_refs", "5"); // where it is refused, peaks count on
    }
}

/// Bytes that this process may take on `device`: what it holds and what is free, on a CPU by the host and by the cgroups
/// that it is in, shared evenly by `ranks` processes.
pub fn available(device: Device, ranks: usize) -> u64 {
    if let Some([_, _, held, free]) = of_gpu(device) {
        return held + free;
    }
    let free = field(&fs::read_to_string("/proc/meminfo").unwrap_or_default(), "MemAvailable:");
    let group = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let group = group.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default().to_owned();
    let root = Path::new("/sys/fs/cgroup");
    let number = |path: &Path| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let folder = root.join(group);
    let groups = folder.ancestors().take_while(|folder| folder.starts_with(root)).filter_map(|folder| {
        Some(number(&folder.join("memory.max"))?.saturating_sub(number(&folder.join("memory.current"))?))
    });
    groups.chain([free]).min().unwrap_or(free) / ranks as u64 + status("VmRSS:")
}

/// The most that tensors have taken, the most that the allocator has held, what it holds, what is free beside it.
fn of_gpu(device: Device) -> Option<[u64; 4]> {
    let Device::Cuda(index) = device else { return None };
    let mut bytes = [0i64; 4];
    // SAFETY: room for the four numbers that are written; the result is checked.
    expect(unsafe { codinet_device_memory(index as c_int, bytes.as_mut_ptr()) }, "the GPU's memory");
    Some(bytes.map(|bytes| bytes.max(0) as u64))
}

fn reset_gpu(device: Device, release: bool) {
    if let Device::Cuda(index) = device {
        // SAFETY: no arguments but a number and a flag; the result is checked.
        expect(unsafe { codinet_device_memory_reset(index as c_int, release) }, "the GPU's memory");
    }
}

/// A line of /proc/self/status, in bytes.
fn status(name: &str) -> u64 {
    field(&fs::read_to_string("/proc/self/status").unwrap_or_default(), name)
}

/// `NAME  123 kB` in bytes; 0 where there is none.
fn field(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) << 10
}

/// Bytes as a person reads them.
pub fn gib(bytes: u64) -> String {
    format!("{:.2} GiB", bytes as f64 / f64::from(1 << 30))
}
