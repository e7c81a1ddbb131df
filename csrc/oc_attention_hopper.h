// SPDX-License-Identifier: MIT
// Host entry points of attention's forward pass on Hopper's own instructions; in the CUDA library
// only. Arguments as in oc_attention.h and partitioned_attention.h, but:
//   16-bit dtypes, or, without groups, fp32, whose products are as exact as fp32's
//   16-bit query, key and value have channel stride 1 and rows aligned to 16 bytes, or, without
//   groups, all of them token stride 1 and channels aligned to 16 bytes
//   at most 256 channels of queries and 512 of values
//   the device has compute capability 9.0
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include <torch/csrc/stable/tensor.h>

#include "partitioned_attention.h"

namespace ocnet {

void oc_attention_hopper_fwd(torch::stable::Tensor query, std::optional<torch::stable::Tensor> key,
                             torch::stable::Tensor value, double scale, torch::stable::Tensor out,
                             torch::stable::Tensor lse,
                             std::optional<torch::stable::Tensor> residual);

void partitioned_attention_hopper_fwd(TensorList query, TensorList key, TensorList value,
                                      std::vector<int64_t> partition, double scale, TensorList out,
                                      TensorList lse, TensorList residual);

}  // namespace ocnet
