// SPDX-License-Identifier: MIT
// What a block of the tensor-core backward works on: its tile, the layout of its shared memory, and
// how launches are cut into blocks. Host arithmetic, without torch or CUDA.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/groups.h"
#include "common/mma_tile.cuh"
#include "common/tokens.h"

namespace ocnet {

// A pair of warps shares 16 owned tokens: rows / 16 pairs, rows * 4 threads.
struct BwdTile {
  int element_bytes;
  int most_channels;  // of queries and of values
  int rows;           // owned tokens
  int cols;           // streamed tokens of a step
  int width;          // output channels of a block
  // Owned tokens stay in shared memory; else both sides pass through it in parts of 128 bytes a
  // row.
  bool resident;
};

// The first row that fits is taken. Limits of shared memory: 99 KB on sm_86, 89 and 120, 163 KB on
// sm_80, 227 KB on sm_90 and 100. Sums of 256 output channels take 128 registers of a thread; 8
// warps are 2 for each scheduler, which one needs to hide the latency of the other.
constexpr BwdTile kBwdTiles[] = {
    // Sums of 128 channels take 64 registers. 89 KB for shared keys of 128/128: fits everywhere.
    {2, 128, 64, 32, 128, true},
    // The tile for 256/256: 161 KB for shared keys.
    {2, 512, 64, 32, 256, true},
    // 256/512 on sm_90; half the streamed tokens, twice the barriers.
    {2, 512, 64, 16, 256, true},
    // 256/256 on sm_86, 256/512 on sm_80: a warp for each scheduler, but owned tokens are read
    // once.
    {2, 512, 32, 16, 256, true},
    // 512/512 on sm_86. Reading the owned tokens again for each step is cheaper than the 2 warps
    // that resident tiles would leave.
    {2, 512, 64, 32, 256, false},
    // fp32 takes twice the room. 128/128 on sm_80: 161 KB.
    {4, 128, 64, 32, 128, true},
    // 128/256 on sm_90. 32 streamed tokens beside sums of 256 channels would spill where operands
    // are split into three parts.
    {4, 512, 64, 16, 256, true},
    // 256/256 on sm_90: 198 KB for shared keys.
    {4, 512, 48, 16, 256, true},
    // 256/256 on sm_80: 148 KB for shared keys.
    {4, 512, 32, 16, 256, true},
    // 256/256 on sm_86, 512/512 on sm_80.
    {4, 512, 64, 16, 256, false},
};
constexpr int kBwdTileCount = sizeof(kBwdTiles) / sizeof(kBwdTiles[0]);

constexpr int kPartBytes = 128;

// What a launch computes: sizes, and the roles of the owned tokens.
struct BwdWork {
  int element_bytes;
  int channels;
  int value_channels;
  bool as_query;  // dP of the owned queries is needed: rows of grad_out against streamed values
  bool as_key;    // the owned tokens are keys: streamed rows of grad_out
  bool tokens;    // grad_tokens is wanted
};

// Offsets in shared memory, in bytes; tiles start at multiples of 128.
struct BwdLayout {
  int own, own_grad, own_value;        // X_I, dO_I, V_I
  int other, other_value, other_grad;  // X_J, V_J, dO_J
  int stage;                           // bytes of one of two stages, when both sides are streamed
  int wide, wide_grad;   // the output channels of X_J and dO_J for the second products
  int scores, products;  // what group A hands to group B
  int vectors;           // lse and delta of the streamed queries
  int bytes;
};

inline BwdLayout bwd_layout(const BwdTile& tile, const BwdWork& work) {
  BwdLayout at = {};
  int used = 0;
  const auto take = [&](bool needed, int bytes) {
    const int offset = used;
    if (needed) used += bytes;
    return offset;
  };
  const bool first = work.as_query && work.tokens;
  const bool second = work.as_key && work.tokens;
  const int pitch = tile.resident ? tile_pitch(work.channels, work.element_bytes) : kPartBytes;
  const int value_pitch =
      tile.resident ? tile_pitch(work.value_channels, work.element_bytes) : kPartBytes;
  at.own = take(true, tile.rows * pitch);
  at.own_grad = take(first, tile.rows * value_pitch);
  at.own_value = take(second, tile.rows * value_pitch);
  at.other = take(true, tile.cols * pitch);
  at.other_value = take(first, tile.cols * value_pitch);
  at.other_grad = take(tile.resident ? work.as_key : second, tile.cols * value_pitch);
  at.wide = at.other;
  at.wide_grad = at.other_grad;
  if (!tile.resident) {
    // The second products run when those of the parts are done, in the same place.
    const int wide_pitch = tile.width * work.element_bytes;
    at.stage = used;
    at.wide = 0;
    at.wide_grad = tile.cols * wide_pitch;
    const int wide_bytes = (work.as_key ? 2 : 1) * tile.cols * wide_pitch;
    used = 2 * at.stage > wide_bytes ? 2 * at.stage : wide_bytes;
  }
  const int handed = tile.rows * tile.cols * static_cast<int>(sizeof(float));
  at.scores = take(work.tokens, handed);
  at.products = take(first, handed);
  at.vectors = take(work.as_key, 2 * tile.cols * static_cast<int>(sizeof(float)));
  at.bytes = used;
  return at;
}

// The tile of a launch; null where none fits, which no device since sm_80 is too small for.
inline const BwdTile* find_bwd_tile(const BwdWork& work, size_t shared_limit) {
  for (const BwdTile& tile : kBwdTiles) {
    if (tile.element_bytes != work.element_bytes) continue;
    if (work.channels > tile.most_channels || work.value_channels > tile.most_channels) continue;
    if (static_cast<size_t>(bwd_layout(tile, work).bytes) <= shared_limit) return &tile;
  }
  return nullptr;
}

// How many blocks share the streamed tokens of an output: as many as make the last of them end
// soonest, in steps of a block. One that shares writes and reads its sums in fp32, which takes
// about as long as kShareSteps steps.
inline int bwd_splits(int64_t blocks, int64_t steps, int multiprocessors) {
  constexpr int kShareSteps = 4;
  constexpr int64_t kMostSplits = 128;
  int best = 1;
  int64_t shortest = ceil_div(blocks, multiprocessors) * steps;
  for (int splits = 2; splits <= (steps < kMostSplits ? steps : kMostSplits); ++splits) {
    const int64_t waves = ceil_div(blocks * splits, multiprocessors);
    const int64_t time = waves * (ceil_div(steps, splits) + kShareSteps);
    if (time < shortest) {
      best = splits;
      shortest = time;
    }
  }
  return best;
}

struct BwdPlan {
  BwdTile tile;
  BwdLayout layout;
  int64_t blocks;
  int slices;  // of the output channels
  int splits;  // of the streamed tokens
};

// Cuts `work`. The channels of values count as output only where `value` says that their gradient
// is wanted. Streamed tokens are shared only where `may_split`: within groups sums have one order,
// whatever is launched with them.
inline BwdPlan plan_bwd(const BwdTile& tile, const BwdWork& kind, bool value, bool may_split,
                        int multiprocessors, WorkTable& work) {
  BwdPlan plan = {};
  plan.tile = tile;
  int most = 1;
  for (int i = 0; i < work.count; ++i) most = max_of(most, work.families[i].owned);
  // Without groups, the rows of tiles decide how many blocks share the streamed tokens.
  if (!may_split) plan.tile.rows = min_of(tile.rows, padded_channels(most));
  plan.layout = bwd_layout(plan.tile, kind);
  const int outputs = max_of(kind.tokens ? kind.channels : 0, value ? kind.value_channels : 0);
  plan.slices = static_cast<int>(ceil_div(outputs, tile.width));
  const auto cut = [&](Family& family) {
    return cut_family(family, plan.tile.rows, tile.cols, plan.slices * plan.splits);
  };
  plan.splits = 1;
  plan.blocks = deal_work(work, cut);
  if (may_split) {
    plan.splits = bwd_splits(plan.blocks, work.families[0].col_tiles, multiprocessors);
    plan.blocks = deal_work(work, cut);
  }
  return plan;
}

// What one block of the plan works on.
struct BwdPlace : WorkPlace {
  int first_row;
  int slice;
  int split;
  int first_step, end_step;
};

// Slices of a tile are neighbours, then tiles that share streamed tokens.
OCNET_HOST_DEVICE BwdPlace locate_bwd_block(const BwdPlan& plan, const WorkTable& work,
                                            int64_t block) {
  BwdPlace place = {locate_work(work, block), 0, 0, 0, 0, 0};
  const Family& family = work.families[place.family];
  const int tile = place.block / plan.slices;
  place.slice = place.block - tile * plan.slices;
  place.split = tile / family.row_tiles;
  place.first_row = (tile - place.split * family.row_tiles) * plan.tile.rows;
  const int64_t steps = family.col_tiles;
  place.first_step = static_cast<int>(steps * place.split / plan.splits);
  place.end_step = static_cast<int>(steps * (place.split + 1) / plan.splits);
  return place;
}

}  // namespace ocnet
