// SPDX-License-Identifier: MIT
// Host entry points of pixel-wise attention. The CPU and the CUDA library each define both.
//
// Token matrices, any strides, one floating dtype:
//   query (N, L, E)   key (N, S, E), absent when it is the query   value (N, S, Ev)   out (N, L,
//   Ev)
// residual (N, L, Ev), like out: what rounding took from it, so that out + residual is the sum
// before rounding. lse (N, L), contiguous, float (double for double inputs): natural logsumexp over
// s of scale * <q_l, k_s>.
#pragma once

#include <optional>

#include <torch/csrc/stable/tensor.h>

namespace ocnet {

// Writes out, lse, and the residual if it is present.
void oc_attention_fwd(torch::stable::Tensor query, std::optional<torch::stable::Tensor> key,
                      torch::stable::Tensor value, double scale, bool tf32,
                      torch::stable::Tensor out, torch::stable::Tensor lse,
                      std::optional<torch::stable::Tensor> residual);

// Writes those gradients that are present. Without a key, grad_query receives both of its roles.
void oc_attention_bwd(torch::stable::Tensor grad_out, torch::stable::Tensor query,
                      std::optional<torch::stable::Tensor> key, torch::stable::Tensor value,
                      torch::stable::Tensor out, torch::stable::Tensor lse,
                      std::optional<torch::stable::Tensor> residual, double scale, bool tf32,
                      std::optional<torch::stable::Tensor> grad_query,
                      std::optional<torch::stable::Tensor> grad_key,
                      std::optional<torch::stable::Tensor> grad_value);

}  // namespace ocnet
