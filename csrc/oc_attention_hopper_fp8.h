// SPDX-License-Identifier: MIT
// Host entry point of attention in 8 bits (e4m3), forward only; in the CUDA library only.
//   query (N, L, E)   bfloat16 or float16, any strides; at most 256 channels
//   key   (N, S, E)   like query; absent: the query's tokens are the keys
//   value (N, S, Ev)  like query; at most 512 channels
//   out   (N, L, Ev)  like query, written in full
// The device has compute capability 9.0.
#pragma once

#include <optional>

#include <torch/csrc/stable/tensor.h>

namespace ocnet {

void oc_attention_fp8_fwd(torch::stable::Tensor query, std::optional<torch::stable::Tensor> key,
                          torch::stable::Tensor value, double scale, torch::stable::Tensor out);

}  // namespace ocnet
