//! libtorch's messages: which report too little memory or a failed GPU, and which part of them is for users.

use super::memory::status_bytes;

/// What a user can lower when training runs out of memory.
pub const OOM_ADVICE: &str = "lower optim.batch_size, raise optim.accumulate, lower data.views or set run.precision=bf16; \
                              codinet-train CONFIG --find-batch finds the largest batch that fits";

/// Parts of the messages about a failed GPU, by libtorch, its libraries and the driver.
const GPU: [&str; 6] =
    ["CUDA error", "CUDA driver error", "cuDNN error", "CUDNN_STATUS", "CUBLAS_STATUS", "NCCL error"];

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

/// Whether a panic's message reports that a GPU, or a library that computes on it, has failed.
pub fn is_gpu_error(message: &str) -> bool {
    GPU.iter().any(|part| message.contains(part))
}

/// A panic's message without Rust's text before libtorch's, and without libtorch's advice and stack after it.
pub fn shorten(message: &str) -> &str {
    let own = ["CUDA out of memory", "DefaultCPUAllocator"];
    const ENDS: [&str; 5] =
        [" If reserved but", "\\n", " Exception raised", " Search for `", " CUDA kernel errors might"];
    let start = own.iter().chain(&GPU).filter_map(|start| message.find(start)).min().unwrap_or(0);
    let rest = &message[start..];
    let end = ENDS.iter().filter_map(|end| rest.find(end)).min().unwrap_or(rest.len());
    rest[..end].trim_end_matches('.')
}

#[cfg(test)]
mod tests {
    use super::*;

    /// libtorch 2.11's messages on a GPU, from its source.
    #[test]
    fn messages_lose_the_frames_of_rust_and_libtorch() {
        let memory = "called `Result::unwrap()` on an `Err` value: Torch(\"CUDA out of memory. Tried to allocate 20.00 MiB. \
                      GPU 0 has a total capacity of 79.11 GiB of which 2.00 MiB is free. If reserved but unallocated memory \
                      is large try setting PYTORCH_ALLOC_CONF\\nException raised from malloc\")";
        assert!(is_out_of_memory(memory));
        let short = "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.11 GiB of which 2.00 \
                     MiB is free";
        assert_eq!(shorten(memory), short);
        assert_eq!(shorten("std::bad_alloc"), "std::bad_alloc");
        let access = "called `Result::unwrap()` on an `Err` value: Torch(\"CUDA error: an illegal memory access was \
                      encountered\\nSearch for `cudaErrorIllegalAddress' in https://docs.nvidia.com\\nCUDA kernel errors \
                      might be asynchronously reported\")";
        assert!(is_gpu_error(access) && !is_out_of_memory(access));
        assert_eq!(shorten(access), "CUDA error: an illegal memory access was encountered");
        assert!(!is_gpu_error("index out of bounds: the len is 3 but the index is 7"));
    }
}
