// libtorch's operations on the simulated GPUs: the CPU's kernels compute them on the same memory, which is the host's. Allocation,
// views, and copies between host and device remain libtorch's own for CUDA.
#include <ATen/Context.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/copy_native.h>
#include <ATen/ops/empty.h>
#include <c10/core/DeviceGuard.h>
#include <c10/util/Exception.h>
#include <torch/library.h>

#include <cstring>
#include <set>
#include <string>
#include <vector>

#include "operations.h"
#include "settings.h"

// In cuda_operations.cpp.
void replace_cuda_operations(torch::Library &library);

namespace {

using c10::IValue;

// Operations whose result's size depends on values, so that CUDA's wait for them.
const std::set<std::string> WAITING{"aten::nonzero", "aten::masked_select", "aten::equal", "aten::_unique2", "aten::unique_dim", "aten::unique_consecutive"};

// An operation on the stack of the dispatcher, with its tensors of GPUs exchanged for CPU tensors on the same memory.
class Operation {
  public:
    Operation(const c10::OperatorHandle &operation, torch::jit::Stack *stack)
        : operation(operation), schema(operation.schema()), stack(stack) {
        name = schema.name();
        if (!schema.overload_name().empty()) name += "." + schema.overload_name();
    }

    void run() {
        exchange_arguments();
        Device target = device ? *device : current_gpu();
        if (!target.has_index()) target = current_gpu();
        c10::OptionalDeviceGuard guard(target);
        {
            at::AutoDispatchBelowADInplaceOrView below_autograd;
            operation.callBoxed(*stack);
        }
        return_resized();
        exchange_results(target);
        accesses.run(target, name.c_str());
        if (WAITING.count(schema.name())) simulator_wait(target.index(), current_stream(target), name.c_str());
    }

  private:
    struct Exchanged {
        Tensor gpu, cpu;
        bool written;
    };

    void exchange_arguments() {
        const size_t n = schema.arguments().size();
        for (size_t i = 0; i < n; i++) {
            IValue &value = (*stack)[stack->size() - n + i];
            const auto &argument = schema.arguments()[i];
            const bool written = argument.alias_info() && argument.alias_info()->isWrite();
            const bool is_output = written && argument.kwarg_only();
            if (value.isTensor()) {
                value = exchange(value.toTensor(), written, is_output);
            } else if (value.isTensorList()) {
                c10::List<Tensor> list;
                for (const Tensor &x : value.toTensorVector()) list.push_back(exchange(x, written, is_output));
                value = list;
            } else if (value.isOptionalTensorList()) {
                c10::List<OptionalTensor> list;
                for (const OptionalTensor &x : value.toOptionalTensorVector())
                    list.push_back(x ? OptionalTensor(exchange(*x, written, is_output)) : OptionalTensor());
                value = list;
            } else if (value.isDevice() && value.toDevice().is_cuda()) {
                if (!device) device = value.toDevice();
                value = Device(at::kCPU);
            } else if (value.isGenerator()) {
                value = IValue();  // a GPU's generator; the CPU's default one instead
            }
        }
    }

    Tensor exchange(const Tensor &x, bool written, bool is_output) {
        if (!x.defined() || !x.is_cuda()) return x;
        if (!device) device = x.device();
        if (*device != x.device()) simulator_complain("two GPUs", name.c_str());
        accesses.add(x, written);
        for (Exchanged &earlier : exchanged) {
            if (!earlier.gpu.is_same(x)) continue;
            earlier.written |= written;
            return earlier.cpu;
        }
        // The operation gives an empty output its size, which memory of the GPU's cannot be given.
        Tensor cpu = is_output && x.numel() == 0 ? at::empty({0}, x.options().device(at::kCPU)) : on_cpu(x);
        exchanged.push_back({x, cpu, written});
        return cpu;
    }

    // Copies outputs to which the operation gave a size.
    void return_resized() {
        for (Exchanged &output : exchanged) {
            if (!output.written || output.cpu.numel() == 0) continue;
            if (output.gpu.numel() != 0 && output.cpu.sizes() == output.gpu.sizes()) continue;
            output.gpu.resize_(output.cpu.sizes());
            std::memcpy(output.gpu.data_ptr(), output.cpu.contiguous().data_ptr(), spanned_bytes(output.gpu));
        }
    }

    void exchange_results(Device target) {
        const size_t n = schema.returns().size();
        for (size_t i = 0; i < n; i++) {
            IValue &value = (*stack)[stack->size() - n + i];
            if (value.isTensor()) {
                value = exchange_result(value.toTensor(), target);
            } else if (value.isTensorList()) {
                c10::List<Tensor> list;
                for (const Tensor &x : value.toTensorVector()) list.push_back(exchange_result(x, target));
                value = list;
            }
        }
    }

