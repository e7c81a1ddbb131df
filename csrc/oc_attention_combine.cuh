// SPDX-License-Identifier: MIT
// Combination of the parts that keys were cut into, always in the same order. No torch headers.
#pragma once

#include "common/device.cuh"
#include "common/launch.cuh"
#include "common/math.h"
#include "common/ptx/arithmetic.cuh"
#include "common/tokens.h"
#include "oc_attention_softmax.cuh"

namespace ocnet {

// What a part knows of a row besides its sums; see SoftmaxRows.
struct alignas(16) PartialRow {
  float maximum, total, divisor, unused;
};

// Words of a row of a part: its sums in whole 16 bytes, then its PartialRow.
inline int64_t partial_pitch(int channels) {
  return ceil_div(channels, 4) * 4 + static_cast<int64_t>(sizeof(PartialRow) / sizeof(float));
}

// The parts of an image are neighbours: matrix image * splits + part.
inline TokenMatrix<float> partial_matrix(float* workspace, int rows, int channels) {
  const int64_t pitch = partial_pitch(channels);
  return {workspace, rows * pitch, pitch, 1, rows, channels};
}

OCNET_DEVICE PartialRow* partial_row(const TokenMatrix<float>& part, int row) {
  constexpr int kWords = sizeof(PartialRow) / sizeof(float);
  return reinterpret_cast<PartialRow*>(part.at(row + 1, 0) - kWords);
}

// What rounding takes from a number.
template <typename scalar_t>
OCNET_DEVICE float rounding_loss(float exact) {
  return exact - to_accumulator(from_accumulator<scalar_t>(exact));
}

template <typename scalar_t>
struct CombineParams {
  TokenMatrix<float> partial;      // (N * splits, L, Ev) and PartialRows
  TokenMatrix<scalar_t> out;       // (N, L, Ev)
  TokenMatrix<scalar_t> residual;  // (N, L, Ev); data is null where it is not wanted
  float* lse;                      // (N, L), contiguous
  int64_t images;
  int splits;
};

constexpr int kCombineThreads = 256;

// out, residual and lse from the sums of all parts. A warp for every row, lanes over channels; a
// row is read once. Grid: the rows of all images, 8 to a block.
template <typename scalar_t>
OCNET_KERNEL(kCombineThreads, 2)
oc_attention_combine_kernel(CombineParams<scalar_t> params) {
  constexpr int kRows = kCombineThreads / device::kWarpThreads;
  const int64_t index = device::block_index() * kRows + device::warp_index();
  const int64_t image = index / params.out.tokens;
  const int row = static_cast<int>(index - image * params.out.tokens);
  if (image >= params.images) return;
  // The row in the first part; `step` further on in the next.
  const float* const sums = params.partial.image(image * params.splits).at(row, 0);
  const PartialRow* const parts = partial_row(params.partial.image(image * params.splits), row);
  const int64_t step = params.partial.image_stride;
  const int64_t part_step = step / static_cast<int64_t>(sizeof(PartialRow) / sizeof(float));

  float maximum = negative_infinity<float>();
  for (int split = 0; split < params.splits; ++split) {
    maximum = ocnet::maximum(maximum, parts[split * part_step].maximum);
  }
  const float reference = softmax_reference(maximum);
  float total = 0;
  float divisor = 0;
  for (int split = 0; split < params.splits; ++split) {
    const PartialRow part = parts[split * part_step];
    const float weight = ptx::exp2_approx(part.maximum - reference);
    total += weight * part.total;
    divisor += weight * part.divisor;
  }
  if (device::lane_index() == 0) params.lse[index] = log_sum_exp(kLn2 * maximum, total);

  const float factor = 1.0f / divisor;
  const auto out = params.out.image(image);
  const auto residual = params.residual.image(image);
  for (int channel = device::lane_index(); channel < out.channels;
       channel += device::kWarpThreads) {
    float sum = 0;
    for (int split = 0; split < params.splits; ++split) {
      const float weight = ptx::exp2_approx(parts[split * part_step].maximum - reference);
      sum += weight * sums[split * step + channel];
    }
    const float exact = sum * factor;
    *out.at(row, channel) = from_accumulator<scalar_t>(exact);
    if (sizeof(scalar_t) == 2 && params.residual.data != nullptr) {
      *residual.at(row, channel) = from_accumulator<scalar_t>(rounding_loss<scalar_t>(exact));
    }
  }
}

template <typename scalar_t, typename Launch>
void launch_oc_attention_combine(const CombineParams<scalar_t>& params, const Launch& launch) {
  const int64_t rows = params.images * params.out.tokens;
  const int64_t per_block = kCombineThreads / device::kWarpThreads;
  launch(oc_attention_combine_kernel<scalar_t>, Grid{ceil_div(rows, per_block), kCombineThreads, 0},
         params);
}

}  // namespace ocnet
