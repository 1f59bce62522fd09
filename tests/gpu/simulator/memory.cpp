// Device memory and pinned memory, both the host's, and the detector of races between streams.
#include <sys/mman.h>

#include <cstdlib>
#include <cstring>

#include "state.h"

namespace {

struct Block {
    size_t bytes;
    int device;
};

// The last accesses of a range of device memory that no access has cut.
struct Range {
    struct Access {
        uint64_t time = 0;
        std::string what;
    };
    uintptr_t end;
    Stream *writer = nullptr;
    Access write = {};
    std::map<Stream *, Access> reads = {};  // since the write
};

struct Memory {
    std::map<uintptr_t, Block> device, pinned;  // by address
    std::map<int, size_t> used;                 // bytes of each GPU
    std::map<uintptr_t, Range> ranges;          // by start; they do not overlap
};

Memory &memory() {
    static auto *const once = new Memory;
    return *once;
}

uintptr_t number(const void *address) { return reinterpret_cast<uintptr_t>(address); }

const Block *find_block(const std::map<uintptr_t, Block> &blocks, const void *address) {
    auto after = blocks.upper_bound(number(address));
    if (after == blocks.begin()) return nullptr;
    const auto &[start, block] = *--after;
    return number(address) < start + block.bytes ? &block : nullptr;
}

// Cuts the range that contains `at`, if any, in two.
void cut_range(uintptr_t at) {
    auto after = memory().ranges.upper_bound(at);
    if (after == memory().ranges.begin()) return;
    auto &[start, range] = *--after;
    if (start < at && at < range.end) {
        memory().ranges[at] = range;
        range.end = at;
    }
}

void forget_ranges(uintptr_t from, uintptr_t to) {
    cut_range(from);
    cut_range(to);
    auto &ranges = memory().ranges;
    ranges.erase(ranges.lower_bound(from), ranges.lower_bound(to));
}

void check_order(const Stream *stream, const std::string &what, const char *verb, const Stream *earlier, const Range::Access &access) {
    if (!earlier || earlier == stream || stream->clock.covers(earlier->id, access.time)) return;
    complain("race", "%s on stream %s %s %s on stream %s, and nothing orders them", what.c_str(), stream->name.c_str(), verb,
             access.what.c_str(), earlier->name.c_str());
}

}  // namespace

int device_of(const void *address) {
    const Block *block = find_block(memory().device, address);
    return block ? block->device : -1;
}

bool is_pinned(const void *address) { return find_block(memory().pinned, address) != nullptr; }

void access_memory(Stream *stream, uint64_t time, const void *address, size_t bytes, bool writes, const std::string &what) {
    if (bytes == 0 || !address) return;
    const int device = device_of(address);
    if (device < 0) return complain("host memory", "%s on a GPU uses %zu bytes of the host at %p", what.c_str(), bytes, address);
    if (device != stream->device)
        complain("other GPU's memory", "%s on GPU %d uses memory of GPU %d", what.c_str(), stream->device, device);
    const uintptr_t end = number(address) + bytes;
    cut_range(number(address));
    cut_range(end);
    auto &ranges = memory().ranges;
    auto next = ranges.lower_bound(number(address));
    for (uintptr_t at = number(address); at < end;) {
        if (next == ranges.end() || next->first > at) {
            const uintptr_t gap_end = next == ranges.end() ? end : std::min(end, next->first);
            next = ranges.emplace_hint(next, at, Range{gap_end});
        }
        Range &range = next->second;
        check_order(stream, what, writes ? "overwrites what was written by" : "reads what is written by", range.writer, range.write);
        if (writes) {
            for (const auto &[reader, access] : range.reads)
                check_order(stream, what, "overwrites what is read by", reader, access);
            range.reads.clear();
            range.writer = stream;
            range.write = {time, what};
        } else {
            range.reads[stream] = {time, what};
        }
        at = range.end;
        ++next;
    }
}

