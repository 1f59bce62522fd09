// The driver's interface, libcuda.so.1, and this project's own kernels, which a library on the host runs.
#include <cuda.h>
#include <dlfcn.h>

#include <atomic>
#include <cstring>

#include "state.h"

namespace {

// A context's handle is its device's number and this, so that none is null.
constexpr uintptr_t FIRST_CONTEXT = 0x1000;

thread_local std::vector<int> pushed_devices;

bool is_device(int device) { return device >= 0 && device < static_cast<int>(settings().gpus.size()); }

CUcontext context_of(int device) { return reinterpret_cast<CUcontext>(FIRST_CONTEXT + device); }

int device_of_context(CUcontext context) { return static_cast<int>(reinterpret_cast<uintptr_t>(context) - FIRST_CONTEXT); }

using Emulate = int (*)(void *kernel, unsigned blocks, const void *task, unsigned seed);

struct Kernel {
    std::string name;
    void *function;
    Emulate emulate;
};

// The addresses that a Task begins with (`kernels.cu`), in order, and whether kernels write there.
constexpr bool WRITTEN[] = {false, false, false, false, true,  true,  true, true, false, false,
                            false, true,  true,  true,  true,  false, false, true, true};
// Of each address, so much is checked for races: how much a kernel uses depends on the kernel.
constexpr size_t CHECKED_BYTES = 4;

// NVIDIA's own libraries may not start with this driver: they would ask for tables that only the real one has.
bool called_by_library_of_nvidia(const void *caller) {
    Dl_info library;
    if (!dladdr(caller, &library) || !library.dli_fname) return false;
    for (const char *name : {"libnvrtc", "libcupti", "libcublas", "libcudnn"})
        if (std::strstr(library.dli_fname, name)) return true;
    return false;
}

}  // namespace

EXPORTED CUresult cuInit(unsigned) {
    if (called_by_library_of_nvidia(__builtin_return_address(0)) || !is_device(0)) return CUDA_ERROR_NO_DEVICE;
    return CUDA_SUCCESS;
}

EXPORTED CUresult cuGetExportTable(const void **table, const CUuuid *) {
    *table = nullptr;
    return CUDA_ERROR_NOT_FOUND;
}

EXPORTED CUresult cuDriverGetVersion(int *version) {
    *version = 13000;
    return CUDA_SUCCESS;
}

EXPORTED CUresult cuDeviceGetCount(int *count) {
    *count = static_cast<int>(settings().gpus.size());
    return CUDA_SUCCESS;
}

EXPORTED CUresult cuDeviceGet(CUdevice *device, int number) {
    if (!is_device(number)) return CUDA_ERROR_INVALID_DEVICE;
    *device = number;
    return CUDA_SUCCESS;
}

EXPORTED CUresult cuDeviceGetName(char *name, int bytes, CUdevice device) {
    std::strncpy(name, gpu_name(device), bytes);
    return CUDA_SUCCESS;
}

EXPORTED CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) {
    *value = gpu_attribute(attribute, device);  // the two interfaces number attributes alike
    return CUDA_SUCCESS;
}

EXPORTED CUresult cuDeviceTotalMem_v2(size_t *bytes, CUdevice) {
    *bytes = settings().bytes_per_gpu;
    return CUDA_SUCCESS;
}

EXPORTED CUresult cuDeviceGetUuid_v2(CUuuid *uuid, CUdevice device) {
    gpu_uuid(device, uuid->bytes);
    return CUDA_SUCCESS;
}

EXPORTED CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
    LOCK_STATE;
    *context = context_of(device);
    const int before = current_device;
    current_device = device;
    use_context("cuDevicePrimaryCtxRetain");
    current_device = before;
    return CUDA_SUCCESS;
}

EXPORTED CUresult cuDevicePrimaryCtxGetState(CUdevice device, unsigned *flags, int *active) {
    LOCK_STATE;
    if (flags) *flags = 0;
    *active = has_context(device);
    return CUDA_SUCCESS;
}

EXPORTED CUresult cuCtxGetCurrent(CUcontext *context) {
    LOCK_STATE;
    *context = has_context(current_device) ? context_of(current_device) : nullptr;
    return CUDA_SUCCESS;
}

