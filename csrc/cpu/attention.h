// SPDX-License-Identifier: MIT
// Attention on the CPU, of images or of the groups of one shape: checks, then a pass for the dtype.
#pragma once

#include <optional>

#include <torch/csrc/stable/tensor.h>

#include "groups.h"

namespace ocnet::cpu {

using torch::stable::Tensor;

// Token matrices (N, tokens, channels) of whole maps; lse (N, L). Without a key, it is the query.
struct ForwardTensors {
  Tensor query;
  std::optional<Tensor> key;
  Tensor value;
  double scale;
  Tensor out, lse;
  std::optional<Tensor> residual;
};

// Gradients that are absent are not wanted. Without a key, grad_query receives both of its roles.
struct BackwardTensors {
  Tensor grad_out, query;
  std::optional<Tensor> key;
  Tensor value, out, lse;
  std::optional<Tensor> residual;
  double scale;
  std::optional<Tensor> grad_query, grad_key, grad_value;
};

// Throws unless the tensors fit each other; `function` is named in what it says.
void check(const char* function, const ForwardTensors& tensors);
void check(const char* function, const BackwardTensors& tensors);

void forward(const ForwardTensors& tensors, const Groups* groups = nullptr);
void backward(const BackwardTensors& tensors, const Groups* groups = nullptr);

}  // namespace ocnet::cpu
