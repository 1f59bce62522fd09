// The memory of a GPU's tensors, as a CPU's kernels and the detector of races see it.
#include <ATen/ops/empty_strided.h>
#include <ATen/ops/from_blob.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <cstring>

#include "operations.h"

namespace {

c10::impl::VirtualGuardImpl cuda() { return c10::impl::VirtualGuardImpl(c10::DeviceType::CUDA); }

}  // namespace

void Accesses::add(const Tensor &x, bool writes) {
    if (x.defined() && x.is_cuda() && x.numel() > 0) ranges.push_back({x.data_ptr(), spanned_bytes(x), writes});
}

void Accesses::add(const OptionalTensor &x, bool writes) {
    if (x) add(*x, writes);
}

void Accesses::run(Device device, const char *what) const {
    simulator_run(device.index(), current_stream(device), what, ranges.data(), ranges.size());
}

void *current_stream(Device device) { return cuda().getStream(device).native_handle(); }

Device current_gpu() { return cuda().getDevice(); }

size_t spanned_bytes(const Tensor &x) {
    if (x.numel() == 0) return 0;
    int64_t elements = 1;
    for (int64_t i = 0; i < x.dim(); i++) elements += (x.size(i) - 1) * x.stride(i);
    return elements * x.element_size();
}

Tensor on_cpu(const Tensor &x) {
    const auto options = at::TensorOptions().dtype(x.dtype()).device(at::kCPU);
    Tensor alias = x.numel() > 0 ? at::from_blob(x.data_ptr(), x.sizes(), x.strides(), options)
                                 : at::empty_strided(x.sizes(), x.strides(), options);
    // A number that became a tensor does not decide the result's type.
    if (x.unsafeGetTensorImpl()->is_wrapped_number()) alias.unsafeGetTensorImpl()->set_wrapped_number(true);
    return alias;
}

OptionalTensor on_cpu(const OptionalTensor &x) { return x && x->defined() ? OptionalTensor(on_cpu(*x)) : OptionalTensor(); }

Tensor on_gpu(const Tensor &x, Device device) {
    if (!x.defined()) return x;
    Tensor result = at::empty_strided(x.sizes(), x.strides(), x.options().device(device));
    if (const size_t bytes = spanned_bytes(x)) std::memcpy(result.data_ptr(), x.data_ptr(), bytes);
    return result;
}
