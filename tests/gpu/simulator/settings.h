// The environment variables that control the simulator; docs/simulated_gpu.md describes them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

struct Settings {
    std::vector<int> gpus;      // the GPUs that this process sees: SIM_GPUS, limited by CUDA_VISIBLE_DEVICES
    size_t bytes_per_gpu;       // SIM_GPU_MB
    bool lazy_copies;           // not SIM_EAGER_COPIES: a copy to pinned memory arrives when the host waits for it
    bool poison;                // SIM_POISON: new memory holds NaN
    bool ignore_host_waits;     // SIM_IGNORE_HOST_WAITS: the host does not wait for events
    bool ignore_record_stream;  // SIM_IGNORE_RECORD_STREAM: the allocator ignores other streams that use a tensor
    std::string ignored_waits;  // SIM_IGNORE_WAITS: "default<3": the default stream does not wait for events of stream 3; "all"
    uint64_t good_copies;       // SIM_GOOD_COPIES=N: copies after the N-th fail, as on a lost GPU
    uint64_t good_collectives;  // SIM_NCCL_GOOD=N: what happens to NCCL's calls after the N-th …
    std::string nccl_fault;     // … SIM_NCCL_FAULT: error, hang or async
    int nccl_version;           // SIM_NCCL_VERSION, such as 22809
    std::string emulator;       // SIM_EMULATOR: the library that runs this project's own kernels
    std::string log, report;    // SIM_LOG, SIM_REPORT: every call; counts at the process's end
    std::string rank;           // of Open MPI, or "-"
};

const Settings &settings();