EXPORTED cudaError_t cudaMalloc(void **address, size_t bytes) {
    LOCK_STATE;
    use_context("cudaMalloc");
    count("cudaMalloc");
    log_call("cudaMalloc of %zu bytes", bytes);
    size_t &used = memory().used[current_device];
    if (used + bytes > settings().bytes_per_gpu) return fail(cudaErrorMemoryAllocation, "cudaMalloc");
    void *mapped = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapped == MAP_FAILED) return fail(cudaErrorMemoryAllocation, "cudaMalloc");
    if (settings().poison) std::memset(mapped, 0xff, bytes);
    memory().device[number(mapped)] = {bytes, current_device};
    used += bytes;
    count_most("most bytes of GPU " + std::to_string(current_device), used);
    *address = mapped;
    return cudaSuccess;
}

EXPORTED cudaError_t cudaFree(void *address) {
    LOCK_STATE;
    use_context("cudaFree");
    if (!address) return cudaSuccess;
    auto found = memory().device.find(number(address));
    if (found == memory().device.end()) return fail(cudaErrorInvalidValue, "cudaFree");
    const auto [start, block] = *found;
    count("wait: cudaFree");
    log_call("wait: cudaFree");
    host_learns_device(block.device);
    forget_ranges(start, start + block.bytes);
    memory().used[block.device] -= block.bytes;
    memory().device.erase(found);
    munmap(address, block.bytes);
    return cudaSuccess;
}

EXPORTED cudaError_t cudaMallocAsync(void **address, size_t bytes, cudaStream_t) { return cudaMalloc(address, bytes); }

EXPORTED cudaError_t cudaFreeAsync(void *address, cudaStream_t) { return cudaFree(address); }

EXPORTED cudaError_t cudaMemGetInfo(size_t *free, size_t *total) {
    LOCK_STATE;
    use_context("cudaMemGetInfo");
    *total = settings().bytes_per_gpu;
    *free = *total - memory().used[current_device];
    return cudaSuccess;
}

EXPORTED cudaError_t cudaHostAlloc(void **address, size_t bytes, unsigned) {
    LOCK_STATE;
    use_context("cudaHostAlloc");
    count("cudaHostAlloc");
    log_call("cudaHostAlloc of %zu bytes", bytes);
    constexpr size_t PAGE = 4096;
    *address = std::aligned_alloc(PAGE, (bytes + PAGE - 1) / PAGE * PAGE);
    memory().pinned[number(*address)] = {bytes, current_device};
    return cudaSuccess;
}

EXPORTED cudaError_t cudaFreeHost(void *address) {
    LOCK_STATE;
    auto found = memory().pinned.find(number(address));
    if (found == memory().pinned.end()) return fail(cudaErrorInvalidValue, "cudaFreeHost");
    check_no_copy_in_flight(found->first, found->first + found->second.bytes);
    memory().pinned.erase(found);
    std::free(address);
    return cudaSuccess;
}

EXPORTED cudaError_t cudaHostRegister(void *address, size_t bytes, unsigned) {
    LOCK_STATE;
    count("cudaHostRegister");
    memory().pinned[number(address)] = {bytes, current_device};
    return cudaSuccess;
}

EXPORTED cudaError_t cudaHostUnregister(void *address) {
    LOCK_STATE;
    memory().pinned.erase(number(address));
    return cudaSuccess;
}

EXPORTED cudaError_t cudaPointerGetAttributes(cudaPointerAttributes *attributes, const void *address) {
    LOCK_STATE;
    std::memset(attributes, 0, sizeof *attributes);
    attributes->type = cudaMemoryTypeUnregistered;
    attributes->device = -1;
    if (const Block *block = find_block(memory().device, address)) {
        attributes->type = cudaMemoryTypeDevice;
        attributes->device = block->device;
        attributes->devicePointer = const_cast<void *>(address);
    } else if (const Block *block = find_block(memory().pinned, address)) {
        attributes->type = cudaMemoryTypeHost;
        attributes->device = block->device;
        attributes->devicePointer = attributes->hostPointer = const_cast<void *>(address);
    }
    return cudaSuccess;
}
