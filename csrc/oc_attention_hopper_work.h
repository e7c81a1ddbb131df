// SPDX-License-Identifier: MIT
// What the workers of a Hopper launch do, in which order. A worker is a cluster of blocks; it runs
// until its work is done. Host and device.
//
// A tile is the queries of a cluster and a slice of the output channels; a step is a tile of keys.
// Where whole tiles would leave many workers idle, the steps of all tiles, one after the other, are
// cut into as many equal ranges as there are workers (stream-K, arXiv 2301.03598). A tile that a
// cut goes through is summed in parts, which a second kernel adds in the order of their keys. Cuts
// depend on sizes and on the device, so the order of sums is the same in every run.
#pragma once

#include <cstdint>

#include "common/groups.h"

namespace ocnet {

struct HopperPlan {
  int tiles = 0;
  int workers = 0;
  int steps = 0;  // of each tile, where they are cut; else 0
  // Of each range, where steps are cut; the first `longer` ranges have one more.
  int range = 0;
  int longer = 0;
  int slices = 1;
  bool own_keys_first = false;  // see HopperPlace
};

// Steps before the range of a worker, where steps are cut.
OCNET_HOST_DEVICE int first_step_of(const HopperPlan& plan, int worker) {
  return plan.range * worker + min_of(worker, plan.longer);
}

// The parts that a worker may have: of the tile that its range begins in, and of that it ends in.
OCNET_HOST_DEVICE int first_part(int worker) { return 2 * worker; }
OCNET_HOST_DEVICE int last_part(int worker) { return 2 * worker + 1; }

// Some steps of a tile.
struct HopperJob {
  int tile;
  int first_step, steps;  // of a whole tile, the caller knows how many
  bool is_part;
};

class HopperWalk {
 public:
  OCNET_HOST_DEVICE HopperWalk(const HopperPlan& plan, int worker) : plan_(plan), worker_(worker) {
    position_ = plan.steps > 0 ? first_step_of(plan, worker) : worker;
  }

  // The next job of the worker, if there is one.
  OCNET_HOST_DEVICE bool next(HopperJob& job) {
    if (plan_.steps == 0) {
      if (position_ >= plan_.tiles) return false;
      job = {position_, 0, 0, false};
      position_ += plan_.workers;
      return true;
    }
    const int left = first_step_of(plan_, worker_ + 1) - position_;
    if (left <= 0) return false;
    job.tile = position_ / plan_.steps;
    job.first_step = position_ - job.tile * plan_.steps;
    job.steps = min_of(left, plan_.steps - job.first_step);
    job.is_part = job.steps < plan_.steps;
    position_ += job.steps;
    return true;
  }
  // Where the sums of a part go.
  OCNET_HOST_DEVICE int part(const HopperJob& job) const {
    return job.first_step > 0 ? first_part(worker_) : last_part(worker_);
  }

 private:
  const HopperPlan& plan_;
  const int worker_;
  int position_;  // a step, or a tile
};

// The parts of one tile: as many as workers share it.
struct TileParts {
  int tile;
  int first_worker, workers;

  OCNET_HOST_DEVICE int part(int index) const {
    return index == 0 ? last_part(first_worker) : first_part(first_worker + index);
  }
};

// The tile that is cut first where the range of `worker` begins, from worker 1 on; false where that
// is the beginning of a tile, or in one that an earlier range has cut already.
OCNET_HOST_DEVICE bool cut_tile(const HopperPlan& plan, int worker, TileParts& parts) {
  const int cut = first_step_of(plan, worker);
  parts.tile = cut / plan.steps;
  const int begin = parts.tile * plan.steps;
  if (cut == begin || first_step_of(plan, worker - 1) > begin) return false;
  parts.first_worker = worker - 1;
  parts.workers = 1;
  while (worker < plan.workers && first_step_of(plan, worker) < begin + plan.steps) {
    ++parts.workers;
    ++worker;
  }
  return true;
}

// The keys of a job, tile by tile, from some tile on and around the end.
struct KeyWalk {
  int tile, tiles;

  OCNET_HOST_DEVICE void advance() { tile = tile + 1 < tiles ? tile + 1 : 0; }
  OCNET_HOST_DEVICE bool is_last() const { return tile + 1 == tiles; }
};

// A job as a place: its queries in their group, its channels, its keys.
struct HopperTask : WorkPlace {
  int row_tile, slice;
  KeyWalk keys;
  int steps;
  int part;  // where its sums go; -1 where they are all of the tile

  HopperTask() = default;
  OCNET_HOST_DEVICE HopperTask(const HopperPlan& plan, const WorkTable& work,
                               const HopperWalk& walk, const HopperJob& job, int tile_rows,
                               int cols)
      : WorkPlace(locate_work(work, job.tile)) {
    row_tile = block / plan.slices;
    slice = block - row_tile * plan.slices;
    // Where there are as many keys as queries, and no groups, the walk over keys starts at the
    // tile's own: with shared keys a pixel is most similar to itself, so the first maximum is near
    // the last. In groups results must not depend on the tile of queries.
    const int tiles = work.families[family].col_tiles;
    const int first = (plan.own_keys_first ? row_tile * tile_rows / cols : 0) + job.first_step;
    keys = {first < tiles ? first : first - tiles, tiles};
    steps = plan.steps > 0 ? job.steps : tiles;
    part = job.is_part ? walk.part(job) : -1;
  }
};

}  // namespace ocnet
