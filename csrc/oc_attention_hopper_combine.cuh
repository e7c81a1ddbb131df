// SPDX-License-Identifier: MIT
// Parts of the tiles that a Hopper launch has cut, and their combination. No torch headers.
#pragma once

#include "oc_attention_combine.cuh"
#include "oc_attention_fwd_stage.cuh"
#include "oc_attention_hopper_cuts.cuh"
#include "oc_attention_hopper_tile.h"

namespace ocnet {

// A part: the rows of a cluster's tile, by the channels of a slice.
OCNET_HOST_DEVICE TokenMatrix<float> hopper_part(float* parts, int tile_rows, int width, int part) {
  return partial_matrix(parts, tile_rows, width).image(part);
}
// fp32 words of all parts of a launch.
inline int64_t hopper_part_words(const HopperPlan& plan, int tile_rows, int width) {
  return plan.steps == 0 ? 0 : int64_t{2} * plan.workers * tile_rows * partial_pitch(width);
}

template <typename scalar_t>
struct HopperCombineParams {
  FwdStage<scalar_t> stage;
  HopperPlan plan;
  WorkTable work;
  float* parts;
  int tile_rows, width;
};

// out, residual and lse of the tiles that were cut, whose parts are added in the order of their
// keys.
template <typename scalar_t>
OCNET_KERNEL(kCombineThreads, 2)
oc_attention_hopper_combine_kernel(OCNET_GRID_CONSTANT HopperCombineParams<scalar_t> params) {
  CutRow found;
  if (!find_cut_row<kCombineRows>(params.plan, params.work, params.tile_rows, found)) return;
  const WorkPlace& place = found.place;
  const int row_tile = place.block / params.plan.slices;
  const int slice = place.block - row_tile * params.plan.slices;
  const int token = row_tile * params.tile_rows + found.row;
  const int first_channel = slice * params.width;
  const auto out = params.stage.out.image(place.image);
  const auto residual = params.stage.residual.image(place.image);
  if (token >= out.tokens) return;
  const TokenMatrix<float> first = hopper_part(params.parts, params.tile_rows, params.width, 0);
  combine_row<scalar_t>(
      found.parts.workers, [&](int i) { return first.image(found.parts.part(i)).at(found.row, 0); },
      words_to_partial_row(first),
      slice == 0 ? params.stage.lse.image(place.image).at(token, 0) : nullptr,
      min_of(out.channels - first_channel, params.width), out.at(token, first_channel),
      out.channel_stride, residual.data == nullptr ? nullptr : residual.at(token, first_channel),
      residual.channel_stride);
}

template <typename scalar_t, typename Launch>
void launch_oc_attention_hopper_combine(const HopperCombineParams<scalar_t>& params,
                                        const Launch& launch) {
  launch_on_cuts<kCombineRows>(&oc_attention_hopper_combine_kernel<scalar_t>, params, launch);
}

}  // namespace ocnet
