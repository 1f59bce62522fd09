// The GPUs and their properties: those of an H100, as far as libtorch asks.
#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstring>

#include "state.h"

thread_local int current_device = 0;

namespace {

thread_local cudaError_t last_error = cudaSuccess;

constexpr int CUDA_VERSION_REPORTED = 13000;
constexpr size_t UUID_BYTES = 16;

std::set<int> &contexts() {
    static auto *const set = new std::set<int>;
    return *set;
}

int gpus() { return static_cast<int>(settings().gpus.size()); }

}  // namespace

cudaError_t fail(cudaError_t error, const char *call) {
    last_error = error;
    if (error != cudaErrorNotReady) count(std::string("error of ") + call);
    return error;
}

void use_context(const char *call) {
    if (contexts().insert(current_device).second) {
        count("context on GPU " + std::to_string(current_device));
        log_call("context on GPU %d by %s", current_device, call);
    }
}

bool has_context(int device) { return contexts().count(device) != 0; }

const char *gpu_name(int device) {
    static thread_local char name[32];
    std::snprintf(name, sizeof name, "Simulated GPU %d", settings().gpus[device]);
    return name;
}

void gpu_uuid(int device, char *bytes) {
    std::memset(bytes, 0, UUID_BYTES);
    std::strcpy(bytes, "simulated");
    bytes[UUID_BYTES - 1] = static_cast<char>('A' + settings().gpus[device]);
}

int gpu_attribute(int attribute, int device) {
    switch (attribute) {
        case cudaDevAttrMaxThreadsPerBlock: return 1024;
        case cudaDevAttrMaxBlockDimX: return 1024;
        case cudaDevAttrMaxBlockDimY: return 1024;
        case cudaDevAttrMaxBlockDimZ: return 64;
        case cudaDevAttrMaxGridDimX: return 2147483647;
        case cudaDevAttrMaxGridDimY: return 65535;
        case cudaDevAttrMaxGridDimZ: return 65535;
        case cudaDevAttrMaxSharedMemoryPerBlock: return 49152;
        case cudaDevAttrWarpSize: return 32;
        case cudaDevAttrMaxRegistersPerBlock: return 65536;
        case cudaDevAttrMultiProcessorCount: return 132;
        case cudaDevAttrMaxThreadsPerMultiProcessor: return 2048;
        case cudaDevAttrAsyncEngineCount: return 3;
        case cudaDevAttrUnifiedAddressing: return 1;
        case cudaDevAttrPciBusId: return settings().gpus[device] + 1;
        case cudaDevAttrComputeCapabilityMajor: return 9;
        case cudaDevAttrComputeCapabilityMinor: return 0;
        case cudaDevAttrMaxSharedMemoryPerMultiprocessor: return 233472;
        case cudaDevAttrMaxRegistersPerMultiprocessor: return 65536;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin: return 232448;
        case cudaDevAttrMaxBlocksPerMultiprocessor: return 32;
        default: return 0;
    }
}

EXPORTED cudaError_t cudaGetDeviceCount(int *number) {
    *number = gpus();
    return gpus() > 0 ? cudaSuccess : fail(cudaErrorNoDevice, "cudaGetDeviceCount");
}

EXPORTED cudaError_t cudaGetDevice(int *device) {
    *device = current_device;
    return cudaSuccess;
}

EXPORTED cudaError_t cudaSetDevice(int device) {
    LOCK_STATE;
    if (device < 0 || device >= gpus()) return fail(cudaErrorInvalidDevice, "cudaSetDevice");
    if (device != current_device) log_call("cudaSetDevice %d", device);
    current_device = device;
    use_context("cudaSetDevice");
    return cudaSuccess;
}

EXPORTED cudaError_t cudaDriverGetVersion(int *version) {
    *version = CUDA_VERSION_REPORTED;
    return cudaSuccess;
}

EXPORTED cudaError_t cudaRuntimeGetVersion(int *version) {
    *version = CUDA_VERSION_REPORTED;
    return cudaSuccess;
}

