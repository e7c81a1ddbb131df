// SPDX-License-Identifier: MIT
// Host entry points of attention within the groups of a partition. The CPU and the CUDA library
// each define both.
//
// Lists have one tensor for each stage (a scale of a pyramid; elsewhere there is one stage). Stages
// agree in dtype, device, E, Ev and in whether keys are shared; batch and sizes may differ. Token
// matrices of whole maps, any strides, H * W tokens row by row:
//   query (N, H * W, E)   key (N, H * W, E), an empty list where keys are the queries
//   value (N, H * W, Ev)  out (N, H * W, Ev)
// residual like out, an empty list where it is not wanted. lse (N, H * W), contiguous, in the order
// of the map. `partition` has 8 numbers for each stage: the GroupAxis of rows (size, count, step,
// stride), then that of columns (common/segments.h).
#pragma once

#include <cstdint>
#include <vector>

#include <torch/csrc/stable/tensor.h>

namespace ocnet {

using TensorList = std::vector<torch::stable::Tensor>;

constexpr int kMostStages = 4;

// Writes out, lse, and the residual if it is present.
void partitioned_attention_fwd(TensorList query, TensorList key, TensorList value,
                               std::vector<int64_t> partition, double scale, bool tf32,
                               TensorList out, TensorList lse, TensorList residual);

// Writes those gradients whose lists are not empty. Without keys, grad_query receives both roles.
void partitioned_attention_bwd(TensorList grad_out, TensorList query, TensorList key,
                               TensorList value, TensorList out, TensorList lse,
                               TensorList residual, std::vector<int64_t> partition, double scale,
                               bool tf32, TensorList grad_query, TensorList grad_key,
                               TensorList grad_value);

}  // namespace ocnet
