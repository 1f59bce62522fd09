// The parts of libtorch that tch does not offer, as C functions for `trainer/src/sys/torch/`, which documents each. A function
// that can fail returns 0 or null, and `codinet_last_error` then returns the message.

#include <ATen/ATen.h>
#include <ATen/TensorIterator.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/_foreach_add.h>
#include <ATen/ops/_foreach_copy.h>
#include <ATen/ops/_foreach_norm.h>
#include <ATen/ops/_fused_adamw.h>
#include <ATen/ops/_fused_sgd.h>
#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/variable.h>

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "guarded.h"

namespace {

// A Rust closure: its data, and the function that frees them.
struct Context {
    void *data;
    void (*release)(void *);
    Context(void *data, void (*release)(void *)) : data(data), release(release) {}
    Context(const Context &) = delete;
    Context &operator=(const Context &) = delete;
    ~Context() { release(data); }
};

struct GradientHook : torch::autograd::PostAccumulateGradHook {
    // The callee owns the gradient.
    using Receive = void (*)(void *, at::Tensor *gradient);
    Receive receive;
    Context context;
    GradientHook(Receive receive, void *data, void (*release)(void *)) : receive(receive), context(data, release) {}
    void operator()(const at::Tensor &parameter) override {
        auto *gradient = new at::Tensor(parameter.grad());
        parameter.mutable_grad().reset();
        receive(context.data, gradient);
    }
};

// An operation whose backward pass is a Rust closure. It receives the outputs' gradients, null for an undefined one, and
// returns the inputs' gradients as new tensors, null for none.
struct Function : torch::autograd::Node {
    using Backward = void (*)(void *, const at::Tensor *const *, at::Tensor **);
    Backward backward;
    std::unique_ptr<Context> context;
    torch::autograd::variable_list apply(torch::autograd::variable_list &&gradients) override {
        at::NoGradGuard no_grad;
        TORCH_CHECK(context, "backward runs only once through a graph");
        std::vector<const at::Tensor *> output_gradients;
        for (const auto &gradient : gradients) output_gradients.push_back(gradient.defined() ? &gradient : nullptr);
        std::vector<at::Tensor *> input_gradients(num_outputs(), nullptr);
        backward(context->data, output_gradients.data(), input_gradients.data());
        torch::autograd::variable_list result;
        for (auto *gradient : input_gradients) {
            result.push_back(gradient ? *gradient : at::Tensor());
            delete gradient;
        }
        return result;
    }
    void release_variables() override { context.reset(); }
};

const c10::impl::VirtualGuardImpl cuda() { return c10::impl::VirtualGuardImpl(c10::DeviceType::CUDA); }

c10::Device gpu(int index) { return c10::Device(c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(index)); }

struct RecordedEvent {
    c10::Event event;
    int device;
};

// The operations that torch.compile uses for convolutions on a CPU; they have no C++ function and are looked up by name.
using OptionalString = std::optional<std::string_view>;
using ScalarList = c10::List<std::optional<at::Scalar>>;
using ConvForwardOp = at::Tensor(const at::Tensor &, const at::Tensor &, const std::optional<at::Tensor> &,
                                 at::IntArrayRef, at::IntArrayRef, at::IntArrayRef, int64_t, std::string_view, ScalarList,
                                 OptionalString);
using ConvForwardAddOp = at::Tensor &(at::Tensor &, const at::Tensor &, const at::Tensor &,
                                      const std::optional<at::Tensor> &, at::IntArrayRef, at::IntArrayRef,
                                      at::IntArrayRef, int64_t, std::string_view, std::optional<at::Scalar>,
                                      OptionalString, ScalarList, OptionalString);

}  // namespace

