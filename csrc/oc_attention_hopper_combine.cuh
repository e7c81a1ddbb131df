// SPDX-License-Identifier: MIT
// Parts of the tiles that a Hopper launch has cut, and their combination. No torch headers.
#pragma once

#include "common/launch.cuh"
#include "common/ptx/dependent_launch.cuh"
#include "oc_attention_combine.cuh"
#include "oc_attention_fwd_stage.cuh"
#include "oc_attention_hopper_tile.h"
#include "oc_attention_hopper_work.h"

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
// keys. Grid: (plan.workers - 1) x (tile_rows / kCombineRows): a worker's blocks take the tile that
// its range was the first to cut.
template <typename scalar_t>
OCNET_KERNEL(kCombineThreads, 2)
oc_attention_hopper_combine_kernel(OCNET_GRID_CONSTANT HopperCombineParams<scalar_t> params) {
  ptx::wait_for_earlier_launches();
  const int blocks = params.tile_rows / kCombineRows;
  const auto block = static_cast<int>(device::block_index());
  TileParts tile;
  if (!cut_tile(params.plan, block / blocks + 1, tile)) return;
  const int row = block % blocks * kCombineRows + device::warp_index();
  const WorkPlace place = locate_work(params.work, tile.tile);
  const int row_tile = place.block / params.plan.slices;
  const int slice = place.block - row_tile * params.plan.slices;
  const int token = row_tile * params.tile_rows + row;
  const int first_channel = slice * params.width;
  const auto out = params.stage.out.image(place.image);
  const auto residual = params.stage.residual.image(place.image);
  if (token >= out.tokens) return;
  const TokenMatrix<float> first = hopper_part(params.parts, params.tile_rows, params.width, 0);
  combine_row<scalar_t>(
      tile.workers, [&](int i) { return first.image(tile.part(i)).at(row, 0); },
      words_to_partial_row(first),
      slice == 0 ? params.stage.lse.image(place.image).at(token, 0) : nullptr,
      min_of(out.channels - first_channel, params.width), out.at(token, first_channel),
      out.channel_stride, residual.data == nullptr ? nullptr : residual.at(token, first_channel),
      residual.channel_stride);
}

template <typename scalar_t, typename Launch>
void launch_oc_attention_hopper_combine(const HopperCombineParams<scalar_t>& params,
                                        const Launch& launch) {
  if (params.plan.steps == 0 || params.plan.workers < 2) return;
  const int64_t blocks = int64_t{params.plan.workers - 1} * (params.tile_rows / kCombineRows);
  Grid grid{blocks, kCombineThreads};
  grid.programmatic = true;
  launch(oc_attention_hopper_combine_kernel<scalar_t>, grid, params);
}

}  // namespace ocnet
