// SPDX-License-Identifier: MIT
// Forward kernel of pixel-wise attention on tensor cores (mma.sync, sm_80 and later), and its
// launch. No torch headers.
#pragma once

#include "common/launch.cuh"
#include "common/mma_tile.cuh"
#include "oc_attention_combine.cuh"
#include "oc_attention_fwd_stage.cuh"
#include "oc_attention_softmax.cuh"
#include "oc_attention_store.cuh"
#include "oc_attention_tiles.h"

namespace ocnet {

template <typename scalar_t>
struct MmaFwdParams {
  FwdStage<scalar_t> stages[kStageSlots];
  TokenMatrix<float> partial;  // (N * splits, L, PartialRow of Ev), if there are splits
  float scale_log2;            // of scores, in powers of two
  ForwardPlan plan;
  WorkTable work;
};

// What one block works on.
struct FwdPlace : WorkPlace {
  int slice, split, walker;
  int first_key_tile, key_tiles;

  // Parts of the keys are neighbours, then slices: blocks that run together share their queries.
  OCNET_DEVICE FwdPlace(const ForwardPlan& plan, const WorkTable& work)
      : WorkPlace(locate_work(work, device::block_index())) {
    const Family& own = work.families[family];
    const int slices = block / plan.splits;
    split = block - slices * plan.splits;
    walker = slices / plan.slices;
    slice = slices - walker * plan.slices;
    first_key_tile = first_of(own, plan, split);
    key_tiles = first_of(own, plan, split + 1) - first_key_tile;
  }
  OCNET_DEVICE static int first_of(const Family& own, const ForwardPlan& plan, int split) {
    return static_cast<int>(static_cast<int64_t>(own.col_tiles) * split / plan.splits);
  }
  // The key tile of a step that starts at tile `start` and wraps at the end of the part.
  OCNET_DEVICE int key_tile(int start, int step) const {
    const int tile = start + step;
    return tile < first_key_tile + key_tiles ? tile : tile - key_tiles;
  }
};

// Tiles of keys and values in shared memory, and their copies in the background. They hold one
// tile, or all of them where the plan keeps them resident.
template <typename storage_t, int kCols, int kWidth>
struct FwdTiles {
  static constexpr int kBytes = static_cast<int>(sizeof(storage_t));
  // Channels of a value tile are loaded and read in whole groups.
  static constexpr int kGroup = value_group(kWidth);

  const FwdStage<storage_t>& any;  // for what all stages have in common
  const FwdGroup<storage_t>& group;
  unsigned char* keys;
  unsigned char* values;
  int first_channel;

  OCNET_DEVICE FwdTiles(const MmaFwdParams<storage_t>& params, const FwdGroup<storage_t>& own,
                        const FwdPlace& place, int col_tiles)
      : any(params.stages[0]), group(own), first_channel(place.slice * kWidth) {
    const ForwardPlan& plan = params.plan;
    keys = device::shared_memory<unsigned char>() + kGroupBytes;
    if (!plan.queries_are_keys) keys += plan.warps * kMmaRows * key_pitch();
    values = keys + (plan.resident ? col_tiles : 1) * kCols * key_pitch();
  }
  OCNET_DEVICE int key_pitch() const { return tile_pitch(channels(), kBytes); }
  OCNET_DEVICE int channels() const { return any.key.channels; }
  OCNET_DEVICE int value_pitch() const {
    return ocnet::value_pitch(any.value.channels, kWidth, kBytes);
  }
  OCNET_DEVICE int value_channels() const {
    return grouped_values(any.value.channels - first_channel, kWidth);
  }
  OCNET_DEVICE SharedTile key_tile(int slot) const {
    return {keys + slot * kCols * key_pitch(), key_pitch()};
  }
  OCNET_DEVICE SharedTile value_tile(int slot) const {
    return {values + slot * kCols * value_pitch(), value_pitch()};
  }

