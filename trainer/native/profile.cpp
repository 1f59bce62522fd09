// libtorch's profiler and the figures of its allocators, as C functions for `trainer/src/sys/span.rs` and
// `trainer/src/sys/memory.rs`. The paths for GPUs are untested: no machine with a GPU has run them yet.

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

// Starts to record every operation of libtorch on all threads.
bool codinet_trace_start(bool cuda) noexcept {
    return guarded([&] {
        torch::profiler::impl::ExperimentalConfig options;
        options.profile_all_threads = true;
        const torch::profiler::impl::ProfilerConfig config(torch::profiler::impl::ProfilerState::KINETO, false, false,
                                                           false, false, false, options);
        std::set<ActivityType> activities{ActivityType::CPU};
        if (cuda) activities.insert(ActivityType::CUDA);
        if (!cuda) setenv("KINETO_LOG_LEVEL", "99", 0);  // otherwise it warns that there is no GPU
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

// The GPUs' allocator; it has no devices before libtorch has initialised CUDA.
static c10::DeviceAllocator *gpu_allocator() {
    at::globalContext().lazyInitDevice(c10::DeviceType::CUDA);
    return at::getDeviceAllocator(c10::DeviceType::CUDA);
}

// Writes four numbers of bytes: the peak of tensors, the peak that the allocator held, what it holds, what the device has left.
bool codinet_memory_stats(int device, int64_t *bytes) noexcept {
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

// Restarts peaks; `release` also returns cached memory to the device.
bool codinet_memory_reset(int device, bool release) noexcept {
    return guarded([&] {
        auto *allocator = gpu_allocator();
        if (release) allocator->emptyCache();
        allocator->resetPeakStats(static_cast<c10::DeviceIndex>(device));
        return true;
    });
}

void codinet_host_memory_release() noexcept { malloc_trim(0); }

}  // extern "C"
