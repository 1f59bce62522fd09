// Records the libtorch operations of this thread that take or return a tensor [N, C, H, W] whose channels are not innermost. The
// test in layouts.rs compiles it.

#include <ATen/ATen.h>
#include <ATen/record_function.h>

#include <mutex>
#include <set>
#include <string>

namespace {

std::mutex lock;
std::set<std::string> found;
std::string text;

// Operations that move no values; their inputs and outputs may be [N, H, W, C].
const std::set<std::string> views{"aten::permute",      "aten::contiguous", "aten::view", "aten::reshape",
                                  "aten::as_strided",   "aten::empty",      "aten::empty_strided",
                                  "aten::_reshape_alias"};

bool channels_innermost(const at::Tensor &x) {
    if (!x.defined() || x.layout() != at::kStrided || x.dim() != 4 || x.numel() == 0) return true;
    return x.size(1) == 1 || x.stride(1) == 1 || (x.size(2) == 1 && x.size(3) == 1);
}

void look(const at::RecordFunction &function, const char *what, c10::ArrayRef<const c10::IValue> values) {
    if (views.count(function.name())) return;
    for (size_t i = 0; i < values.size(); i++) {
        if (!values[i].isTensor() || channels_innermost(values[i].toTensor())) continue;
        std::string shape;
        for (auto size : values[i].toTensor().sizes()) shape += " " + std::to_string(size);
        std::lock_guard guard(lock);
        found.insert(std::string(function.name()) + what + std::to_string(i) + ":" + shape);
    }
}

std::unique_ptr<at::ObserverContext> before(const at::RecordFunction &function) {
    look(function, " takes ", function.inputs());
    return nullptr;
}

void after(const at::RecordFunction &function, at::ObserverContext *) {
    look(function, " gives ", c10::ArrayRef<c10::IValue>(function.outputs()));
}

}  // namespace

extern "C" {

uint64_t layouts_watch() noexcept {
    found.clear();
    return at::addThreadLocalCallback(at::RecordFunctionCallback(before, after)
                                     .needsInputs(true)
                                     .needsOutputs(true)
                                     .scopes({at::RecordScope::FUNCTION}));
}

// Ends a watch and returns its findings, one per line; NUL-terminated, valid until the next call.
const char *layouts_found(uint64_t watch) noexcept {
    at::removeCallback(watch);
    std::lock_guard guard(lock);
    text.clear();
    for (const auto &one : found) text += one + "\n";
    return text.c_str();
}

}  // extern "C"
