// Kernels of libtorch that the operations do not replace: they do nothing, which is a complaint. And the entry points for
// libnccl.so.2 and the operations, whose work is done on the host.
#include <cstring>

#include "simulator.h"
#include "state.h"

namespace {

std::map<const void *, std::string> &kernel_names() {
    static auto *const map = new std::map<const void *, std::string>;
    return *map;
}

struct LaunchShape {
    dim3 grid, block;
    size_t shared_bytes;
    void *stream;
};

thread_local std::vector<LaunchShape> shapes;

cudaError_t skip_kernel(const void *kernel, cudaStream_t handle) {
    LOCK_STATE;
    use_context("cudaLaunchKernel");
    Stream *stream = find_stream(handle);
    if (!stream || stream->device != current_device) return fail(cudaErrorInvalidResourceHandle, "cudaLaunchKernel");
    enqueue(stream);
    auto found = kernel_names().find(kernel);
    complain("skipped kernel", "%s", found == kernel_names().end() ? "unknown" : found->second.c_str());
    return cudaSuccess;
}

}  // namespace

EXPORTED void simulator_run(int device, void *handle, const char *what, const MemoryRange *ranges, size_t n) {
    LOCK_STATE;
    if (current_device != device) complain("current device", "%s on GPU %d, but the thread's is %d", what, device, current_device);
    const int before = current_device;
    current_device = device;
    use_context(what);
    Stream *stream = find_stream(static_cast<cudaStream_t>(handle));
    current_device = before;
    if (!stream) return;
    if (stream->device != device) complain("other GPU's stream", "%s", what);
    const uint64_t time = enqueue(stream);
    count("operations");
    count(std::string("operation ") + what);
    log_call("operation %s on stream %s", what, stream->name.c_str());
    // Reads first: an operation may read what it overwrites.
    for (size_t i = 0; i < n; i++)
        if (!ranges[i].writes) access_memory(stream, time, ranges[i].address, ranges[i].bytes, false, what);
    for (size_t i = 0; i < n; i++)
        if (ranges[i].writes) access_memory(stream, time, ranges[i].address, ranges[i].bytes, true, what);
}

EXPORTED void simulator_wait(int device, void *handle, const char *what) {
    LOCK_STATE;
    const int before = current_device;
    current_device = device;
    Stream *stream = find_stream(static_cast<cudaStream_t>(handle));
    current_device = before;
    count(std::string("wait: ") + what);
    log_call("wait: %s", what);
    if (stream) host_learns(stream->clock);
}

EXPORTED void simulator_hang(void *handle) {
    LOCK_STATE;
    if (Stream *stream = find_stream(static_cast<cudaStream_t>(handle))) stream->hung = true;
}

EXPORTED void simulator_complain(const char *kind, const char *text) {
    LOCK_STATE;
    complain(kind, "%s", text);
}

EXPORTED int simulator_device_of(const void *address) {
    LOCK_STATE;
    return device_of(address);
}

EXPORTED int simulator_device_of_stream(void *handle) {
    LOCK_STATE;
    const Stream *stream = find_stream(static_cast<cudaStream_t>(handle));
    return stream ? stream->device : -1;
}

// What nvcc's code calls to register and launch kernels.

EXPORTED void **__cudaRegisterFatBinary(void *) {
    static void *handle[4];
    return handle;
}

EXPORTED void __cudaRegisterFatBinaryEnd(void **) {}

EXPORTED void __cudaUnregisterFatBinary(void **) {}

EXPORTED void __cudaRegisterFunction(void **, const char *function, char *, const char *name, int, uint3 *, uint3 *, dim3 *, dim3 *,
                                     int *) {
    kernel_names()[function] = name;
}

EXPORTED void __cudaRegisterVar(void **, char *, char *, const char *, int, size_t, int, int) {}

EXPORTED unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared_bytes, void *stream) {
    shapes.push_back({grid, block, shared_bytes, stream});
    return 0;
}

EXPORTED cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared_bytes, void *stream) {
    const LaunchShape shape = shapes.back();
    shapes.pop_back();
    *grid = shape.grid;
    *block = shape.block;
    *shared_bytes = shape.shared_bytes;
    *static_cast<void **>(stream) = shape.stream;
    return cudaSuccess;
}

EXPORTED cudaError_t cudaLaunchKernel(const void *kernel, dim3, dim3, void **, size_t, cudaStream_t stream) {
    return skip_kernel(kernel, stream);
}

EXPORTED cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *config, const void *kernel, void **) {
    return skip_kernel(kernel, config->stream);
}

EXPORTED cudaError_t __cudaGetKernel(cudaKernel_t *kernel, const void *function) {
    *kernel = reinterpret_cast<cudaKernel_t>(const_cast<void *>(function));
    return cudaSuccess;
}

EXPORTED cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3, dim3, void **, size_t, cudaStream_t stream) {
    return skip_kernel(kernel, stream);
}

EXPORTED cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *attributes, const void *) {
    std::memset(attributes, 0, sizeof *attributes);
    attributes->maxThreadsPerBlock = 1024;
    attributes->binaryVersion = attributes->ptxVersion = 90;
    return cudaSuccess;
}

EXPORTED cudaError_t cudaFuncSetAttribute(const void *, cudaFuncAttribute, int) { return cudaSuccess; }

EXPORTED cudaError_t cudaGetSymbolAddress(void **address, const void *symbol) {
    *address = const_cast<void *>(symbol);
    return cudaSuccess;
}

EXPORTED cudaError_t cudaMemcpyToSymbol(const void *, const void *, size_t, size_t, cudaMemcpyKind) { return cudaSuccess; }

EXPORTED cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, const void *, int, size_t, unsigned) {
    *blocks = 2;
    return cudaSuccess;
}