    Tensor exchange_result(const Tensor &x, Device target) {
        if (!x.defined() || !x.is_cpu()) return x;
        for (const Exchanged &argument : exchanged)
            if (argument.cpu.is_same(x)) return argument.gpu;
        Tensor result = on_gpu(x, target);
        accesses.add(result, true);
        return result;
    }

    const c10::OperatorHandle &operation;
    const c10::FunctionSchema &schema;
    torch::jit::Stack *stack;
    std::string name;
    std::optional<Device> device;
    std::vector<Exchanged> exchanged;
    Accesses accesses;
};

void run_on_cpu(const c10::OperatorHandle &operation, c10::DispatchKeySet, torch::jit::Stack *stack) { Operation(operation, stack).run(); }

bool same_layout(const Tensor &a, const Tensor &b) {
    return a.scalar_type() == b.scalar_type() && a.strides() == b.strides() && a.is_non_overlapping_and_dense() && b.is_non_overlapping_and_dense();
}

// Within a GPU; other copies are libtorch's own, which call cudaMemcpyAsync.
Tensor &copy_(Tensor &self, const Tensor &source, bool non_blocking) {
    if (!self.is_cuda() || !source.is_cuda() || self.device() != source.device()) return at::native::copy_(self, source, non_blocking);
    if (self.is_same(source) || self.numel() == 0) return self;
    c10::OptionalDeviceGuard guard(self.device());
    Accesses accesses;
    accesses.add(source, false);
    accesses.add(self, true);
    accesses.run(self.device(), same_layout(self, source) ? "copy_ (memory)" : "copy_ (kernel)");
    Tensor to = on_cpu(self);
    at::native::copy_(to, on_cpu(source), false);
    return self;
}

void ignore_record_stream(const c10::OperatorHandle &, c10::DispatchKeySet, torch::jit::Stack *stack) { torch::jit::drop(*stack, 2); }

// Operations that remain libtorch's own.
const std::set<std::string> OWN{"aten::copy_", "aten::_local_scalar_dense", "aten::set_", "aten::resize_", "aten::empty",
                                "aten::empty_strided", "aten::_efficientzerotensor", "aten::as_strided", "aten::record_stream",
                                "aten::is_pinned", "aten::_pin_memory", "aten::view", "aten::_reshape_alias", "aten::unfold",
                                "aten::is_set_to"};

bool returns_view(const c10::FunctionSchema &schema) {
    for (const auto &result : schema.returns())
        if (result.alias_info() && !result.alias_info()->isWrite()) return true;
    return false;
}

// Whether the CPU's kernel replaces CUDA's.
bool is_replaced(const c10::OperatorName &name, const c10::OperatorHandle &operation) {
    return name.name.rfind("aten::", 0) == 0 && OWN.count(name.name) == 0 &&
           operation.hasKernelForDispatchKey(c10::DispatchKey::CUDA) && operation.hasKernelForDispatchKey(c10::DispatchKey::CPU) &&
           !returns_view(operation.schema());
}

// libtorch warns of operations that are replaced.
struct IgnoreWarnings : c10::WarningHandler {
    void process(const c10::Warning &) override {}
};

torch::Library *replace_operations() {
    IgnoreWarnings ignore;
    c10::WarningUtils::WarningHandlerGuard guard(&ignore);
    auto *library = new torch::Library(torch::Library::IMPL, "aten", c10::DispatchKey::CUDA, __FILE__, __LINE__);
    auto by_cpu = [] { return torch::CppFunction::makeFromBoxedFunction<&run_on_cpu>(); };
    const size_t prefix = std::strlen("aten::");
    auto &dispatcher = c10::Dispatcher::singleton();
    for (const c10::OperatorName &name : dispatcher.getAllOpNames()) {
        const auto operation = dispatcher.findSchema(name);
        if (!operation || !is_replaced(name, *operation)) continue;
        const std::string overload = name.overload_name.empty() ? "" : "." + name.overload_name;
        library->impl((name.name.substr(prefix) + overload).c_str(), by_cpu());
    }
    for (const char *composite : {"convolution", "convolution_backward"}) library->impl(composite, by_cpu());
    library->impl("copy_", torch::dispatch(c10::DispatchKey::CUDA, TORCH_FN(copy_)));
    replace_cuda_operations(*library);
    if (settings().ignore_record_stream) library->impl("record_stream", torch::CppFunction::makeFromBoxedFunction<&ignore_record_stream>());
    return library;
}

// When this library is loaded, after libtorch_cuda.so; kept until the process ends.
torch::Library *const replaced = replace_operations();

}  // namespace
