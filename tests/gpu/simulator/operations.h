// What the files that replace libtorch's operations share.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <vector>

#include "simulator.h"

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
using c10::Device;

// The device memory that an operation uses.
class Accesses {
  public:
    void add(const Tensor &x, bool writes);
    void add(const OptionalTensor &x, bool writes);
    // Queues the operation on the device's current stream.
    void run(Device device, const char *what) const;

  private:
    std::vector<MemoryRange> ranges;
};

void *current_stream(Device device);
Device current_gpu();

// From a tensor's first to its last element, gaps between them included.
size_t spanned_bytes(const Tensor &x);

// A CPU's tensor on a GPU's memory.
Tensor on_cpu(const Tensor &x);
OptionalTensor on_cpu(const OptionalTensor &x);

// A new tensor of the GPU with the values of a CPU's.
Tensor on_gpu(const Tensor &x, Device device);
