// SPDX-License-Identifier: MIT
// Parts of the gradients of tiles that a Hopper launch has cut, and their combination. No torch
// headers.
#pragma once

#include "common/math.h"
#include "oc_attention_hopper_bwd_copies.cuh"
#include "oc_attention_hopper_cuts.cuh"

namespace ocnet {

// A part: the rows of a cluster's tile, by the channels of both gradients side by side.
OCNET_HOST_DEVICE TokenMatrix<float> hopper_bwd_part(float* parts, int tile_rows, int channels,
                                                     int part) {
  const TokenMatrix<float> all{parts,   int64_t{tile_rows} * channels, channels, 1, tile_rows,
                               channels};
  return all.image(part);
}
// fp32 words of all parts of a launch.
inline int64_t hopper_bwd_part_words(const HopperPlan& plan, int tile_rows, int channels) {
  return plan.steps == 0 ? 0 : int64_t{2} * plan.workers * tile_rows * channels;
}

template <typename scalar_t>
struct HopperBwdCombineParams {
  HopperGradient<scalar_t> gradients[2];
  int first_channels[2];  // in a part
  HopperPlan plan;
  WorkTable work;
  float* parts;
  int tile_rows, channels;
};

// One row of a gradient from `count` parts, by a warp, lanes over channels. `part_row(i)` is where
// part i begins.
template <typename scalar_t, typename PartRow>
OCNET_DEVICE void combine_gradient_row(const HopperGradient<scalar_t>& gradient, int64_t image,
                                       int token, int count, const PartRow& part_row) {
  const auto to = gradient.to.image(image);
  if (gradient.to.data == nullptr || token >= to.tokens) return;
  for (int channel = device::lane_index(); channel < to.channels; channel += device::kWarpThreads) {
    float sum = 0;
    for (int i = 0; i < count; ++i) sum += part_row(i)[channel];
    if (gradient.earlier.data != nullptr) {
      sum += *gradient.earlier.image(image).at(token, channel);
    }
    if (gradient.sums.data != nullptr) {
      *gradient.sums.image(image).at(token, channel) = sum;
    } else {
      *to.at(token, channel) = from_accumulator<scalar_t>(sum * gradient.factor);
    }
  }
}

constexpr int kBwdCombineThreads = 256;
constexpr int kBwdCombineRows = kBwdCombineThreads / device::kWarpThreads;  // a warp for each

// Both gradients of the tiles that were cut, whose parts are added in the order of the streamed
// rows.
template <typename scalar_t>
OCNET_KERNEL(kBwdCombineThreads, 4)
oc_attention_hopper_bwd_combine_kernel(
    OCNET_GRID_CONSTANT HopperBwdCombineParams<scalar_t> params) {
  CutRow found;
  if (!find_cut_row<kBwdCombineRows>(params.plan, params.work, params.tile_rows, found)) return;
  const int token = found.place.block * params.tile_rows + found.row;
  const auto parts = hopper_bwd_part(params.parts, params.tile_rows, params.channels, 0);
  OCNET_UNROLL
  for (int which = 0; which < 2; ++which) {
    const HopperGradient<scalar_t>& gradient = params.gradients[which];
    combine_gradient_row(gradient, found.place.image, token, found.parts.workers, [&](int i) {
      return parts.image(found.parts.part(i)).at(found.row, params.first_channels[which]);
    });
  }
}

template <typename scalar_t, typename Launch>
void launch_oc_attention_hopper_bwd_combine(const HopperBwdCombineParams<scalar_t>& params,
                                            const Launch& launch) {
  launch_on_cuts<kBwdCombineRows>(&oc_attention_hopper_bwd_combine_kernel<scalar_t>, params,
                                  launch);
}

}  // namespace ocnet
