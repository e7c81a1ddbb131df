// SPDX-License-Identifier: MIT
// What the host side of the Hopper forward kernel decides for a call without groups: model.py
// builds this with a plain C++ compiler, and runs it.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "common/math.h"
#include "oc_attention_hopper_plan.h"

namespace {

struct Tile {
  int channels = 0, values = 0, cols = 0, cluster = 0, shared_bytes = 0;
};

// The tile that a call takes.
Tile find_tile(int channels, int values) {
  using namespace ocnet;
  const int width = values < 256 ? values : 256;
#define OCNET_TRY(source, room, value_room, keys)                                             \
  {                                                                                           \
    using Row = HopperTile<BFloat16, room, value_room, keys, HopperSource::source>;           \
    if (Row::kSource == HopperSource::kTokenMajor && channels <= room && width <= value_room) \
      return {room, value_room, keys, Row::kCluster, static_cast<int>(Row::kSharedBytes)};    \
  }
  OCNET_HOPPER_ROWS(OCNET_TRY)
#undef OCNET_TRY
  return {};
}

}  // namespace

// images, tokens, channels, values, multiprocessors
int main(int count, char** words) {
  using namespace ocnet;
  if (count != 6) return 2;
  const auto number = [&](int i) { return std::atoi(words[i]); };
  const Tile tile = find_tile(number(3), number(4));
  WorkTable work = list_work({{number(1), one_group(number(2)), number(2)}});
  const int slices = static_cast<int>(ceil_div(number(4), tile.values));
  const int most = number(5) / tile.cluster;
  const HopperPlan plan =
      deal_hopper(work, false, tile.cluster * kHopperRows, tile.cols, slices, most);
  // Steps of the worker that has most of them, and the parts of all.
  int longest = 0;
  int parts = 0;
  for (int worker = 0; worker < plan.workers; ++worker) {
    HopperWalk walk(plan, worker);
    HopperJob job;
    int steps = 0;
    while (walk.next(job)) {
      steps += plan.steps > 0 ? job.steps : work.families[0].col_tiles;
      parts += job.is_part ? 1 : 0;
    }
    longest = std::max(longest, steps);
  }
  std::printf("%d %d %d %d %d %d %d %d %d %d %d\n", tile.channels, tile.values, tile.cols,
              tile.cluster, tile.shared_bytes, plan.tiles, plan.workers, work.families[0].col_tiles,
              longest, parts, plan.slices);
  return 0;
}
