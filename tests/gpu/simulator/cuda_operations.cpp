// Operations without a CPU kernel of the same name: batch norm of cuDNN, libtorch's own LSTM cell, and norms of many tensors.
#include <ATen/ATen.h>
#include <ATen/ops/native_batch_norm.h>
#include <ATen/ops/native_batch_norm_backward.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include <functional>

#include "operations.h"

namespace {

// Results of a CPU's kernel as tensors of the GPU, noted as written.
std::vector<Tensor> written(Accesses &accesses, Device device, const std::vector<Tensor> &results) {
    std::vector<Tensor> moved;
    for (const Tensor &result : results) {
        moved.push_back(on_gpu(result, device));
        accesses.add(moved.back(), true);
    }
    return moved;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> cudnn_batch_norm(const Tensor &x, const Tensor &weight, const OptionalTensor &bias,
                                                            const OptionalTensor &running_mean, const OptionalTensor &running_var,
                                                            bool training, double momentum, double epsilon) {
    c10::OptionalDeviceGuard guard(x.device());
    Accesses accesses;
    for (const OptionalTensor &read : {OptionalTensor(x), OptionalTensor(weight), bias}) accesses.add(read, false);
    for (const OptionalTensor &running : {running_mean, running_var}) accesses.add(running, training);
    const auto [y, mean, deviation] = at::native_batch_norm(on_cpu(x), on_cpu(weight), on_cpu(bias), on_cpu(running_mean),
                                                            on_cpu(running_var), training, momentum, epsilon);
    const auto results = written(accesses, x.device(), {y, mean, deviation});
    accesses.run(x.device(), "cudnn_batch_norm");
    return {results[0], results[1], results[2], at::empty({0}, x.options().dtype(at::kByte))};
}

std::tuple<Tensor, Tensor, Tensor> cudnn_batch_norm_backward(const Tensor &x, const Tensor &gradient, const Tensor &weight,
                                                             const OptionalTensor &, const OptionalTensor &, const OptionalTensor &mean,
                                                             const OptionalTensor &deviation, double epsilon, const Tensor &) {
    c10::OptionalDeviceGuard guard(x.device());
    Accesses accesses;
    for (const Tensor &read : {x, gradient, weight, *mean, *deviation}) accesses.add(read, false);
    const auto [of_x, of_weight, of_bias] = at::native_batch_norm_backward(
        on_cpu(gradient), on_cpu(x), on_cpu(weight), {}, {}, on_cpu(*mean), on_cpu(*deviation), true, epsilon, {true, true, true});
    const auto results = written(accesses, x.device(), {of_x, of_weight, of_bias});
    accesses.run(x.device(), "cudnn_batch_norm_backward");
    return {results[0], results[1], results[2]};
}

// The gates i, f, g and o are the quarters of the columns; the workspace holds them after their activations.
std::tuple<Tensor, Tensor, Tensor> lstm_cell(const Tensor &of_input, const Tensor &of_hidden, const Tensor &cell,
                                             const OptionalTensor &input_bias, const OptionalTensor &hidden_bias) {
    const Device device = of_input.device();
    c10::OptionalDeviceGuard guard(device);
    Accesses accesses;
    for (const OptionalTensor &read : {OptionalTensor(of_input), OptionalTensor(of_hidden), OptionalTensor(cell), input_bias, hidden_bias})
        accesses.add(read, false);
    Tensor sums = on_cpu(of_input) + on_cpu(of_hidden);
    for (const OptionalTensor &bias : {input_bias, hidden_bias})
        if (bias && bias->defined()) sums = sums + on_cpu(*bias);
    const auto quarters = sums.chunk(4, 1);
    const Tensor i = quarters[0].sigmoid(), f = quarters[1].sigmoid(), g = quarters[2].tanh(), o = quarters[3].sigmoid();
    const Tensor new_cell = f * on_cpu(cell) + i * g;
    const Tensor hidden = o * new_cell.tanh();
    const auto results = written(accesses, device, {hidden, new_cell, at::cat({i, f, g, o}, 1)});
    accesses.run(device, "_thnn_fused_lstm_cell");
    return {results[0], results[1], results[2]};
}

std::tuple<Tensor, Tensor, Tensor> lstm_cell_backward(const OptionalTensor &hidden_gradient, const OptionalTensor &cell_gradient,
                                                      const Tensor &cell, const Tensor &new_cell, const Tensor &workspace, bool has_bias) {
    const Device device = workspace.device();
    c10::OptionalDeviceGuard guard(device);
    Accesses accesses;
    for (const OptionalTensor &read :
         {hidden_gradient, cell_gradient, OptionalTensor(cell), OptionalTensor(new_cell), OptionalTensor(workspace)})
        accesses.add(read, false);
    const auto quarters = on_cpu(workspace).chunk(4, 1);
    const Tensor &i = quarters[0], &f = quarters[1], &g = quarters[2], &o = quarters[3];
    const Tensor active = on_cpu(new_cell).tanh();
    auto or_zero = [&](const OptionalTensor &x) { return x && x->defined() ? on_cpu(*x) : at::zeros_like(active); };
    const Tensor of_hidden = or_zero(hidden_gradient);
    const Tensor of_cell = or_zero(cell_gradient) + of_hidden * o * (1 - active * active);
    const Tensor gates = at::cat({of_cell * g * i * (1 - i), of_cell * on_cpu(cell) * f * (1 - f), of_cell * i * (1 - g * g),
                                  of_hidden * active * o * (1 - o)}, 1);
    const auto results = written(accesses, device, {gates, of_cell * f, has_bias ? gates.sum(0) : Tensor()});
    accesses.run(device, "_thnn_fused_lstm_cell_backward");
    return {results[0], results[1], results[2]};
}

// `operation` on every pair: one launch named `name` if strides are equal and the kinds are those of the first pair, which for sums are
// equal, too. Others take a launch named `single` for each pair.
void foreach_pair(at::TensorList to, at::TensorList from, bool kinds_may_differ, const char *name, const char *single,
                  const std::function<void(Tensor, Tensor)> &operation) {
    const Device device = to[0].device();
    c10::OptionalDeviceGuard guard(device);
    bool one_launch = kinds_may_differ || to[0].dtype() == from[0].dtype();
    for (size_t i = 0; i < to.size(); i++)
        one_launch &= to[i].strides() == from[i].strides() && to[i].dtype() == to[0].dtype() && from[i].dtype() == from[0].dtype();
    Accesses all;
    for (size_t i = 0; i < to.size(); i++) {
        Accesses each;
        Accesses &accesses = one_launch ? all : each;
        accesses.add(from[i], false);
        accesses.add(to[i], true);
        operation(on_cpu(to[i]), on_cpu(from[i]));
        if (!one_launch) each.run(device, single);
    }
    if (one_launch) all.run(device, name);
}

void foreach_add(at::TensorList sums, at::TensorList terms, const at::Scalar &factor) {
    foreach_pair(sums, terms, false, "_foreach_add_", "add_", [&](Tensor sum, Tensor term) { sum.add_(term, factor); });
}

void foreach_copy(at::TensorList to, at::TensorList from, bool) {
    foreach_pair(to, from, true, "_foreach_copy_", "copy_", [](Tensor to, Tensor from) { to.copy_(from); });
}

std::vector<Tensor> foreach_norm(at::TensorList tensors, const at::Scalar &order, std::optional<at::ScalarType> kind) {
    const Device device = tensors[0].device();
    c10::OptionalDeviceGuard guard(device);
    Accesses accesses;
    std::vector<Tensor> norms;
    for (const Tensor &x : tensors) {
        accesses.add(x, false);
        norms.push_back(at::linalg_vector_norm(on_cpu(x), order, {}, false, kind));
    }
    const auto results = written(accesses, device, norms);
    accesses.run(device, "_foreach_norm");
    return results;
}

}  // namespace

void replace_cuda_operations(torch::Library &library) {
    library.impl("cudnn_batch_norm", TORCH_FN(cudnn_batch_norm));
    library.impl("cudnn_batch_norm_backward", TORCH_FN(cudnn_batch_norm_backward));
    library.impl("_thnn_fused_lstm_cell", TORCH_FN(lstm_cell));
    library.impl("_thnn_fused_lstm_cell_backward_impl", TORCH_FN(lstm_cell_backward));
    library.impl("_foreach_add_.List", TORCH_FN(foreach_add));
    library.impl("_foreach_copy_", TORCH_FN(foreach_copy));
    library.impl("_foreach_norm.Scalar", TORCH_FN(foreach_norm));
}
