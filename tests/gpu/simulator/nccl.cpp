// libnccl.so.2 for ranks on one machine, which meet in shared memory. Ranks add in their order, so results are those of MPI. Every
// rank's call must have the same operation, type, count and root. Unlike the real library's calls, these return when the
// collective is over.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstring>

#include "settings.h"
#include "simulator.h"

#define EXPORTED extern "C" __attribute__((visibility("default")))

extern "C" int cudaGetDevice(int *device);

namespace {

// Codes and types of nccl.h.
enum Result { SUCCESS = 0, UNHANDLED_CUDA_ERROR = 1, SYSTEM_ERROR = 2, INTERNAL_ERROR = 3, INVALID_ARGUMENT = 4, INVALID_USAGE = 5, REMOTE_ERROR = 6 };
enum Type { INT8 = 0, UINT8 = 1, INT32 = 2, UINT32 = 3, INT64 = 4, UINT64 = 5, FLOAT16 = 6, FLOAT32 = 7, FLOAT64 = 8, BFLOAT16 = 9 };
constexpr int SUM = 0;
enum Kind { ALL_REDUCE, ALL_GATHER, BROADCAST };

constexpr size_t CHUNK = 4 << 20;
constexpr int MOST_RANKS = 8;
constexpr int FAULTY_RANK = 1;
constexpr int SPINS = 50;                      // before a waiting rank sleeps
constexpr useconds_t SLEEP = 50;               // µs
constexpr uint64_t PATIENCE = 100'000'000;     // µs

struct Call {
    int kind, type, reduction, root;
    uint64_t count;
    bool operator==(const Call &other) const { return std::memcmp(this, &other, sizeof *this) == 0; }
};

struct Shared {
    std::atomic<uint64_t> arrived;
    Call calls[MOST_RANKS];
    char data[MOST_RANKS][CHUNK];
};

struct Communicator {
    Shared *shared;
    int rank, ranks, device;
    uint64_t barriers = 0;
    uint64_t calls = 0;
    bool aborted = false;
};

// Whether all ranks came.
bool barrier(Communicator *comm) {
    const uint64_t target = ++comm->barriers * comm->ranks;
    comm->shared->arrived.fetch_add(1);
    for (uint64_t spins = 0; comm->shared->arrived.load() < target; spins++) {
        if (spins > SPINS) usleep(SLEEP);
        if (spins * SLEEP > PATIENCE) return false;
    }
    return true;
}

size_t bytes_of(int type) {
    switch (type) {
        case INT8: case UINT8: return 1;
        case FLOAT16: case BFLOAT16: return 2;
        case INT32: case UINT32: case FLOAT32: return 4;
        case INT64: case UINT64: case FLOAT64: return 8;
        default: return 0;
    }
}

float to_float(uint16_t bfloat) {
    const uint32_t bits = static_cast<uint32_t>(bfloat) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// To the nearest, ties to even.
uint16_t to_bfloat(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<uint16_t>(bits >> 16 | 64);
    return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

template <typename T> void add_ranks(const Communicator *comm, void *to, size_t count) {
    for (size_t i = 0; i < count; i++) {
        T sum = 0;
        for (int rank = 0; rank < comm->ranks; rank++) sum += reinterpret_cast<const T *>(comm->shared->data[rank])[i];
        static_cast<T *>(to)[i] = sum;
    }
}

void add_ranks_of_bfloat(const Communicator *comm, void *to, size_t count) {
    for (size_t i = 0; i < count; i++) {
        float sum = 0;
        for (int rank = 0; rank < comm->ranks; rank++) sum += to_float(reinterpret_cast<const uint16_t *>(comm->shared->data[rank])[i]);
        static_cast<uint16_t *>(to)[i] = to_bfloat(sum);
    }
}

// Combines the ranks' chunks at offset `at` into `to`.
Result combine(const Communicator *comm, const Call &call, char *to, size_t at, size_t bytes) {
    const size_t element = bytes_of(call.type);
    if (call.kind == BROADCAST) {
        std::memcpy(to + at, comm->shared->data[call.root], bytes);
    } else if (call.kind == ALL_GATHER) {
        for (int rank = 0; rank < comm->ranks; rank++) std::memcpy(to + rank * call.count * element + at, comm->shared->data[rank], bytes);
    } else if (call.reduction != SUM) {
        simulator_complain("NCCL", "only sums are simulated");
        return INVALID_ARGUMENT;
    } else if (call.type == FLOAT32) {
        add_ranks<float>(comm, to + at, bytes / element);
    } else if (call.type == FLOAT64) {
        add_ranks<double>(comm, to + at, bytes / element);
    } else if (call.type == BFLOAT16) {
        add_ranks_of_bfloat(comm, to + at, bytes / element);
    } else {
        simulator_complain("NCCL", "no sum of this type");
        return INVALID_ARGUMENT;
    }
    return SUCCESS;
}

// What the host learns at once of a wrong call.
Result check_arguments(const Communicator *comm, const Call &call, const void *from, const void *to, void *stream) {
    if (bytes_of(call.type) == 0) {
        simulator_complain("NCCL", "unknown type");
        return INVALID_ARGUMENT;
    }
    int current;
    cudaGetDevice(&current);
    if (current != comm->device) simulator_complain("NCCL", "the thread's current device is not the communicator's");
    if (simulator_device_of(from) != comm->device || simulator_device_of(to) != comm->device) {
        simulator_complain("NCCL", "memory of another device");
        return INVALID_ARGUMENT;
    }
    if (simulator_device_of_stream(stream) != comm->device) simulator_complain("NCCL", "stream of another device");
    return SUCCESS;
}

bool fault_is(const Communicator *comm, const char *fault) {
    return comm->calls > settings().good_collectives && settings().nccl_fault == fault;
}

Result run(Communicator *comm, const Call &call, const void *from, void *to, void *stream, const char *name) {
    if (const Result wrong = check_arguments(comm, call, from, to, stream)) return wrong;
    const size_t bytes = call.count * bytes_of(call.type);
    const MemoryRange ranges[]{{from, bytes, false}, {to, call.kind == ALL_GATHER ? bytes * comm->ranks : bytes, true}};
    simulator_run(comm->device, stream, name, ranges, 2);
    comm->calls++;
    if (fault_is(comm, "error") && comm->rank == FAULTY_RANK) return UNHANDLED_CUDA_ERROR;
    if (fault_is(comm, "hang") && comm->rank == FAULTY_RANK)
        for (;;) sleep(1);
    if (fault_is(comm, "hang") || fault_is(comm, "async")) {  // the call succeeds, its work never ends
        simulator_hang(stream);
        return SUCCESS;
    }
    comm->shared->calls[comm->rank] = call;
    if (!barrier(comm)) return INTERNAL_ERROR;
    for (int rank = 0; rank < comm->ranks; rank++) {
        if (comm->shared->calls[rank] == call) continue;
        simulator_complain("NCCL", "ranks call with different arguments");
        return INVALID_USAGE;
    }
    for (size_t at = 0; at == 0 || at < bytes; at += CHUNK) {
        const size_t chunk = std::min(CHUNK, bytes - at);
        std::memcpy(comm->shared->data[comm->rank], static_cast<const char *>(from) + at, chunk);
        if (!barrier(comm)) return INTERNAL_ERROR;
        if (const Result wrong = combine(comm, call, static_cast<char *>(to), at, chunk)) return wrong;
        if (!barrier(comm)) return INTERNAL_ERROR;
    }
    return SUCCESS;
}

struct Id {
    char name[128];
};

}  // namespace

EXPORTED int ncclGetVersion(int *version) {
    *version = settings().nccl_version;
    return SUCCESS;
}

EXPORTED int ncclGetUniqueId(Id *id) {
    std::memset(id, 0, sizeof *id);
    std::snprintf(id->name, sizeof id->name, "/simulated-nccl-%d-%ld", getpid(), random());
    const int file = shm_open(id->name, O_CREAT | O_RDWR, 0600);
    if (file < 0 || ftruncate(file, sizeof(Shared)) != 0) return SYSTEM_ERROR;
    close(file);
    return SUCCESS;
}

EXPORTED int ncclCommInitRank(Communicator **result, int ranks, Id id, int rank) {
    const int file = shm_open(id.name, O_RDWR, 0600);
    if (file < 0 || ranks > MOST_RANKS) return INVALID_ARGUMENT;
    void *mapped = mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (settings().nccl_fault == "init" && rank == FAULTY_RANK) return SYSTEM_ERROR;
    auto *comm = new Communicator{static_cast<Shared *>(mapped), rank, ranks, 0};
    cudaGetDevice(&comm->device);
    if (!barrier(comm)) return INTERNAL_ERROR;
    if (rank == 0) shm_unlink(id.name);
    *result = comm;
    return SUCCESS;
}

EXPORTED int ncclCommDestroy(Communicator *comm) {
    if (!comm || comm->aborted) return INVALID_ARGUMENT;
    munmap(comm->shared, sizeof(Shared));
    delete comm;
    return SUCCESS;
}

// Kept, not freed: the real one frees it, so a later use is an error that this shows.
EXPORTED int ncclCommAbort(Communicator *comm) {
    if (comm->aborted) simulator_complain("NCCL", "aborted twice");
    comm->aborted = true;
    return SUCCESS;
}

EXPORTED int ncclCommGetAsyncError(Communicator *comm, int *error) {
    if (comm->aborted) simulator_complain("NCCL", "used after its abort");
    *error = fault_is(comm, "async") && comm->rank == FAULTY_RANK ? REMOTE_ERROR : SUCCESS;
    return SUCCESS;
}

EXPORTED const char *ncclGetLastError(Communicator *) { return "simulated error of NCCL"; }

EXPORTED const char *ncclGetErrorString(int code) { return code == REMOTE_ERROR ? "remote process exited or there was a network error" : "simulated error of NCCL"; }

EXPORTED int ncclAllReduce(const void *from, void *to, size_t count, int type, int reduction, Communicator *comm, void *stream) {
    return run(comm, {ALL_REDUCE, type, reduction, 0, count}, from, to, stream, "ncclAllReduce");
}

EXPORTED int ncclAllGather(const void *from, void *to, size_t count, int type, Communicator *comm, void *stream) {
    return run(comm, {ALL_GATHER, type, 0, 0, count}, from, to, stream, "ncclAllGather");
}

EXPORTED int ncclBroadcast(const void *from, void *to, size_t count, int type, int root, Communicator *comm, void *stream) {
    return run(comm, {BROADCAST, type, 0, root, count}, from, to, stream, "ncclBroadcast");
}

// What libtorch_cuda.so must find and training does not call.
#define UNSUPPORTED(name)                            \
    EXPORTED int name() {                            \
        simulator_complain("not simulated", #name);  \
        return INTERNAL_ERROR;                       \
    }
UNSUPPORTED(ncclAlltoAll)
UNSUPPORTED(ncclBcast)
UNSUPPORTED(ncclCommCount)
UNSUPPORTED(ncclCommDeregister)
UNSUPPORTED(ncclCommFinalize)
UNSUPPORTED(ncclCommInitAll)
UNSUPPORTED(ncclCommInitRankConfig)
UNSUPPORTED(ncclCommInitRankScalable)
UNSUPPORTED(ncclCommRegister)
UNSUPPORTED(ncclCommShrink)
UNSUPPORTED(ncclCommSplit)
UNSUPPORTED(ncclCommUserRank)
UNSUPPORTED(ncclCommWindowDeregister)
UNSUPPORTED(ncclCommWindowRegister)
UNSUPPORTED(ncclDevCommCreate)
UNSUPPORTED(ncclDevCommDestroy)
UNSUPPORTED(ncclGroupEnd)
UNSUPPORTED(ncclGroupSimulateEnd)
UNSUPPORTED(ncclGroupStart)
UNSUPPORTED(ncclMemAlloc)
UNSUPPORTED(ncclMemFree)
UNSUPPORTED(ncclRecv)
UNSUPPORTED(ncclRedOpCreatePreMulSum)
UNSUPPORTED(ncclRedOpDestroy)
UNSUPPORTED(ncclReduce)
UNSUPPORTED(ncclReduceScatter)
UNSUPPORTED(ncclSend)
