// libtorch's profiler, and what its allocators know, as C functions. `trainer/src/ranges.rs` and `trainer/src/memory.rs` are
// their only callers. What needs a GPU is untested: none has run it yet.

#include <ATen/Context.h>
#include <ATen/DeviceAccelerator.h>
#include <ATen/record_function.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <malloc.h>
#include <stdlib.h>
#include <torch/csrc/autograd/profiler_kineto.h>
#include <torch/csrc/profiler/orchestration/observer.h>

#include <memory>

#include "guarded.h"

namespace kineto = torch::autograd::profiler;
using torch::profiler::impl::ActivityType;

extern "C" {

// From here on everything that libtorch does is recorded, on all threads.
bool codinet_trace_start(bool cuda) noexcept {
    return guarded([&] {
        torch::profiler::impl::ExperimentalConfig options;
        options.profile_all_threads = true;
        const torch::profiler::impl::ProfilerConfig config(torch::profiler::impl::ProfilerState::KINETO, false, false,
                                                           false, false, false, options);
        std::set<ActivityType> activities{ActivityType::CPU};
        if (cuda) activities.insert(ActivityType::CUDA);
        if (!cuda) setenv("KINETO_LOG_LEVEL", "99", 0);  // or it complains that there is no GPU
        kineto::prepareProfiler(config, activities);
        kineto::enableProfiler(config, activities);
        return true;
    });
}

bool codinet_trace_save(const char *path) noexcept {
    return guarded([&] {
        kineto::disableProfiler()->save(path);
        return true;
    });
}

void *codinet_range_enter(const char *name) noexcept {
    return guarded([&]() -> void * {
        auto range = std::make_unique<at::RecordFunction>(at::RecordScope::USER_SCOPE);
        range->before(std::string(name));
        return range.release();
    });
}

void codinet_range_leave(void *range) noexcept { delete static_cast<at::RecordFunction *>(range); }

// The allocator of GPUs, which knows none of them before libtorch has met CUDA.
static c10::DeviceAllocator *gpu_allocator() {
    at::globalContext().lazyInitDevice(c10::DeviceType::CUDA);
    return at::getDeviceAllocator(c10::DeviceType::CUDA);
}

// Bytes: the most that tensors have taken, the most that the allocator has held, what it holds, what is free beside it.
bool codinet_device_memory(int device, int64_t *bytes) noexcept {
    return guarded([&] {
        const auto index = static_cast<c10::DeviceIndex>(device);
        auto *allocator = gpu_allocator();
        const auto stats = allocator->getDeviceStats(index);
        bytes[0] = stats.allocated_bytes[0].peak;
        bytes[1] = stats.reserved_bytes[0].peak;
        bytes[2] = stats.reserved_bytes[0].current;
        bytes[3] = static_cast<int64_t>(allocator->getMemoryInfo(index).first);
        return true;
    });
}

// Forgets peaks; `release` also gives back what is kept for later.
bool codinet_device_memory_reset(int device, bool release) noexcept {
    return guarded([&] {
        auto *allocator = gpu_allocator();
        if (release) allocator->emptyCache();
        allocator->resetPeakStats(static_cast<c10::DeviceIndex>(device));
        return true;
    });
}

void codinet_host_memory_release() noexcept { malloc_trim(0); }

}  // extern "C"
