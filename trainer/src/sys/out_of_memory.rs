//! Recognises a panic that was caused by too little memory.

use super::memory::status_bytes;

/// What a user can lower when training runs out of memory.
pub const OOM_ADVICE: &str = "lower optim.batch_size, raise optim.accumulate, lower data.views or set run.precision=bf16; \
                              codinet-train CONFIG --find-batch finds the largest batch that fits";

/// Parts of the messages with which libtorch, cuBLAS, cuDNN, oneDNN and C++'s allocator report a failed allocation.
const CERTAIN: [&str; 7] = [
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "can't allocate memory",
    "not enough memory",
    "std::bad_alloc",
    "Cannot allocate memory",
];

/// Parts of oneDNN's messages for several failures, a failed allocation among them.
const POSSIBLE: [&str; 2] = ["could not create a primitive", "could not create a memory object"];

/// Whether a panic's message reports a failed allocation. A message that leaves it open counts if the process is near the limit
/// of its address space (`ulimit -v`).
pub fn is_out_of_memory(message: &str) -> bool {
    let contains_any = |parts: &[&str]| parts.iter().any(|part| message.contains(part));
    contains_any(&CERTAIN) || (contains_any(&POSSIBLE) && near_address_space_limit())
}

fn near_address_space_limit() -> bool {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let limit = limits.lines().find_map(|line| line.strip_prefix("Max address space"));
    let limit = limit.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    limit.is_some_and(|limit| status_bytes("VmPeak:") as f64 >= 0.9 * limit as f64)
}
