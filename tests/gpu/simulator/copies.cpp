// Copies between host and device. A copy to pinned memory arrives when the host has waited for it; until then the destination holds
// NaN. The source of a copy from pinned memory must not change until the host has waited.
#include <cstring>
#include <list>

#include "state.h"

namespace {

struct ToHost {
    char *to;
    std::vector<char> bytes;
    size_t stream;
    uint64_t time;
};

struct ToDevice {
    const char *from;
    size_t bytes;
    uint64_t hash;
    size_t stream;
    uint64_t time;
};

struct InFlight {
    std::list<ToHost> to_host;
    std::list<ToDevice> to_device;
};

InFlight &in_flight() {
    static auto *const once = new InFlight;
    return *once;
}

// FNV-1a.
uint64_t hash(const char *bytes, size_t n) {
    uint64_t value = 1469598103934665603ull;
    for (size_t i = 0; i < n; i++) value = (value ^ static_cast<unsigned char>(bytes[i])) * 1099511628211ull;
    return value;
}

std::string describe(const void *to, const void *from) {
    const bool to_device = device_of(to) >= 0;
    const bool from_device = device_of(from) >= 0;
    if (to_device && from_device) return "device to device";
    if (to_device) return is_pinned(from) ? "pinned to device" : "pageable to device";
    if (from_device) return is_pinned(to) ? "device to pinned" : "device to pageable";
    return "host to host";
}

cudaMemcpyKind direction(const void *to, const void *from) {
    if (device_of(to) >= 0) return device_of(from) >= 0 ? cudaMemcpyDeviceToDevice : cudaMemcpyHostToDevice;
    return device_of(from) >= 0 ? cudaMemcpyDeviceToHost : cudaMemcpyHostToHost;
}

cudaError_t copy(void *to, const void *from, size_t bytes, cudaMemcpyKind kind, cudaStream_t handle, bool asynchronous) {
    LOCK_STATE;
    use_context("cudaMemcpy");
    static uint64_t copies = 0;
    if (++copies > settings().good_copies) return fail(cudaErrorLaunchFailure, "cudaMemcpy");
    Stream *stream = find_stream(handle);
    if (!stream) return fail(cudaErrorInvalidResourceHandle, "cudaMemcpy");
    const std::string what = "copy, " + describe(to, from);
    const cudaMemcpyKind actual = direction(to, from);
    if (kind != cudaMemcpyDefault && kind != actual) complain("direction of a copy", "%d, but it is %s", kind, what.c_str());
    const uint64_t time = enqueue(stream);
    count(what);
    count("bytes, " + describe(to, from), bytes);
    log_call("%s: %zu bytes on stream %s", what.c_str(), bytes, stream->name.c_str());
    if (device_of(from) >= 0) access_memory(stream, time, from, bytes, false, what);
    if (device_of(to) >= 0) access_memory(stream, time, to, bytes, true, what);
    if (asynchronous && actual == cudaMemcpyDeviceToHost && is_pinned(to) && settings().lazy_copies) {
        const char *first = static_cast<const char *>(from);
        in_flight().to_host.push_back({static_cast<char *>(to), {first, first + bytes}, stream->id, time});
        std::memset(to, 0xff, bytes);
        return cudaSuccess;
    }
    std::memcpy(to, from, bytes);
    if (asynchronous && actual == cudaMemcpyHostToDevice && is_pinned(from)) {
        const char *first = static_cast<const char *>(from);
        in_flight().to_device.push_back({first, bytes, hash(first, bytes), stream->id, time});
    }
    const bool waits = !asynchronous || (actual == cudaMemcpyDeviceToHost && !is_pinned(to));
    if (waits) {
        count("wait: " + what);
        log_call("wait: %s", what.c_str());
        host_learns(stream->clock);
    }
    return cudaSuccess;
}

bool overlaps(const char *address, uintptr_t from, uintptr_t to) {
    const auto at = reinterpret_cast<uintptr_t>(address);
    return from <= at && at < to;
}

}  // namespace

void finish_copies() {
    in_flight().to_host.remove_if([](const ToHost &copy) {
        if (!host_knows(copy.stream, copy.time)) return false;
        std::memcpy(copy.to, copy.bytes.data(), copy.bytes.size());
        return true;
    });
    in_flight().to_device.remove_if([](const ToDevice &copy) {
        if (!host_knows(copy.stream, copy.time)) return false;
        if (hash(copy.from, copy.bytes) != copy.hash)
            complain("changed source", "%zu pinned bytes changed while a copy may have read them", copy.bytes);
        return true;
    });
}

void check_no_copy_in_flight(uintptr_t from, uintptr_t to) {
    bool used = false;
    for (const ToHost &copy : in_flight().to_host) used |= overlaps(copy.to, from, to);
    for (const ToDevice &copy : in_flight().to_device) used |= overlaps(copy.from, from, to);
    if (used) complain("freed pinned memory", "a copy is in flight");
}

size_t copies_in_flight() { return in_flight().to_host.size() + in_flight().to_device.size(); }

EXPORTED cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, cudaMemcpyKind kind) {
    return copy(to, from, bytes, kind, nullptr, false);
}

EXPORTED cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
    return copy(to, from, bytes, kind, stream, true);
}

EXPORTED cudaError_t cudaMemcpyPeerAsync(void *to, int, const void *from, int, size_t bytes, cudaStream_t stream) {
    return copy(to, from, bytes, cudaMemcpyDefault, stream, true);
}

EXPORTED cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t handle) {
    LOCK_STATE;
    Stream *stream = find_stream(handle);
    if (!stream) return fail(cudaErrorInvalidResourceHandle, "cudaMemsetAsync");
    count("cudaMemset");
    log_call("cudaMemset of %zu bytes on stream %s", bytes, stream->name.c_str());
    access_memory(stream, enqueue(stream), to, bytes, true, "cudaMemset");
    std::memset(to, value, bytes);
    return cudaSuccess;
}

EXPORTED cudaError_t cudaMemset(void *to, int value, size_t bytes) { return cudaMemsetAsync(to, value, bytes, nullptr); }