EXPORTED CUresult cuCtxSetCurrent(CUcontext context) {
    if (context) current_device = device_of_context(context);
    return CUDA_SUCCESS;
}

EXPORTED CUresult cuCtxPushCurrent_v2(CUcontext context) {
    pushed_devices.push_back(current_device);
    current_device = device_of_context(context);
    return CUDA_SUCCESS;
}

EXPORTED CUresult cuCtxPopCurrent_v2(CUcontext *context) {
    if (pushed_devices.empty()) return CUDA_ERROR_INVALID_CONTEXT;
    *context = context_of(current_device);
    current_device = pushed_devices.back();
    pushed_devices.pop_back();
    return CUDA_SUCCESS;
}

EXPORTED CUresult cuGetErrorString(CUresult error, const char **text) {
    *text = error == CUDA_ERROR_NO_DEVICE ? "no CUDA-capable device is detected" : "simulated error";
    return CUDA_SUCCESS;
}

EXPORTED CUresult cuGetErrorName(CUresult, const char **text) {
    *text = "CUDA_ERROR_SIMULATED";
    return CUDA_SUCCESS;
}

EXPORTED CUresult cuModuleLoadData(CUmodule *module, const void *image) {
    LOCK_STATE;
    use_context("cuModuleLoadData");
    count(std::memcmp(image, "\x7f" "ELF", 4) == 0 ? "modules of machine code" : "modules of PTX");
    static void *const emulator = dlopen(settings().emulator.c_str(), RTLD_NOW);
    if (!emulator) {
        complain("SIM_EMULATOR", "%s", dlerror());
        return CUDA_ERROR_FILE_NOT_FOUND;
    }
    *module = static_cast<CUmodule>(emulator);
    return CUDA_SUCCESS;
}

EXPORTED CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
    void *found = dlsym(module, name);
    if (!found) return CUDA_ERROR_NOT_FOUND;
    auto *kernel = new Kernel{name, found, reinterpret_cast<Emulate>(dlsym(module, "emulate"))};  // kept for good, as modules are
    *function = reinterpret_cast<CUfunction>(kernel);
    return CUDA_SUCCESS;
}

EXPORTED CUresult cuLaunchKernel(CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                                 unsigned block_y, unsigned block_z, unsigned shared_bytes, CUstream handle, void **parameters, void **) {
    const auto *kernel = reinterpret_cast<Kernel *>(function);
    {
        LOCK_STATE;
        use_context("cuLaunchKernel");
        Stream *stream = find_stream(handle);
        if (!stream || stream->device != current_device) return CUDA_ERROR_INVALID_HANDLE;
        const bool is_flat = grid_y == 1 && grid_z == 1 && block_y == 1 && block_z == 1 && shared_bytes == 0;
        if (!is_flat || grid_x == 0 || block_x == 0 || block_x > 1024) complain("launch", "%s: shape", kernel->name.c_str());
        const uint64_t time = enqueue(stream);
        count("own kernels");
        count("own kernel " + kernel->name);
        log_call("own kernel %s on stream %s", kernel->name.c_str(), stream->name.c_str());
        void *const *addresses = static_cast<void **>(parameters[0]);
        for (const bool writes : {false, true})
            for (size_t i = 0; i < std::size(WRITTEN); i++)
                if (WRITTEN[i] == writes) access_memory(stream, time, addresses[i], CHECKED_BYTES, writes, kernel->name);
    }
    static std::atomic<unsigned> seed{1};
    if (kernel->emulate(kernel->function, grid_x, parameters[0], seed++) != 0) {
        LOCK_STATE;
        complain("barrier", "%s: not all threads of a block reach one", kernel->name.c_str());
    }
    return CUDA_SUCCESS;
}

EXPORTED cudaError_t cudaGetDriverEntryPointByVersion(const char *symbol, void **function, unsigned, unsigned long long,
                                                      cudaDriverEntryPointQueryResult *result) {
    *function = dlsym(RTLD_DEFAULT, symbol);
    if (!*function) *function = dlsym(RTLD_DEFAULT, (std::string(symbol) + "_v2").c_str());
    if (result) *result = *function ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
    return *function ? cudaSuccess : cudaErrorSymbolNotFound;
}