  // By all threads of the block, which commit.
  OCNET_DEVICE void load_keys(int tile, int slot, int threads) const {
    load_tile(key_tile(slot), kCols, group.rows(group.key), tile * kCols, 0,
              padded_channels(channels()), device::thread_index(), threads);
  }
  OCNET_DEVICE void load_values(int tile, int slot, int threads) const {
    load_tile(value_tile(slot), kCols, group.rows(group.value), tile * kCols, first_channel,
              value_channels(), device::thread_index(), threads);
  }
};

// 16 rows of queries, from one on: behind the block's Group. They are a warp's own, which no other
// warp touches, or where the keys lie.
OCNET_DEVICE SharedTile query_rows(int row, int pitch) {
  return {device::shared_memory<unsigned char>() + kGroupBytes + row * pitch, pitch};
}

// Starts the copies of a warp's own query rows.
template <typename storage_t>
OCNET_DEVICE void load_query_rows(const FwdGroup<storage_t>& group, int first_row) {
  const auto query = group.rows(group.query);
  const SharedTile rows =
      query_rows(device::warp_index() * kMmaRows, tile_pitch(query.channels, sizeof(storage_t)));
  load_tile(rows, kMmaRows, query, first_row, 0, padded_channels(query.channels),
            device::lane_index(), device::kWarpThreads);
}

// out = softmax(scale * query key^T) value and lse (FlashAttention-2, arXiv 2307.08691, algorithm
// 1), with a warp for every 16 queries.
//
// Grid: see ForwardPlan; blocks of plan.warps warps. Inputs have 16-byte aligned rows with channel
// stride 1; out and residual any strides. Scores, weights and sums are fp32, products as Math has
// them. Every slice of the output channels computes the scores of its queries.
//
// Streaming, the copy of a value tile runs under its scores, that of the next keys under the sums
// over values: one tile of each is enough, with two barriers for the block. Resident, warps go
// their own ways after the first barrier, and a warp's next queries are copied under its softmax,
// sums and stores; where they are keys too, they are there already.
//
// Where there are as many keys as queries the walk over keys starts at the block's own: with shared
// keys a pixel is most similar to itself, so the first maximum is near the last. Not so in groups,
// whose results must not depend on the tile of queries.
template <typename Math, int kCols, int kWidth>
OCNET_KERNEL(kMmaThreads, 1)
oc_attention_mma_fwd_kernel(OCNET_GRID_CONSTANT MmaFwdParams<typename Math::storage_t> params) {
  using storage_t = typename Math::storage_t;
  using Tiles = FwdTiles<storage_t, kCols, kWidth>;
  const ForwardPlan& plan = params.plan;
  const FwdPlace place(plan, params.work);
  const Family& family = params.work.families[place.family];
  const auto& group =
      load_group(params.stages[family.stage], place, family, plan.warps * device::kWarpThreads);
  const Tiles tiles(params, group, place, family.col_tiles);
  const int threads = plan.warps * device::kWarpThreads;
  const int tile_rows = plan.warps * kMmaRows;
  const auto first_row_of = [&](int tile) {
    return tile * tile_rows + device::warp_index() * kMmaRows;
  };
  const auto start_of = [&](int tile) {
    const int own = tile * tile_rows / kCols - place.first_key_tile;
    const bool has_own =
        plan.own_keys_first && family.owned == family.streamed && own >= 0 && own < place.key_tiles;
    return place.first_key_tile + (has_own ? own : 0);
  };

  if (!plan.queries_are_keys) load_query_rows(group, first_row_of(place.walker));
  if (plan.resident) {
    for (int tile = 0; tile < family.col_tiles; ++tile) {
      tiles.load_keys(tile, tile, threads);
      tiles.load_values(tile, tile, threads);
    }
  } else {
    tiles.load_keys(start_of(place.walker), 0, threads);
  }
  ptx::copy_async_commit();
  if (plan.resident) {
    ptx::copy_async_wait<0>();
    device::barrier();
  }

  for (int tile = place.walker; tile < family.row_tiles; tile += family.walkers) {
    if (plan.resident && first_row_of(tile) >= group.query.tokens) break;
    const SharedTile rows =
        query_rows(plan.queries_are_keys ? first_row_of(tile) : device::warp_index() * kMmaRows,
                   tiles.key_pitch());
    const int start = start_of(tile);
    SoftmaxRows softmax;
    float sums[kWidth / 8][4];
    clear_sums(sums);
    for (int step = 0; step < place.key_tiles; ++step) {
      const int key_tile = place.key_tile(start, step);
      const int slot = plan.resident ? key_tile : 0;
      const bool is_last = step + 1 == place.key_tiles;
      // The keys have come, and the queries at first; values of the step before are done with.
      if (!plan.resident || step == 0) ptx::copy_async_wait<0>();
      if (plan.resident) {
        device::sync_warp();
      } else {
        device::barrier();
        tiles.load_values(key_tile, 0, threads);
        ptx::copy_async_commit();
      }

      float scores[kCols / 8][4];
      clear_sums(scores);
      multiply_rows<Math, kCols>(scores, rows, 0, tiles.key_tile(slot), 0,
                                 padded_channels(tiles.channels()));
      if (plan.resident && is_last && !plan.queries_are_keys &&
          first_row_of(tile + family.walkers) < group.query.tokens) {
        device::sync_warp();
        load_query_rows(group, first_row_of(tile + family.walkers));
        ptx::copy_async_commit();
      }
      softmax.template weigh<kCols>(scores, params.scale_log2, group.key.tokens - key_tile * kCols,
                                    sums);

      // The values have come, and the keys are done with.
      if (!plan.resident) {
        ptx::copy_async_wait<0>();
        device::barrier();
        if (!is_last) {
          tiles.load_keys(place.key_tile(start, step + 1), 0, threads);
          ptx::copy_async_commit();
        }
      }
      softmax.template count_rounded<Math, kCols>(scores);
      accumulate_tokens<Math, kCols, kWidth, Tiles::kGroup>(sums, scores, tiles.value_tile(slot),
                                                            tiles.value_channels());
    }
    softmax.template finish<Math>();
    if (plan.splits == 1) {
      store_results(group.rows(group.out), group.rows(group.residual), group.rows(group.lse),
                    softmax, sums, first_row_of(tile), tiles.first_channel, place.slice == 0);
    } else {
      store_partial(params.partial.image(place.image * plan.splits + place.split), softmax, sums,
                    first_row_of(tile), tiles.first_channel, place.slice == 0);
    }
  }
}

template <typename Math>
constexpr Arithmetic arithmetic_of() {
  if (!Math::kRoundsWeights) return Arithmetic::kSplit;
  return sizeof(typename Math::storage_t) == 2 ? Arithmetic::kNarrow : Arithmetic::kTF32;
}

// How many fp32 words of workspace the plan needs: a row of sums and its PartialRow for each part.
inline int64_t workspace_words(const AttentionShape& shape, const ForwardPlan& plan) {
  if (plan.splits == 1) return 0;
  return shape.images * plan.splits * shape.queries * partial_pitch(shape.value_channels);
}

template <typename Math, int kCols, int kWidth, typename Launch>
bool launch_if_planned(const MmaFwdParams<typename Math::storage_t>& params, const Launch& launch) {
  const ForwardPlan& plan = params.plan;
  if (plan.cols != kCols || plan.width != kWidth) return false;
  launch(oc_attention_mma_fwd_kernel<Math, kCols, kWidth>,
         Grid{plan.blocks, plan.warps * device::kWarpThreads, plan.shared_bytes + kGroupBytes},
         params);
  return true;
}

// Launches the kernel of the plan, and the combination of parts if there are any: only where there
// is one stage and one group. `launch` is a KernelLauncher, or launches as one does. `workspace`
// has workspace_words, aligned to 16 bytes.
template <typename Math, typename Launch>
void launch_oc_attention_mma_fwd(MmaFwdParams<typename Math::storage_t> params,
                                 const AttentionShape& shape, float* workspace,
                                 const Launch& launch) {
  const ForwardPlan& plan = params.plan;
  params.partial = partial_matrix(workspace, shape.queries, shape.value_channels);
  // One kernel for each pair of columns and width in the table.
  if constexpr (arithmetic_of<Math>() == Arithmetic::kNarrow) {
    launch_if_planned<Math, 64, 128>(params, launch) ||
        launch_if_planned<Math, 64, 256>(params, launch) ||
        launch_if_planned<Math, 32, 256>(params, launch);
  } else if constexpr (arithmetic_of<Math>() == Arithmetic::kTF32) {
    launch_if_planned<Math, 32, 128>(params, launch) ||
        launch_if_planned<Math, 32, 256>(params, launch) ||
        launch_if_planned<Math, 16, 256>(params, launch);
  } else {
    launch_if_planned<Math, 32, 128>(params, launch) ||
        launch_if_planned<Math, 16, 256>(params, launch);
  }
  if (plan.splits > 1) {
    const FwdStage<typename Math::storage_t>& stage = params.stages[0];
    launch_oc_attention_combine<typename Math::storage_t>(
        {params.partial, stage.out, stage.residual, stage.lse.data, shape.images, plan.splits},
        launch);
  }
}

}  // namespace ocnet
