// What libnccl.so.2 and the operations call of the simulated CUDA.
#pragma once

#include <cstddef>

extern "C" {

struct MemoryRange {
    const void *address;
    size_t bytes;
    bool writes;
};

// A piece of work on a stream, with all device memory that it uses.
void simulator_run(int device, void *stream, const char *what, const MemoryRange *ranges, size_t n);
// The host waits for the stream, as an operation does whose result's size depends on values.
void simulator_wait(int device, void *stream, const char *what);
// The stream's work never ends.
void simulator_hang(void *stream);
void simulator_complain(const char *kind, const char *text);
int simulator_device_of(const void *address);
int simulator_device_of_stream(void *stream);
}
