// The simulated GPUs of this process: what all files of libcudart.so.13 share. Work runs when it is queued, on the caller's thread.
// Only what the host and the streams may know of its end is simulated.
#pragma once

#include <cuda_runtime_api.h>

#include <map>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "clock.h"
#include "settings.h"

#define EXPORTED extern "C" __attribute__((visibility("default")))

struct Stream {
    size_t id;
    int device;
    std::string name;   // "default" or its number
    Clock clock = {};   // of the work that its next piece of work comes after
    bool hung = false;  // a collective on it never ends
};

struct Event {
    int device;
    bool timed;
    bool recorded = false;
    bool hung = false;
    std::string stream = {};  // the name of the stream that it was recorded on
    Clock clock = {};
    int queries = 0;
    double seconds = 0;
};

// Held by every function of the interface while it reads or changes the state.
std::recursive_mutex &state_mutex();
#define LOCK_STATE std::lock_guard<std::recursive_mutex> state_lock(state_mutex())

// --- devices.cpp

extern thread_local int current_device;
// The error that cudaGetLastError returns next.
cudaError_t fail(cudaError_t error, const char *call);
// Notes that the calling thread needs a context on its current device.
void use_context(const char *call);
const char *gpu_name(int device);
void gpu_uuid(int device, char *bytes);
int gpu_attribute(int attribute, int device);
bool has_context(int device);

// --- report.cpp

void count(const std::string &what, uint64_t by = 1);
void count_most(const std::string &what, uint64_t value);
// One line of SIM_LOG.
void log_call(const char *format, ...) __attribute__((format(printf, 1, 2)));
// A mistake of the program, or a call that is not simulated: printed, and "!kind" in the report. Tests accept none.
void complain(const std::string &kind, const char *format, ...) __attribute__((format(printf, 2, 3)));

// --- streams.cpp

// Null, with a complaint, for a stream that does not exist. The default stream of the current device has handle null.
Stream *find_stream(cudaStream_t handle);
// The time of a new piece of work, which comes after all that the host knows to be over.
uint64_t enqueue(Stream *stream);
// The host now knows that this is over.
void host_learns(const Clock &clock);
bool host_knows(const Clock &clock);
bool host_knows(size_t stream, uint64_t time);
void host_learns_device(int device);

// --- memory.cpp

bool is_pinned(const void *address);
// The GPU that has this memory, or -1.
int device_of(const void *address);
// A piece of work reads or writes a range of device memory. Complains about a race: an earlier access, at least one of the two a
// write, that nothing orders before this one.
void access_memory(Stream *stream, uint64_t time, const void *address, size_t bytes, bool writes, const std::string &what);

// --- copies.cpp

// Copies that the host now knows to be over arrive, and their sources may change.
void finish_copies();
void check_no_copy_in_flight(uintptr_t from, uintptr_t to);
size_t copies_in_flight();
