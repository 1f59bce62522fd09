// Records the libtorch operations of this thread that take or return a tensor [N, C, H, W] whose channels are not innermost. The
// test in layouts.rs compiles it.

#include <ATen/ATen.h>
#include <ATen/record_function.h>

#include <mutex>
#include <set>
#include <string>

namespace {

std::mutex lock;
std::set<std::string> other_layouts;
std::string report;

// Operations that move no values; their inputs and outputs may be [N, H, W, C].
const std::set<std::string> views{"aten::permute",      "aten::contiguous", "aten::view", "aten::reshape",
                                  "aten::as_strided",   "aten::empty",      "aten::empty_strided",
                                  "aten::_reshape_alias"};

bool channels_innermost(const at::Tensor &x) {
    if (!x.defined() || x.layout() != at::kStrided || x.dim() != 4 || x.numel() == 0) return true;
    return x.size(1) == 1 || x.stride(1) == 1 || (x.size(2) == 1 && x.size(3) == 1);
}

void record_other_layouts(const at::RecordFunction &function, const char *verb, c10::ArrayRef<const c10::IValue> values) {
    if (views.count(function.name())) return;
    for (size_t i = 0; i < values.size(); i++) {
        if (!values[i].isTensor() || channels_innermost(values[i].toTensor())) continue;
        std::string shape;
        for (auto size : values[i].toTensor().sizes()) shape += " " + std::to_string(size);
        std::lock_guard guard(lock);
        other_layouts.insert(std::string(function.name()) + verb + std::to_string(i) + ":" + shape);
    }
}

std::unique_ptr<at::ObserverContext> before(const at::RecordFunction &function) {
    record_other_layouts(function, " takes ", function.inputs());
    return nullptr;
}

void after(const at::RecordFunction &function, at::ObserverContext *) {
    record_other_layouts(function, " returns ", c10::ArrayRef<c10::IValue>(function.outputs()));
}

}  // namespace

extern "C" {

uint64_t layouts_start() noexcept {
    other_layouts.clear();
    return at::addThreadLocalCallback(at::RecordFunctionCallback(before, after)
                                     .needsInputs(true)
                                     .needsOutputs(true)
                                     .scopes({at::RecordScope::FUNCTION}));
}

// Ends the observation that `layouts_start` began and returns what it found, one per line; NUL-terminated, valid until the next call.
const char *layouts_stop(uint64_t handle) noexcept {
    at::removeCallback(handle);
    std::lock_guard guard(lock);
    report.clear();
    for (const auto &line : other_layouts) report += line + "\n";
    return report.c_str();
}

}  // extern "C"
