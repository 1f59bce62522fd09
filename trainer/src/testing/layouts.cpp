// Watches what this thread asks of libtorch for tensors [N, C, H, W] whose channels do not lie innermost. For the test in
// layouts.rs, which compiles it.

#include <ATen/ATen.h>
#include <ATen/record_function.h>

#include <mutex>
#include <set>
#include <string>

namespace {

std::mutex lock;
std::set<std::string> found;
std::string text;

// Operations that move no values: what they give or take may be [N, H, W, C] by name.
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

// What was found since, a line each; NUL-terminated, until the next call.
const char *layouts_found(uint64_t watch) noexcept {
    at::removeCallback(watch);
    std::lock_guard guard(lock);
    text.clear();
    for (const auto &one : found) text += one + "\n";
    return text.c_str();
}

}  // extern "C"
