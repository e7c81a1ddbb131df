// SPDX-License-Identifier: MIT
// Host entry points of in-place activated batch norm. The CPU and the CUDA library each define all.
//
// Maps are dense, of one floating dtype and one layout in a call: planes (N, C, L) or rows (R, C),
// contiguous, at a multiple of 16 bytes, with at least one number. Vectors of channels, packed
// statistics and sums are float (double for double maps), contiguous. Formulas, with z the output:
//
//   scale = |weight| + scale_eps, or weight + copysign(scale_eps, weight) where `signed_scale`; 1
//           without a weight; the sign of a weight of 0 is +
//   y     = scale * (x - mean) / sqrt(var + eps) + bias,   z = act(y + residual)
//   dy    = act'(z) * grad_out,   act' and the inverse of act read the sign bit of z
//   yc    = inverse(z) - residual - bias, clamped to +-|scale| * sqrt(count - 1) where statistics
//           are those of the batch;   S = sum dy,   T = sum yc * dy
//   grad_x = A * dy + B * yc + K,   A = scale / sqrt(var + eps),
//           B = -T / (sqrt(var + eps) * scale * count),   K = -A * S / count; A * dy alone for
//           frozen statistics
//   grad_residual = dy,   grad_bias = S,   grad_weight = sign * T / scale (sign: of the weight, +1
//           where `signed_scale`),   grad_slope = sum over negative z of inverse(z) * grad_out
//
// Activations (`activation`): 0 identity, 1 leaky ReLU of slope `param`, or slope[c] where `slope`
// is present, 2 ELU of scale `param`, 3 ReLU (frozen statistics only). A slope[c] that is not above
// 0 and finite makes its channel NaN. ELU's inverse takes z / param as at least -1 + elu_floor.
#pragma once

#include <cstdint>
#include <optional>

#include <torch/csrc/stable/tensor.h>

namespace ocnet {

// Writes packed (2 C + 1): means, sums of squared deviations from them, the count.
void inplace_abn_stats(torch::stable::Tensor x, torch::stable::Tensor packed);

// Writes out (which may be x). In training: statistics are those of x, or of `packed` (parts,
// 2 C + 1) merged in order, parts of count 0 left out; writes mean and var (biased), and new_mean
// and new_var if present: (1 - momentum) * running + momentum * batch, the variance unbiased
// (count / max(count - 1, 1)). They may be running_mean and running_var themselves. Not in
// training: running_mean and running_var normalise.
void inplace_abn_fwd(
    torch::stable::Tensor x, std::optional<torch::stable::Tensor> residual,
    std::optional<torch::stable::Tensor> weight, std::optional<torch::stable::Tensor> bias,
    std::optional<torch::stable::Tensor> slope, std::optional<torch::stable::Tensor> packed,
    std::optional<torch::stable::Tensor> running_mean,
    std::optional<torch::stable::Tensor> running_var, bool training, double momentum, double eps,
    double scale_eps, int64_t activation, double param, bool signed_scale,
    torch::stable::Tensor out, std::optional<torch::stable::Tensor> mean,
    std::optional<torch::stable::Tensor> var, std::optional<torch::stable::Tensor> new_mean,
    std::optional<torch::stable::Tensor> new_var);

// Writes sums (2, C): S and T; and those gradients that are present. `count` (1): numbers of a
// channel over all ranks, absent for frozen statistics.
void inplace_abn_bwd_reduce(
    torch::stable::Tensor out, std::optional<torch::stable::Tensor> residual,
    torch::stable::Tensor grad_out, std::optional<torch::stable::Tensor> weight,
    std::optional<torch::stable::Tensor> bias, std::optional<torch::stable::Tensor> slope,
    std::optional<torch::stable::Tensor> count, double scale_eps, int64_t activation, double param,
    bool signed_scale, torch::stable::Tensor sums, std::optional<torch::stable::Tensor> grad_weight,
    std::optional<torch::stable::Tensor> grad_bias,
    std::optional<torch::stable::Tensor> grad_slope);

// Writes those gradients that are present. Without sums and count, statistics were frozen.
void inplace_abn_bwd_apply(torch::stable::Tensor out, std::optional<torch::stable::Tensor> residual,
                           torch::stable::Tensor grad_out,
                           std::optional<torch::stable::Tensor> weight,
                           std::optional<torch::stable::Tensor> bias,
                           std::optional<torch::stable::Tensor> slope, torch::stable::Tensor var,
                           std::optional<torch::stable::Tensor> sums,
                           std::optional<torch::stable::Tensor> count, double eps, double scale_eps,
                           int64_t activation, double param, bool signed_scale,
                           std::optional<torch::stable::Tensor> grad_x,
                           std::optional<torch::stable::Tensor> grad_residual);

// Both steps, for one rank: count is that of `out`. `training`: statistics were those of the batch.
void inplace_abn_bwd(torch::stable::Tensor out, std::optional<torch::stable::Tensor> residual,
                     torch::stable::Tensor grad_out, std::optional<torch::stable::Tensor> weight,
                     std::optional<torch::stable::Tensor> bias,
                     std::optional<torch::stable::Tensor> slope, torch::stable::Tensor var,
                     bool training, double eps, double scale_eps, int64_t activation, double param,
                     bool signed_scale, std::optional<torch::stable::Tensor> grad_x,
                     std::optional<torch::stable::Tensor> grad_residual,
                     std::optional<torch::stable::Tensor> grad_weight,
                     std::optional<torch::stable::Tensor> grad_bias,
                     std::optional<torch::stable::Tensor> grad_slope);

}  // namespace ocnet
