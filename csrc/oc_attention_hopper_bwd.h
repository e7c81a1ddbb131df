// SPDX-License-Identifier: MIT
// Host entry points of attention's backward pass on Hopper's own instructions; in the CUDA library
// only. Arguments as in oc_attention.h and partitioned_attention.h, but 16-bit dtypes only, and:
//   query, key, value and grad_out have channel stride 1 and rows aligned to 16 bytes
//   at most 256 channels of queries and 512 of values
//   the device has compute capability 9.0
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include <torch/csrc/stable/tensor.h>

#include "partitioned_attention.h"

namespace ocnet {

void oc_attention_hopper_bwd(torch::stable::Tensor grad_out, torch::stable::Tensor query,
                             std::optional<torch::stable::Tensor> key, torch::stable::Tensor value,
                             torch::stable::Tensor out, torch::stable::Tensor lse,
                             std::optional<torch::stable::Tensor> residual, double scale,
                             std::optional<torch::stable::Tensor> grad_query,
                             std::optional<torch::stable::Tensor> grad_key,
                             std::optional<torch::stable::Tensor> grad_value);

void partitioned_attention_hopper_bwd(TensorList grad_out, TensorList query, TensorList key,
                                      TensorList value, TensorList out, TensorList lse,
                                      TensorList residual, std::vector<int64_t> partition,
                                      double scale, TensorList grad_query, TensorList grad_key,
                                      TensorList grad_value);

}  // namespace ocnet
