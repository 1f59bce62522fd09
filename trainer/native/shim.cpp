// What tch lacks of libtorch, as C functions. `trainer/src/native.rs` is their only caller, and says what each is for.
// A function that may fail returns 0 or null and leaves what happened to `codinet_error`.

#include <ATen/ATen.h>
#include <ATen/ops/_fused_sgd.h>
#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/variable.h>

#include <memory>
#include <string>

namespace {

thread_local std::string last_error;

template <typename F>
auto guarded(F &&body) noexcept -> decltype(body()) {
    try {
        return body();
    } catch (const std::exception &error) {
        last_error = error.what();
    } catch (...) {
        last_error = "an unknown C++ exception";
    }
    return {};
}

// A Rust closure: its data, and what gives them back.
struct Context {
    void *data;
    void (*release)(void *);
    Context(void *data, void (*release)(void *)) : data(data), release(release) {}
    Context(const Context &) = delete;
    Context &operator=(const Context &) = delete;
    ~Context() { release(data); }
};

struct GradientHook : torch::autograd::PostAccumulateGradHook {
    void (*ready)(void *);
    Context context;
    GradientHook(void (*ready)(void *), void *data, void (*release)(void *)) : ready(ready), context(data, release) {}
    void operator()(const at::Tensor &) override { ready(context.data); }
};

struct Mean {
    void (*in_place)(void *, at::Tensor *);
    Context context;
    Mean(void (*in_place)(void *, at::Tensor *), void *data, void (*release)(void *))
        : in_place(in_place), context(data, release) {}
    void operator()(at::Tensor &tensor) { in_place(context.data, &tensor); }
};

// The mean over ranks is linear, and each rank's gradient is averaged in the end: its backward is the mean as well.
struct MeanBackward : torch::autograd::Node {
    std::shared_ptr<Mean> mean;
    torch::autograd::variable_list apply(torch::autograd::variable_list &&gradients) override {
        at::NoGradGuard no_grad;
        at::Tensor gradient = gradients[0].clone(at::MemoryFormat::Contiguous);
        (*mean)(gradient);
        return {gradient};
    }
};

const c10::impl::VirtualGuardImpl cuda() { return c10::impl::VirtualGuardImpl(c10::DeviceType::CUDA); }

c10::Device gpu(int index) { return c10::Device(c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(index)); }

struct RecordedEvent {
    c10::Event event{c10::DeviceType::CUDA};
    int device;
};

}  // namespace

extern "C" {

const char *codinet_error() noexcept { return last_error.c_str(); }

bool codinet_hook_gradient(at::Tensor *parameter, at::Tensor *gradient, void (*ready)(void *), void *data,
                           void (*release)(void *)) noexcept {
    return guarded([&] {
        auto hook = std::make_unique<GradientHook>(ready, data, release);
        parameter->mutable_grad() = *gradient;
        torch::autograd::impl::set_post_acc_grad_hooks(*parameter, std::move(hook));
        return true;
    });
}

void *codinet_mean(void (*in_place)(void *, at::Tensor *), void *data, void (*release)(void *)) noexcept {
    return new std::shared_ptr<Mean>(std::make_shared<Mean>(in_place, data, release));
}

void codinet_mean_free(void *mean) noexcept { delete static_cast<std::shared_ptr<Mean> *>(mean); }

at::Tensor *codinet_mean_apply(void *handle, at::Tensor *x) noexcept {
    return guarded([&]() -> at::Tensor * {
        auto &mean = *static_cast<std::shared_ptr<Mean> *>(handle);
        at::Tensor y;
        {
            at::NoGradGuard no_grad;
            y = x->detach().clone(at::MemoryFormat::Contiguous);
            (*mean)(y);
        }
        if (at::GradMode::is_enabled() && x->requires_grad()) {
            auto node = std::shared_ptr<MeanBackward>(new MeanBackward(), torch::autograd::deleteNode);
            node->mean = mean;
            node->set_next_edges(torch::autograd::collect_next_edges(*x));
            torch::autograd::set_history(y, node);
        }
        return new at::Tensor(y);
    });
}

bool codinet_fused_sgd(at::Tensor *const *weights, at::Tensor *const *gradients, at::Tensor *const *momenta, size_t n,
                       double lr, double momentum, double weight_decay, bool nesterov, const at::Tensor *divisor,
                       const at::Tensor *skip) noexcept {
    return guarded([&] {
        at::NoGradGuard no_grad;
        std::vector<at::Tensor> w, g, m;
        for (size_t i = 0; i < n; i++) {
            w.push_back(weights[i]->detach());
            g.push_back(gradients[i]->detach());
            if (momentum != 0) m.push_back(momenta[i]->detach()); // without momentum the list has to be empty
        }
        std::optional<at::Tensor> scale;
        if (divisor != nullptr) scale = *divisor;
        at::_fused_sgd_(w, g, m, weight_decay, momentum, lr, 0.0, nesterov, false, false, scale, *skip);
        return true;
    });
}

void *codinet_event_record(int device) noexcept {
    return guarded([&]() -> void * {
        auto recorded = std::make_unique<RecordedEvent>();
        recorded->device = device;
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

// 1: it has come; -1: not yet; 0: it failed.
int codinet_event_query(void *event) noexcept {
    return guarded([&] { return static_cast<RecordedEvent *>(event)->event.query() ? 1 : -1; });
}

bool codinet_event_synchronize(void *event) noexcept {
    return guarded([&] {
        static_cast<RecordedEvent *>(event)->event.synchronize();
        return true;
    });
}

void codinet_event_free(void *event) noexcept { delete static_cast<RecordedEvent *>(event); }

bool codinet_side_stream(int device) noexcept {
    return guarded([&] {
        cuda().setDevice(gpu(device));
        cuda().exchangeStream(cuda().getStreamFromGlobalPool(gpu(device), true));
        return true;
    });
}

void *codinet_stream_handle(int device) noexcept {
    return guarded([&]() -> void * { return cuda().getStream(gpu(device)).native_handle(); });
}

}  // extern "C"
