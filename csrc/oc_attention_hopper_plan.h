// SPDX-License-Identifier: MIT
// Which tile a call takes, and how its work is dealt to the workers of a launch. Fixed tables and
// arithmetic of sizes. Host only.
#pragma once

#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>

#include "oc_attention_hopper_tile.h"
#include "oc_attention_hopper_work.h"

namespace ocnet {

// Room for channels and values, and keys of a step. With O the sums over values, S the scores and P
// the packed weights, a thread holds values / 2 + keys / 2 + keys / 4 registers of them: 188 at
// 256 x 80, 200 at 256 x 96. Shared memory holds 128 queries and two tiles of keys and of values.
struct HopperRow {
  HopperSource source;
  int channels, values, cols;
};

// Rows are tried from the top; the first that is wide enough is taken. More than 256 values are
// written in slices, each of which computes the scores again.
// clang-format off
#define OCNET_HOPPER_ROWS(ROW)            \
  /* 80 KB, and 160 KB at 128 channels */ \
  ROW(kTokenMajor, 64, 64, 128)           \
  ROW(kTokenMajor, 128, 128, 128)         \
  /* 112 keys spill */                    \
  ROW(kTokenMajor, 128, 256, 96)          \
  /* 208 KB; keys of 128 would be 224 */  \
  ROW(kTokenMajor, 256, 128, 96)          \
  /* 225 KB; 96 keys are too many */      \
  ROW(kTokenMajor, 256, 256, 80)          \
  /* a line is 64 tokens */               \
  ROW(kChannelMajor, 128, 128, 128)       \
  ROW(kChannelMajor, 256, 256, 64)        \
  /* fewer registers for consumers */     \
  ROW(kGroups, 64, 64, 128)               \
  ROW(kGroups, 128, 128, 128)             \
  ROW(kGroups, 256, 256, 64)
// The same of strict fp32, 6 bytes a number: consumers (of 64 queries each), channels, values, keys
// of a step, buffers of keys and of values.
#define OCNET_HOPPER_SPLIT_ROWS(ROW)              \
  /* 144 KB */                                    \
  ROW(2, 64, 64, 64, 2)                           \
  /* 192 KB */                                    \
  ROW(2, 128, 128, 64, 1)                         \
  /* 168 KB; 48 keys spill */                     \
  ROW(2, 128, 256, 32, 1)                         \
  /* 204 KB; with two consumers it would be 300 */\
  ROW(1, 256, 128, 48, 1)                         \
  /* 192 KB; 48 keys would be 240 */              \
  ROW(1, 256, 256, 32, 1)
// clang-format on

constexpr int kHopperMostChannels = 256;
constexpr int kHopperMostValues = 512;

// What a part costs, in steps: its sums are written and read again in fp32.
constexpr int kHopperPartSteps = 4;

// Deals the tiles of a launch, each of `steps` (0: they differ), to at most `most` workers.
inline HopperPlan deal_tiles(int64_t tiles, int steps, int slices, int most) {
  if (tiles > std::numeric_limits<int32_t>::max()) {
    throw std::runtime_error("attention must have at most 2^31 - 1 tiles, got " +
                             std::to_string(tiles));
  }
  HopperPlan plan;
  plan.tiles = static_cast<int>(tiles);
  plan.slices = slices;
  plan.workers = tiles < most ? static_cast<int>(tiles) : most;
  const int64_t all = tiles * steps;
  if (steps == 0 || all > std::numeric_limits<int32_t>::max()) return plan;
  // Whole tiles, unless the last round of them leaves more than a twentieth of the time unused.
  const int64_t whole = ceil_div(tiles, most) * steps;
  const int workers = all < most ? static_cast<int>(all) : most;
  const int64_t cut = ceil_div(all, workers) + kHopperPartSteps;
  if (20 * whole <= 21 * cut) return plan;
  plan.workers = workers;
  plan.steps = steps;
  plan.range = static_cast<int>(all / workers);
  plan.longer = static_cast<int>(all % workers);
  return plan;
}

// Cuts the families of a launch into tiles of `rows` queries, and deals them. Tiles of groups
// differ in length: each has a block of its own, the longest first, so that whoever is free takes
// the next.
inline HopperPlan deal_hopper(WorkTable& work, bool has_groups, int rows, int cols, int slices,
                              int most_workers) {
  const int64_t tiles =
      deal_work(work, [&](Family& family) { return cut_family(family, rows, cols, slices); });
  const Family& only = work.families[0];
  if (has_groups) {
    return deal_tiles(tiles, 0, slices, std::numeric_limits<int32_t>::max());
  }
  // One worker where there are fewer multiprocessors than a cluster has blocks.
  HopperPlan plan = deal_tiles(tiles, only.col_tiles, slices, max_of(most_workers, 1));
  plan.own_keys_first = only.owned == only.streamed;
  return plan;
}

}  // namespace ocnet
