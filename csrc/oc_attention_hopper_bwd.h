// SPDX-License-Identifier: MIT
// Host entry point of attention's backward pass on Hopper's own instructions; in the CUDA library
// only. Arguments as in oc_attention.h, but 16-bit dtypes only, and:
//   query, key, value and grad_out have channel stride 1 and rows aligned to 16 bytes
//   at most 256 channels of queries and of values
//   the device has compute capability 9.0
#pragma once

#include <optional>

#include <torch/csrc/stable/tensor.h>

namespace ocnet {

void oc_attention_hopper_bwd(torch::stable::Tensor grad_out, torch::stable::Tensor query,
                             std::optional<torch::stable::Tensor> key, torch::stable::Tensor value,
                             torch::stable::Tensor out, torch::stable::Tensor lse,
                             std::optional<torch::stable::Tensor> residual, double scale,
                             std::optional<torch::stable::Tensor> grad_query,
                             std::optional<torch::stable::Tensor> grad_key,
                             std::optional<torch::stable::Tensor> grad_value);

}  // namespace ocnet
