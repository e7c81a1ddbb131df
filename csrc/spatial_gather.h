// SPDX-License-Identifier: MIT
// Host entry points of spatial gathering. The CPU and the CUDA library each define both.
//
// Token matrices, any strides, one floating dtype:
//   features (N, L, C)   logits (N, L, K)   out (N, K, C)
// residual (N, K, C), like out: what rounding took from it, so that out + residual is the sum
// before rounding. lse (N, K), contiguous, float (double for double inputs): natural logsumexp over
// l of scale * logits[l, k]; NaN where the softmax is.
#pragma once

#include <optional>

#include <torch/csrc/stable/tensor.h>

namespace ocnet {

// Writes out, lse, and the residual if it is present. `tf32`: fp32 products may be rounded to TF32.
void spatial_gather_fwd(torch::stable::Tensor features, torch::stable::Tensor logits, double scale,
                        bool tf32, torch::stable::Tensor out, torch::stable::Tensor lse,
                        std::optional<torch::stable::Tensor> residual);

// Writes those gradients that are present.
void spatial_gather_bwd(torch::stable::Tensor grad_out, torch::stable::Tensor features,
                        torch::stable::Tensor logits, torch::stable::Tensor out,
                        torch::stable::Tensor lse, std::optional<torch::stable::Tensor> residual,
                        double scale, bool tf32, std::optional<torch::stable::Tensor> grad_features,
                        std::optional<torch::stable::Tensor> grad_logits);

}  // namespace ocnet
