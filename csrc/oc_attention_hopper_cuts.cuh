// SPDX-License-Identifier: MIT
// What the kernels that combine the parts of cut tiles have in common: a warp for each row of such
// a tile. No torch headers.
#pragma once

#include "common/device.cuh"
#include "common/launch.cuh"
#include "common/ptx/dependent_launch.cuh"
#include "oc_attention_hopper_work.h"

namespace ocnet {

// A row of a tile that was cut.
struct CutRow {
  TileParts parts;
  WorkPlace place;
  int row;  // of the tile
};

// The row of this warp, one of kRows in its block; false where it has none. Grid: see
// launch_on_cuts.
template <int kRows>
OCNET_DEVICE bool find_cut_row(const HopperPlan& plan, const WorkTable& work, int tile_rows,
                               CutRow& found) {
  ptx::wait_for_earlier_launches();
  const int blocks = tile_rows / kRows;
  const auto block = static_cast<int>(device::block_index());
  if (!cut_tile(plan, block / blocks + 1, found.parts)) return false;
  found.place = locate_work(work, found.parts.tile);
  found.row = block % blocks * kRows + device::warp_index();
  return true;
}

// Launches such a kernel, if tiles were cut: a worker's blocks take the tile that its range was the
// first to cut. `params` has the plan, and how many rows tiles have.
template <int kRows, typename Params, typename Launch>
void launch_on_cuts(void (*kernel)(Params), const Params& params, const Launch& launch) {
  const HopperPlan& plan = params.plan;
  if (plan.steps == 0 || plan.workers < 2) return;
  Grid grid{int64_t{plan.workers - 1} * (params.tile_rows / kRows), kRows * device::kWarpThreads};
  grid.programmatic = true;
  launch(kernel, grid, params);
}

}  // namespace ocnet
