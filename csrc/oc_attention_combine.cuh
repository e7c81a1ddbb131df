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
OCNET_HOST_DEVICE int64_t partial_pitch(int channels) {
  return ceil_div(channels, 4) * 4 + static_cast<int64_t>(sizeof(PartialRow) / sizeof(float));
}

// The parts of an image are neighbours: matrix image * splits + part.
OCNET_HOST_DEVICE TokenMatrix<float> partial_matrix(float* workspace, int rows, int channels) {
  const int64_t pitch = partial_pitch(channels);
  return {workspace, rows * pitch, pitch, 1, rows, channels};
}

// From the sums of a row to its PartialRow.
OCNET_HOST_DEVICE int64_t words_to_partial_row(const TokenMatrix<float>& part) {
  return part.token_stride - static_cast<int64_t>(sizeof(PartialRow) / sizeof(float));
}
OCNET_DEVICE PartialRow* partial_row(const TokenMatrix<float>& part, int row) {
  return reinterpret_cast<PartialRow*>(part.at(row, 0) + words_to_partial_row(part));
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
constexpr int kCombineRows = kCombineThreads / device::kWarpThreads;  // a warp for each

// One row of out, residual and lse (each where it is not null) from `count` parts, by a warp, lanes
// over channels. `part_row(i)` is where the sums of part i begin, with their PartialRow at
// `words_to_row` further on.
template <typename scalar_t, typename PartRow>
OCNET_DEVICE void combine_row(int count, const PartRow& part_row, int64_t words_to_row, float* lse,
                              int channels, scalar_t* out, int64_t out_stride, scalar_t* residual,
                              int64_t residual_stride) {
  const auto what_of = [&](int i) -> const PartialRow& {
    return *reinterpret_cast<const PartialRow*>(part_row(i) + words_to_row);
  };
  float maximum = negative_infinity<float>();
  for (int i = 0; i < count; ++i) maximum = ocnet::maximum(maximum, what_of(i).maximum);
  const float reference = softmax_reference(maximum);
  float total = 0;
  float divisor = 0;
  for (int i = 0; i < count; ++i) {
    const PartialRow part = what_of(i);
    const float weight = ptx::exp2_approx(part.maximum - reference);
    total += weight * part.total;
    divisor += weight * part.divisor;
  }
  if (lse != nullptr && device::lane_index() == 0) *lse = log_sum_exp(kLn2 * maximum, total);

  const float factor = 1.0f / divisor;
  for (int channel = device::lane_index(); channel < channels; channel += device::kWarpThreads) {
    float sum = 0;
    for (int i = 0; i < count; ++i) {
      const float weight = ptx::exp2_approx(what_of(i).maximum - reference);
      sum += weight * part_row(i)[channel];
    }
    const float exact = sum * factor;
    out[channel * out_stride] = from_accumulator<scalar_t>(exact);
    if (sizeof(scalar_t) == 2 && residual != nullptr) {
      residual[channel * residual_stride] =
          from_accumulator<scalar_t>(rounding_loss<scalar_t>(exact));
    }
  }
}

// out, residual and lse from the sums of all parts. Grid: the rows of all images, kCombineRows to a
// block.
template <typename scalar_t>
OCNET_KERNEL(kCombineThreads, 2)
oc_attention_combine_kernel(CombineParams<scalar_t> params) {
  const int64_t index = device::block_index() * kCombineRows + device::warp_index();
  const int64_t image = index / params.out.tokens;
  const int row = static_cast<int>(index - image * params.out.tokens);
  if (image >= params.images) return;
  const TokenMatrix<float> first = params.partial.image(image * params.splits);
  const float* const sums = first.at(row, 0);
  const auto out = params.out.image(image);
  const auto residual = params.residual.image(image);
  combine_row<scalar_t>(
      params.splits, [&](int part) { return sums + part * first.image_stride; },
      words_to_partial_row(first), params.lse + index, out.channels, out.at(row, 0),
      out.channel_stride, residual.data == nullptr ? nullptr : residual.at(row, 0),
      residual.channel_stride);
}

template <typename scalar_t, typename Launch>
void launch_oc_attention_combine(const CombineParams<scalar_t>& params, const Launch& launch) {
  const int64_t rows = params.images * params.out.tokens;
  launch(oc_attention_combine_kernel<scalar_t>,
         Grid{ceil_div(rows, kCombineRows), kCombineThreads, 0}, params);
}

}  // namespace ocnet
