// Functions that libtorch's libraries must find when they are loaded, and that training does not call. A call is a complaint.
#include "simulator.h"

#define UNSUPPORTED(name, code)                         \
    extern "C" __attribute__((visibility("default"))) int name() { \
        simulator_complain("not simulated", #name);     \
        return code;                                    \
    }

constexpr int RUNTIME = 801;  // cudaErrorNotSupported
constexpr int DRIVER = 801;   // CUDA_ERROR_NOT_SUPPORTED

UNSUPPORTED(__cudaInitModule, RUNTIME)
UNSUPPORTED(cudaDeviceGetDefaultMemPool, RUNTIME)
UNSUPPORTED(cudaGraphDebugDotPrint, RUNTIME)
UNSUPPORTED(cudaGraphDestroy, RUNTIME)
UNSUPPORTED(cudaGraphExecDestroy, RUNTIME)
UNSUPPORTED(cudaGraphGetNodes, RUNTIME)
UNSUPPORTED(cudaGraphInstantiateWithFlags, RUNTIME)
UNSUPPORTED(cudaGraphLaunch, RUNTIME)
UNSUPPORTED(cudaGraphNodeGetDependencies, RUNTIME)
UNSUPPORTED(cudaIpcCloseMemHandle, RUNTIME)
UNSUPPORTED(cudaIpcGetEventHandle, RUNTIME)
UNSUPPORTED(cudaIpcGetMemHandle, RUNTIME)
UNSUPPORTED(cudaIpcOpenEventHandle, RUNTIME)
UNSUPPORTED(cudaIpcOpenMemHandle, RUNTIME)
UNSUPPORTED(cudaLaunchCooperativeKernel, RUNTIME)
UNSUPPORTED(cudaLaunchHostFunc, RUNTIME)
UNSUPPORTED(cudaMemPoolGetAttribute, RUNTIME)
UNSUPPORTED(cudaMemPoolSetAccess, RUNTIME)
UNSUPPORTED(cudaMemPoolSetAttribute, RUNTIME)
UNSUPPORTED(cudaMemPoolTrimTo, RUNTIME)
UNSUPPORTED(cudaMemcpy2DAsync, RUNTIME)
UNSUPPORTED(cudaOccupancyMaxActiveBlocksPerMultiprocessor, RUNTIME)
UNSUPPORTED(cudaProfilerStart, RUNTIME)
UNSUPPORTED(cudaProfilerStop, RUNTIME)
UNSUPPORTED(cudaStreamBeginCapture, RUNTIME)
UNSUPPORTED(cudaStreamCreate, RUNTIME)
UNSUPPORTED(cudaStreamEndCapture, RUNTIME)
UNSUPPORTED(cudaStreamGetPriority, RUNTIME)
UNSUPPORTED(cuFuncGetAttribute, DRIVER)
UNSUPPORTED(cuFuncSetAttribute, DRIVER)
UNSUPPORTED(cuFuncSetCacheConfig, DRIVER)
UNSUPPORTED(cuLaunchCooperativeKernel, DRIVER)
UNSUPPORTED(cuLinkAddData_v2, DRIVER)
UNSUPPORTED(cuLinkComplete, DRIVER)
UNSUPPORTED(cuLinkCreate_v2, DRIVER)
UNSUPPORTED(cuModuleLoad, DRIVER)
UNSUPPORTED(cuModuleLoadDataEx, DRIVER)
UNSUPPORTED(cuModuleUnload, DRIVER)
UNSUPPORTED(cuOccupancyMaxActiveBlocksPerMultiprocessor, DRIVER)
UNSUPPORTED(cuPointerGetAttribute, DRIVER)
UNSUPPORTED(cuTensorMapEncodeTiled, DRIVER)
