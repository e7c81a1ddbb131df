// SPDX-License-Identifier: MIT
// Which tiles the tensor-core kernels of pixel-wise attention use, and how a launch is cut into
// blocks. Fixed tables and arithmetic of sizes: nothing is timed or tuned at run time. Host only.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/groups.h"
#include "common/mma_tile.cuh"
#include "common/tokens.h"

namespace ocnet {

// Threads of the largest block: 8 warps leave a thread all 255 registers it can name, and of those
// 128 are the sums of 16 rows by 256 channels.
constexpr int kMmaWarps = 8;
constexpr int kMmaThreads = kMmaWarps * 32;

// How numbers are stored and multiplied: 16-bit; fp32, rounded to TF32; fp32, cut into three
// BFloat16 (common/mma_tile.cuh).
enum class Arithmetic { kNarrow, kTF32, kSplit };

OCNET_HOST_DEVICE constexpr int stored_bytes(Arithmetic arithmetic) {
  return arithmetic == Arithmetic::kNarrow ? 2 : 4;
}

// Sizes of a call, in tokens and channels.
struct AttentionShape {
  int64_t images;
  int queries, keys, channels, value_channels;
  Arithmetic arithmetic;
};

// --- forward ---
// A block owns 16 query rows per warp and `width` output channels, and holds its query rows and one
// tile of `cols` keys and values in shared memory. It takes as many warps as fit, up to kMmaWarps,
// and a row is passed over where fewer than `fewest_warps` do: every warp reads the whole tiles of
// keys and values, so their copies are shared by more warps, and latencies hidden by them.
struct ForwardTile {
  Arithmetic arithmetic;
  int most_values;
  int cols;
  int width;
  int fewest_warps;
};

constexpr int kAnyValues = 1 << 30;
constexpr int kAnyTokens = 1 << 30;  // more than any tile has rows

// First the row that is best where there is room for it. Sizes are for E = Ev.
constexpr ForwardTile kForwardTiles[] = {
    // 64 columns of scores and 128 channels of sums are 96 registers: room to load ahead. 64 KB
    // with 8 warps at E = 128.
    {Arithmetic::kNarrow, 128, 64, 128, 4},
    // 128 + 32 registers of sums and scores. 128 KB with 8 warps at E = 256, 224 KB at E = 512.
    {Arithmetic::kNarrow, kAnyValues, 64, 256, 6},
    // Where that is too much: 96 KB with 8 warps at E = 256, for devices of 99 KB; 160 KB with 7
    // at E = 512, for those of 163 KB.
    {Arithmetic::kNarrow, kAnyValues, 32, 256, 6},
    // 96 KB with 3 warps at E = 512, for devices of 99 KB.
    {Arithmetic::kNarrow, kAnyValues, 32, 256, 1},
    // Rows of fp32 are twice as long, and operands are converted between shared memory and the
    // product: 32 columns leave registers for that. 96 KB with 8 warps at E = 128.
    {Arithmetic::kTF32, 128, 32, 128, 4},
    // 192 KB with 8 warps at E = 256, and 160 KB with 6.
    {Arithmetic::kTF32, kAnyValues, 32, 256, 6},
    // 96 KB with 4 warps at E = 256, for devices of 99 KB; 208 KB with 5 at E = 512.
    {Arithmetic::kTF32, kAnyValues, 16, 256, 4},
    // E = 512 elsewhere: 144 KB with 3 warps, 80 KB with 1.
    {Arithmetic::kTF32, kAnyValues, 16, 256, 1},
    // The parts of operands take 32 registers: beside 256 channels of sums, 32 columns would spill.
    // Six products for one make a tile of 16 as long as one of 96.
    {Arithmetic::kSplit, 128, 32, 128, 4},
    {Arithmetic::kSplit, kAnyValues, 16, 256, 1},
};

// Few keys: all of them stay in shared memory while the block walks over several tiles of queries.
// 32 columns waste little of the last tile. At 256 channels in 16 bits 19 keys take 96 KB with 8
// warps and 160 keys 224 KB; 192 keys as much with 4 warps, which are the least that hide the
// latency of the queries' copies.
constexpr ForwardTile kResidentTiles[] = {
    {Arithmetic::kNarrow, kAnyValues, 32, 256, 4},
    {Arithmetic::kTF32, kAnyValues, 32, 256, 4},
    {Arithmetic::kSplit, kAnyValues, 16, 256, 4},
};

// How a launch is cut: a block is one image, one slice of the output channels, one part of the
// keys, and every `walkers`-th tile of queries from its first on.
struct ForwardPlan {
  int warps = 0;  // 0 where nothing fits
  int cols = 0;
  int width = 0;
  bool resident = false;
  bool queries_are_keys = false;  // resident, and read as queries from where the keys lie
  bool own_keys_first = false;    // the walk over keys starts at the tile of the queries
  int row_tiles = 0;
  int key_tiles = 0;
  int slices = 0;
  int splits = 0;
  int walkers = 0;
  int64_t blocks = 0;
  size_t shared_bytes = 0;
};

// Channels of a value tile come in halves of its width, zero past the last: whole halves of the
// products are left out, and there is no branch inside of them.
OCNET_HOST_DEVICE constexpr int value_group(int width) { return width / 2; }
OCNET_HOST_DEVICE int grouped_values(int channels, int width) {
  return channels > value_group(width) ? width : value_group(width);
}
OCNET_HOST_DEVICE int value_pitch(int channels, int width, int bytes) {
  return tile_pitch(grouped_values(channels, width), bytes);
}

namespace detail {

// Takes the row if enough warps fit beside `resident_tiles` tiles of keys and values.
inline bool place_forward(ForwardPlan& plan, const ForwardTile& row, const AttentionShape& shape,
                          int64_t resident_tiles, size_t shared_limit) {
  if (row.arithmetic != shape.arithmetic || shape.value_channels > row.most_values) return false;
  const int bytes = stored_bytes(row.arithmetic);
  const size_t row_bytes = tile_pitch(shape.channels, bytes);
  const size_t value_bytes = value_pitch(shape.value_channels, row.width, bytes);
  const size_t fixed = static_cast<size_t>(resident_tiles) * row.cols * (row_bytes + value_bytes);
  // More warps than rows of queries would have nothing to do.
  const int useful = min_of(kMmaWarps, static_cast<int>(ceil_div(shape.queries, kMmaRows)));
  int warps = 0;
  while (warps < useful && fixed + (warps + 1) * kMmaRows * row_bytes <= shared_limit) ++warps;
  if (warps < min_of(row.fewest_warps, useful)) return false;
  plan.warps = warps;
  plan.cols = row.cols;
  plan.width = row.width;
  plan.shared_bytes = fixed + warps * kMmaRows * row_bytes;
  plan.row_tiles = static_cast<int>(ceil_div(shape.queries, warps * kMmaRows));
  plan.key_tiles = static_cast<int>(ceil_div(shape.keys, row.cols));
  plan.slices = static_cast<int>(ceil_div(shape.value_channels, row.width));
  return true;
}

}  // namespace detail

constexpr int kMostSplits = 16;
// A part's sums are written and read again in fp32, which takes about as long as four tiles of
// keys.
constexpr int kSplitCost = 4;

// Into how many parts the keys of each of `tiles` tiles of queries are cut, so that few
// multiprocessors idle: as few as come within a tenth of the least time. A pure function of sizes,
// so the order of sums is the same in every run on a device.
inline int split_count(int64_t tiles, int key_tiles, int multiprocessors) {
  const int most = min_of(kMostSplits, key_tiles);
  const auto time = [&](int parts) {
    return ceil_div(tiles * parts, multiprocessors) *
           (ceil_div(key_tiles, parts) + (parts > 1 ? kSplitCost : 0));
  };
  int64_t least = time(1);
  for (int parts = 2; parts <= most; ++parts) {
    if (time(parts) < least) least = time(parts);
  }
  int parts = 1;
  while (10 * time(parts) > 11 * least) ++parts;
  return parts;
}

// Of attention without groups.
inline ForwardPlan plan_forward(const AttentionShape& shape, size_t shared_limit,
                                int multiprocessors) {
  ForwardPlan plan;
  for (const ForwardTile& row : kResidentTiles) {
    const int64_t tiles = ceil_div(shape.keys, row.cols);
    if (!detail::place_forward(plan, row, shape, tiles, shared_limit)) continue;
    const int64_t walkers = ceil_div(multiprocessors, shape.images * plan.slices);
    // With a block for every tile of queries nothing would be read twice.
    if (walkers >= plan.row_tiles) break;
    plan.resident = true;
    plan.own_keys_first = true;
    plan.splits = 1;
    plan.walkers = static_cast<int>(walkers);
    plan.blocks = shape.images * plan.slices * walkers;
    return plan;
  }
  plan = {};
  for (const ForwardTile& row : kForwardTiles) {
    if (!detail::place_forward(plan, row, shape, 1, shared_limit)) continue;
    plan.own_keys_first = true;
    const int64_t tiles = shape.images * plan.row_tiles * plan.slices;
    plan.splits = split_count(tiles, plan.key_tiles, multiprocessors);
    plan.walkers = plan.row_tiles;
    plan.blocks = tiles * plan.splits;
    break;
  }
  return plan;
}

// --- groups ---

namespace detail {

// About how long a launch takes: all its work shared evenly, or its longest block. The unit is what
// a warp takes for its products with one tile of keys while as many warps run as a multiprocessor
// has registers for, kMmaWarps. Where all multiprocessors copy at once, the copies of a tile take
// as long as four of those. Shared memory of a multiprocessor is that of the largest block, and
// 1 KB that each block takes besides; `shared_limit` leaves out the Group.
inline double group_time(const ForwardPlan& plan, const WorkTable& work, size_t shared_limit,
                         int multiprocessors) {
  constexpr int kCopies = 4;
  constexpr size_t kBlockBytes = 1024;
  constexpr size_t kBesides = kBlockBytes + kGroupBytes;
  const auto fitting = static_cast<int>((shared_limit + kBesides) / (plan.shared_bytes + kBesides));
  const int active = plan.warps * min_of(kMmaWarps / plan.warps, fitting);
  double all = 0;
  double longest = 0;
  for (int i = 0; i < work.count; ++i) {
    const Family& family = work.families[i];
    const auto row_tiles = static_cast<double>(ceil_div(family.owned, plan.warps * kMmaRows));
    const auto key_tiles = static_cast<double>(ceil_div(family.streamed, plan.cols));
    const double blocks = (plan.resident ? 1 : row_tiles) * plan.slices;
    const double block = key_tiles * ((plan.resident ? row_tiles : 1) * plan.warps + kCopies);
    all += block * blocks * family.images * family.groups;
    if (block > longest) longest = block;
  }
  const double shared = all / (static_cast<double>(multiprocessors) * active);
  return shared > longest / plan.warps ? shared : longest / plan.warps;
}

}  // namespace detail

// Of attention within groups. The columns of a tile and the order of the keys depend on channels
// and device alone, so a stage gives the same bits whatever stages are launched with it. Warps, and
// whether groups stay in shared memory, a block for each, are free: they are what takes least by
// the estimate above. Keys are not cut into parts.
inline ForwardPlan plan_groups(const AttentionShape& shape, bool shared_keys, const WorkTable& work,
                               size_t shared_limit, int multiprocessors) {
  AttentionShape many = shape;
  many.queries = many.keys = kAnyTokens;
  ForwardPlan plan;
  for (const ForwardTile& row : kForwardTiles) {
    if (detail::place_forward(plan, row, many, 1, shared_limit)) break;
  }
  if (plan.warps == 0) return plan;
  const size_t query_bytes = kMmaRows * tile_pitch(shape.channels, stored_bytes(shape.arithmetic));
  const size_t tile_bytes = plan.shared_bytes - plan.warps * query_bytes;
  plan.splits = 1;
  plan.row_tiles = plan.key_tiles = 0;
  int64_t most_rows = 1, most_tiles = 1;
  for (int i = 0; i < work.count; ++i) {
    const int64_t rows = ceil_div(work.families[i].owned, kMmaRows);
    const int64_t tiles = ceil_div(work.families[i].streamed, plan.cols);
    if (rows > most_rows) most_rows = rows;
    if (tiles > most_tiles) most_tiles = tiles;
  }

  ForwardPlan best;
  double least = 0;
  const int useful = static_cast<int>(most_rows < kMmaWarps ? most_rows : kMmaWarps);
  for (const bool resident : {true, false}) {
    for (int warps = useful; warps > 0; --warps) {
      plan.warps = warps;
      plan.resident = resident;
      plan.queries_are_keys = resident && shared_keys;
      plan.shared_bytes = (resident ? most_tiles : 1) * tile_bytes +
                          (plan.queries_are_keys ? 0 : warps * query_bytes);
      if (plan.shared_bytes > shared_limit) continue;
      const double time = detail::group_time(plan, work, shared_limit, multiprocessors);
      if (best.warps > 0 && time >= least) continue;
      least = time;
      best = plan;
    }
  }
  return best;
}

// Cuts the families of a launch as its plan says.
inline void deal_forward(WorkTable& work, ForwardPlan& plan) {
  plan.blocks = deal_work(work, [&](Family& family) {
    family.row_tiles = static_cast<int>(ceil_div(family.owned, plan.warps * kMmaRows));
    family.col_tiles = static_cast<int>(ceil_div(family.streamed, plan.cols));
    family.walkers = plan.walkers > 0 ? plan.walkers : plan.resident ? 1 : family.row_tiles;
    family.group_blocks = family.walkers * plan.slices * plan.splits;
    return int64_t{family.col_tiles} * ceil_div(family.row_tiles, family.walkers);
  });
}

}  // namespace ocnet