EXPORTED cudaError_t cudaGetDeviceProperties(cudaDeviceProp *properties, int device) {
    if (device < 0 || device >= gpus()) return fail(cudaErrorInvalidDevice, "cudaGetDeviceProperties");
    auto attribute = [&](cudaDeviceAttr which) { return gpu_attribute(which, device); };
    std::memset(properties, 0, sizeof *properties);
    std::strcpy(properties->name, gpu_name(device));
    gpu_uuid(device, properties->uuid.bytes);
    properties->totalGlobalMem = settings().bytes_per_gpu;
    properties->sharedMemPerBlock = attribute(cudaDevAttrMaxSharedMemoryPerBlock);
    properties->sharedMemPerBlockOptin = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
    properties->sharedMemPerMultiprocessor = attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor);
    properties->regsPerBlock = attribute(cudaDevAttrMaxRegistersPerBlock);
    properties->regsPerMultiprocessor = attribute(cudaDevAttrMaxRegistersPerMultiprocessor);
    properties->warpSize = attribute(cudaDevAttrWarpSize);
    properties->maxThreadsPerBlock = attribute(cudaDevAttrMaxThreadsPerBlock);
    properties->maxThreadsPerMultiProcessor = attribute(cudaDevAttrMaxThreadsPerMultiProcessor);
    properties->maxBlocksPerMultiProcessor = attribute(cudaDevAttrMaxBlocksPerMultiprocessor);
    properties->maxThreadsDim[0] = attribute(cudaDevAttrMaxBlockDimX);
    properties->maxThreadsDim[1] = attribute(cudaDevAttrMaxBlockDimY);
    properties->maxThreadsDim[2] = attribute(cudaDevAttrMaxBlockDimZ);
    properties->maxGridSize[0] = attribute(cudaDevAttrMaxGridDimX);
    properties->maxGridSize[1] = attribute(cudaDevAttrMaxGridDimY);
    properties->maxGridSize[2] = attribute(cudaDevAttrMaxGridDimZ);
    properties->major = attribute(cudaDevAttrComputeCapabilityMajor);
    properties->minor = attribute(cudaDevAttrComputeCapabilityMinor);
    properties->multiProcessorCount = attribute(cudaDevAttrMultiProcessorCount);
    properties->asyncEngineCount = attribute(cudaDevAttrAsyncEngineCount);
    properties->pciBusID = attribute(cudaDevAttrPciBusId);
    properties->concurrentKernels = 1;
    properties->unifiedAddressing = 1;
    properties->canMapHostMemory = 1;
    properties->l2CacheSize = 50 << 20;
    properties->memoryBusWidth = 5120;
    return cudaSuccess;
}

EXPORTED cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int device) {
    *value = gpu_attribute(attribute, device);
    return cudaSuccess;
}

EXPORTED cudaError_t cudaDeviceGetPCIBusId(char *text, int bytes, int device) {
    std::snprintf(text, bytes, "0000:%02x:00.0", gpu_attribute(cudaDevAttrPciBusId, device));
    return cudaSuccess;
}

EXPORTED cudaError_t cudaDeviceCanAccessPeer(int *can, int, int) {
    *can = 0;
    return cudaSuccess;
}

EXPORTED cudaError_t cudaDeviceEnablePeerAccess(int, unsigned) { return cudaErrorPeerAccessUnsupported; }

EXPORTED cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
    *least = 0;
    *greatest = -5;
    return cudaSuccess;
}

EXPORTED cudaError_t cudaDeviceSynchronize() {
    LOCK_STATE;
    count("wait: cudaDeviceSynchronize");
    use_context("cudaDeviceSynchronize");
    host_learns_device(current_device);
    return cudaSuccess;
}

EXPORTED cudaError_t cudaGetLastError() {
    const cudaError_t error = last_error;
    last_error = cudaSuccess;
    return error;
}

EXPORTED cudaError_t cudaPeekAtLastError() { return last_error; }

EXPORTED const char *cudaGetErrorName(cudaError_t error) {
    switch (error) {
        case cudaSuccess: return "cudaSuccess";
        case cudaErrorMemoryAllocation: return "cudaErrorMemoryAllocation";
        case cudaErrorLaunchFailure: return "cudaErrorLaunchFailure";
        default: return "cudaErrorUnknown";
    }
}

EXPORTED const char *cudaGetErrorString(cudaError_t error) {
    switch (error) {
        case cudaSuccess: return "no error";
        case cudaErrorMemoryAllocation: return "out of memory";
        case cudaErrorLaunchFailure: return "unspecified launch failure";
        case cudaErrorNoDevice: return "no CUDA-capable device is detected";
        default: return "simulated error";
    }
}