extern "C" {

// --- sys/torch/mod.rs ---------------------------------------------------------------------------------------------------------

const char *codinet_last_error() noexcept { return last_error.c_str(); }

// --- sys/torch/autograd.rs ----------------------------------------------------------------------------------------------------

bool codinet_hook_gradient(at::Tensor *parameter, GradientHook::Receive receive, void *data, void (*release)(void *)) noexcept {
    return guarded([&] {
        auto hook = std::make_unique<GradientHook>(receive, data, release);
        torch::autograd::impl::set_post_acc_grad_hooks(*parameter, std::move(hook));
        return true;
    });
}

bool codinet_attach_backward(const at::Tensor *const *inputs, size_t n_inputs, const at::Tensor *const *outputs,
                      size_t n_outputs, Function::Backward backward, void *data, void (*release)(void *)) noexcept {
    return guarded([&] {
        auto context = std::make_unique<Context>(data, release);
        torch::autograd::variable_list variables;
        for (size_t i = 0; i < n_inputs; i++) variables.push_back(*inputs[i]);
        if (!torch::autograd::compute_requires_grad(variables)) return true;
        auto node = std::shared_ptr<Function>(new Function(), torch::autograd::deleteNode);
        node->backward = backward;
        node->context = std::move(context);
        node->set_next_edges(torch::autograd::collect_next_edges(variables));
        for (size_t i = 0; i < n_outputs; i++) torch::autograd::set_history(*outputs[i], node);
        return true;
    });
}

// --- sys/torch/threads.rs -----------------------------------------------------------------------------------------------------

// Iterates over a tensor of `tasks` bytes inside libtorch: at::parallel_for is a template, which would be compiled here and use
// another OpenMP than libtorch's.
bool codinet_parallel_for(size_t tasks, void (*task)(void *, size_t), void *data) noexcept {
    return guarded([&] {
        at::Tensor marks = at::empty({static_cast<int64_t>(tasks)}, at::kByte);
        char *first = static_cast<char *>(marks.data_ptr());
        auto run_tasks = [&](char **marked, const int64_t *strides, int64_t n) {
            for (int64_t i = 0; i < n; i++) task(data, marked[0] + i * strides[0] - first);
        };
        at::TensorIterator::nullary_op(marks).for_each(run_tasks, 1);
        return true;
    });
}

// --- sys/torch/fused.rs -------------------------------------------------------------------------------------------------------

bool codinet_fused_sgd(at::Tensor *const *weights, at::Tensor *const *gradients, at::Tensor *const *momenta, size_t n,
                       double lr, double momentum, double weight_decay, bool nesterov, const at::Tensor *divisor,
                       const at::Tensor *skip) noexcept {
    return guarded([&] {
        at::NoGradGuard no_grad;
        std::vector<at::Tensor> w, g, m;
        for (size_t i = 0; i < n; i++) {
            w.push_back(weights[i]->detach());
            g.push_back(gradients[i]->detach());
            if (momentum != 0) m.push_back(momenta[i]->detach()); // without momentum the list must be empty
        }
        std::optional<at::Tensor> scale;
        if (divisor != nullptr) scale = *divisor;
        at::_fused_sgd_(w, g, m, weight_decay, momentum, lr, 0.0, nesterov, false, false, scale, *skip);
        return true;
    });
}

bool codinet_fused_adamw(at::Tensor *weight, at::Tensor *gradient, at::Tensor *mean, at::Tensor *square, at::Tensor *step,
                         double lr, double beta1, double beta2, double weight_decay, double eps, const at::Tensor *divisor,
                         const at::Tensor *skip) noexcept {
    return guarded([&] {
        at::NoGradGuard no_grad;
        std::optional<at::Tensor> scale;
        if (divisor != nullptr) scale = *divisor;
        const std::vector<at::Tensor> w{weight->detach()}, g{*gradient}, m{*mean}, v{*square}, steps{*step};
        at::_fused_adamw_(w, g, m, v, {}, steps, lr, beta1, beta2, weight_decay, eps, false, false, scale, *skip);
        return true;
    });
}

at::Tensor *codinet_norms(const at::Tensor *const *tensors, size_t n) noexcept {
    return guarded([&] {
        at::NoGradGuard no_grad;
        std::vector<at::Tensor> list;
        for (size_t i = 0; i < n; i++) list.push_back(*tensors[i]);
        return new at::Tensor(at::stack(at::_foreach_norm(list)));
    });
}

// --- sys/torch/convolution.rs -------------------------------------------------------------------------------------------------

// Null with an empty message: this libtorch has no oneDNN.
at::Tensor *codinet_pack_weight(const at::Tensor *weight, int64_t stride, int64_t padding, const int64_t *input) noexcept {
    last_error.clear();
    return guarded([&]() -> at::Tensor * {
        static const auto op = c10::Dispatcher::singleton().findSchema({"mkldnn::_reorder_convolution_weight", ""});
        if (!op || !at::globalContext().userEnabledMkldnn()) return nullptr;
        auto pair = [](int64_t n) { return std::vector<int64_t>{n, n}; };
        std::vector<c10::IValue> stack{*weight, pair(padding), pair(stride), pair(1), int64_t(1),
                                       std::vector<int64_t>(input, input + 4)};
        op->callBoxed(stack);
        return new at::Tensor(stack[0].toTensor());
    });
}

at::Tensor *codinet_conv_forward(const at::Tensor *x, const at::Tensor *weight, const at::Tensor *bias, int64_t stride,
                             int64_t padding, bool relu) noexcept {
    return guarded([&]() -> at::Tensor * {
        static const auto op =
            c10::Dispatcher::singleton().findSchemaOrThrow("mkldnn::_convolution_pointwise", "").typed<ConvForwardOp>();
        const int64_t strides[]{stride, stride}, paddings[]{padding, padding}, dilations[]{1, 1};
        return new at::Tensor(
            op.call(*x, *weight, *bias, paddings, strides, dilations, 1, relu ? "relu" : "none", ScalarList(), ""));
    });
}

bool codinet_conv_forward_add(at::Tensor *sum, const at::Tensor *x, const at::Tensor *weight, const at::Tensor *bias,
                           int64_t stride, int64_t padding) noexcept {
    return guarded([&] {
        static const auto op = c10::Dispatcher::singleton()
                                   .findSchemaOrThrow("mkldnn::_convolution_pointwise_", "binary")
                                   .typed<ConvForwardAddOp>();
        const int64_t strides[]{stride, stride}, paddings[]{padding, padding}, dilations[]{1, 1};
        op.call(*sum, *x, *weight, *bias, paddings, strides, dilations, 1, "add", std::nullopt, "relu", ScalarList(), "");
        return true;
    });
}

// --- sys/torch/stream.rs ------------------------------------------------------------------------------------------------------

void *codinet_event_record(int device, bool timed) noexcept {
    return guarded([&]() -> void * {
        const auto flag = timed ? c10::EventFlag::BACKEND_DEFAULT : c10::EventFlag::PYTORCH_DEFAULT;
        auto recorded =
            std::unique_ptr<RecordedEvent>(new RecordedEvent{c10::Event(c10::DeviceType::CUDA, flag), device});
        recorded->event.record(cuda().getStream(gpu(device)));
        return recorded.release();
    });
}

bool codinet_event_block(void *event) noexcept {
    return guarded([&] {
        auto *recorded = static_cast<RecordedEvent *>(event);
        recorded->event.block(cuda().getStream(gpu(recorded->device)));
        return true;
    });
}

// 1: complete; -1: not yet; 0: the query failed. Sets the calling thread's device to the event's. Without that a new thread
// uses GPU 0, and the query would create a context of every rank there.
int codinet_event_query(void *event) noexcept {
    return guarded([&] {
        auto *recorded = static_cast<RecordedEvent *>(event);
        cuda().setDevice(gpu(recorded->device));
        return recorded->event.query() ? 1 : -1;
    });
}

bool codinet_event_synchronize(void *event) noexcept {
    return guarded([&] {
        static_cast<RecordedEvent *>(event)->event.synchronize();
        return true;
    });
}

// Both events are timed; waits for both.
bool codinet_event_elapsed(void *earlier, void *later, double *milliseconds) noexcept {
    return guarded([&] {
        auto &first = static_cast<RecordedEvent *>(earlier)->event, &last = static_cast<RecordedEvent *>(later)->event;
        first.synchronize();
        last.synchronize();
        *milliseconds = first.elapsedTime(last);
        return true;
    });
}

void codinet_event_free(void *event) noexcept { delete static_cast<RecordedEvent *>(event); }

bool codinet_set_device(int device) noexcept {
    return guarded([&] {
        cuda().setDevice(gpu(device));
        return true;
    });
}

bool codinet_set_side_stream(int device, int purpose) noexcept {
    return guarded([&] {
        static std::mutex mutex;
        static std::map<std::pair<int, int>, c10::Stream> streams;
        std::lock_guard<std::mutex> lock(mutex);
        cuda().setDevice(gpu(device));
        auto found = streams.find({device, purpose});
        if (found == streams.end())
            found = streams.emplace(std::pair(device, purpose), cuda().getStreamFromGlobalPool(gpu(device), true)).first;
        cuda().exchangeStream(found->second);
        return true;
    });
}

// --- sys/torch/tensor.rs ------------------------------------------------------------------------------------------------------

at::Tensor *codinet_pin_memory(const at::Tensor *tensor) noexcept {
    return guarded([&] { return new at::Tensor(tensor->pin_memory()); });
}

// `tensor`, with the strides of `like` if they differ only where a dimension has one element: with others than its sums', one tensor
// would make _foreach_add_ and _foreach_copy_ launch a kernel for each.
static at::Tensor with_strides_of(const at::Tensor &like, const at::Tensor &tensor) {
    for (int64_t i = 0; i < tensor.dim(); i++)
        if (tensor.size(i) != 1 && tensor.stride(i) != like.stride(i)) return tensor;
    return tensor.as_strided(like.sizes(), like.strides());
}

using ForEach = void (*)(at::TensorList to, at::TensorList from);

static bool for_each_pair(ForEach operation, const at::Tensor *const *to, const at::Tensor *const *from, size_t n) noexcept {
    return guarded([&] {
        at::NoGradGuard no_grad;
        std::vector<at::Tensor> targets, sources;
        for (size_t i = 0; i < n; i++) {
            targets.push_back(*to[i]);
            sources.push_back(with_strides_of(*to[i], *from[i]));
        }
        operation(targets, sources);
        return true;
    });
}

bool codinet_add_all(const at::Tensor *const *sums, const at::Tensor *const *terms, size_t n) noexcept {
    return for_each_pair([](auto to, auto from) { at::_foreach_add_(to, from); }, sums, terms, n);
}

bool codinet_copy_all(const at::Tensor *const *to, const at::Tensor *const *from, size_t n) noexcept {
    return for_each_pair([](auto to, auto from) { at::_foreach_copy_(to, from); }, to, from, n);
}

bool codinet_record_stream(at::Tensor *tensor) noexcept {
    return guarded([&] {
        tensor->record_stream(cuda().getStream(tensor->device()));
        return true;
    });
}

// --- sys/torch/mod.rs and stream.rs -------------------------------------------------------------------------------------------

bool codinet_allow_tf32() noexcept {
    return guarded([&] {
        auto &context = at::globalContext();
        context.setAllowTF32CuBLAS(true);
        context.setAllowTF32CuDNN(true);
        return context.allowTF32CuBLAS() && context.allowTF32CuDNN();
    });
}

// Null for the default stream.
bool codinet_current_stream_handle(int device, void **handle) noexcept {
    return guarded([&] {
        *handle = cuda().getStream(gpu(device)).native_handle();
        return true;
    });
}

}  // extern "C"
