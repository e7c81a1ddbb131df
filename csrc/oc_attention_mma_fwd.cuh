// SPDX-License-Identifier: MIT
// Forward kernel of pixel-wise attention on tensor cores (mma.sync, sm_80 and later), and its
// launch. No torch headers.
#pragma once

#include "common/launch.cuh"
#include "common/mma_store.cuh"
#include "common/mma_tile.cuh"
#include "oc_attention_combine.cuh"
#include "oc_attention_softmax.cuh"
#include "oc_attention_tiles.h"

namespace ocnet {

template <typename scalar_t>
struct MmaFwdParams {
  TokenMatrix<const scalar_t> query;  // (N, L, E)
  TokenMatrix<const scalar_t> key;    // (N, S, E)
  TokenMatrix<const scalar_t> value;  // (N, S, Ev)
  TokenMatrix<scalar_t> out;          // (N, L, Ev)
  TokenMatrix<scalar_t> residual;     // (N, L, Ev); data is null where it is not wanted
  float* lse;                         // (N, L), contiguous
  TokenMatrix<float> partial;         // (N * splits, L, PartialRow of Ev), if there are splits
  float scale_log2;                   // of scores, in powers of two
  ForwardPlan plan;
};

// What one block works on.
struct FwdPlace {
  int64_t image;
  int slice, split, walker;
  int first_key_tile, key_tiles;

  // Parts of the keys are neighbours, then slices: blocks that run together share their queries.
  OCNET_DEVICE FwdPlace(const ForwardPlan& plan, int64_t block) {
    split = static_cast<int>(block % plan.splits);
    block /= plan.splits;
    slice = static_cast<int>(block % plan.slices);
    block /= plan.slices;
    walker = static_cast<int>(block % plan.walkers);
    image = block / plan.walkers;
    first_key_tile = first_of(plan, split);
    key_tiles = first_of(plan, split + 1) - first_key_tile;
  }
  OCNET_DEVICE static int first_of(const ForwardPlan& plan, int split) {
    return static_cast<int>(static_cast<int64_t>(plan.key_tiles) * split / plan.splits);
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

  TokenMatrix<const storage_t> key, value;
  unsigned char* keys;
  unsigned char* values;
  int first_channel;

  OCNET_DEVICE FwdTiles(const MmaFwdParams<storage_t>& params, const FwdPlace& place)
      : key(params.key.image(place.image)), value(params.value.image(place.image)) {
    const ForwardPlan& plan = params.plan;
    first_channel = place.slice * kWidth;
    keys = device::shared_memory<unsigned char>() + plan.warps * kMmaRows * key_pitch();
    values = keys + (plan.resident ? plan.key_tiles : 1) * kCols * key_pitch();
  }
  OCNET_DEVICE int key_pitch() const { return tile_pitch(key.channels, kBytes); }
  OCNET_DEVICE int value_pitch() const {
    return ocnet::value_pitch(value.channels, kWidth, kBytes);
  }
  OCNET_DEVICE int value_channels() const {
    return grouped_values(value.channels - first_channel, kWidth);
  }
  OCNET_DEVICE SharedTile key_tile(int slot) const {
    return {keys + slot * kCols * key_pitch(), key_pitch()};
  }
  OCNET_DEVICE SharedTile value_tile(int slot) const {
    return {values + slot * kCols * value_pitch(), value_pitch()};
  }

  // By all threads of the block, which commit.
  OCNET_DEVICE void load_keys(int tile, int slot, int threads) const {
    load_tile(key_tile(slot), kCols, key, tile * kCols, 0, padded_channels(key.channels),
              device::thread_index(), threads);
  }
  OCNET_DEVICE void load_values(int tile, int slot, int threads) const {
    load_tile(value_tile(slot), kCols, value, tile * kCols, first_channel, value_channels(),
              device::thread_index(), threads);
  }
};

// A warp's own query rows, which no other warp touches.
template <typename storage_t>
OCNET_DEVICE SharedTile load_query_rows(const TokenMatrix<const storage_t>& query, int first_row) {
  const int pitch = tile_pitch(query.channels, sizeof(storage_t));
  const SharedTile rows{
      device::shared_memory<unsigned char>() + device::warp_index() * kMmaRows * pitch, pitch};
  load_tile(rows, kMmaRows, query, first_row, 0, padded_channels(query.channels),
            device::lane_index(), device::kWarpThreads);
  return rows;
}

// Writes out, the residual and lse of a warp's rows.
template <typename scalar_t, int kColumns>
OCNET_DEVICE void store_results(const MmaFwdParams<scalar_t>& params, const FwdPlace& place,
                                const SoftmaxRows& softmax, float (&sums)[kColumns][4],
                                int first_row, int first_channel) {
  if (place.slice == 0 && device::lane_index() % 4 == 0) {  // one writer per row
    float* const lse = params.lse + place.image * params.query.tokens;
    OCNET_UNROLL
    for (int r = 0; r < 2; ++r) {
      const int row = first_row + device::lane_index() / 4 + 8 * r;
      if (row < params.query.tokens) {
        lse[row] = log_sum_exp(kLn2 * softmax.maximum[r], softmax.total[r]);
      }
    }
  }
  OCNET_UNROLL
  for (int n = 0; n < kColumns; ++n) {
    OCNET_UNROLL
    for (int i = 0; i < 4; ++i) sums[n][i] *= 1.0f / softmax.divisor(i / 2);
  }
  store_rows(sums, params.out.image(place.image), first_row, first_channel);
  if constexpr (sizeof(scalar_t) == 2) {
    if (params.residual.data == nullptr) return;
    OCNET_UNROLL
    for (int n = 0; n < kColumns; ++n) {
      OCNET_UNROLL
      for (int i = 0; i < 4; ++i) sums[n][i] = rounding_loss<scalar_t>(sums[n][i]);
    }
    store_rows(sums, params.residual.image(place.image), first_row, first_channel);
  }
}

// Writes what the combination of parts needs of a warp's rows.
template <typename scalar_t, int kColumns>
OCNET_DEVICE void store_partial(const MmaFwdParams<scalar_t>& params, const FwdPlace& place,
                                const SoftmaxRows& softmax, const float (&sums)[kColumns][4],
                                int first_row, int first_channel) {
  const auto partial = params.partial.image(place.image * params.plan.splits + place.split);
  store_rows(sums, partial, first_row, first_channel);
  if (place.slice == 0 && device::lane_index() % 4 == 0) {
    OCNET_UNROLL
    for (int r = 0; r < 2; ++r) {
      const int row = first_row + device::lane_index() / 4 + 8 * r;
      if (row < partial.tokens) {
        *partial_row(partial, row) = {softmax.maximum[r], softmax.total[r], softmax.divisor(r),
                                      0.0f};
      }
    }
  }
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
// sums and stores.
//
// Where there are as many keys as queries the walk over keys starts at the block's own: with shared
// keys a pixel is most similar to itself, so the first maximum is near the last.
template <typename Math, int kCols, int kWidth>
OCNET_KERNEL(kMmaThreads, 1)
oc_attention_mma_fwd_kernel(MmaFwdParams<typename Math::storage_t> params) {
  using storage_t = typename Math::storage_t;
  using Tiles = FwdTiles<storage_t, kCols, kWidth>;
  const ForwardPlan& plan = params.plan;
  const FwdPlace place(plan, device::block_index());
  const Tiles tiles(params, place);
  const auto query = params.query.image(place.image);
  const int threads = plan.warps * device::kWarpThreads;
  const int tile_rows = plan.warps * kMmaRows;
  const auto first_row_of = [&](int tile) {
    return tile * tile_rows + device::warp_index() * kMmaRows;
  };
  const auto start_of = [&](int tile) {
    const int own = tile * tile_rows / kCols - place.first_key_tile;
    const bool has_own = query.tokens == tiles.key.tokens && own >= 0 && own < place.key_tiles;
    return place.first_key_tile + (has_own ? own : 0);
  };

  const SharedTile rows = load_query_rows(query, first_row_of(place.walker));
  if (plan.resident) {
    for (int tile = 0; tile < plan.key_tiles; ++tile) {
      tiles.load_keys(tile, tile, threads);
      tiles.load_values(tile, tile, threads);
    }
  } else {
    tiles.load_keys(start_of(place.walker), 0, threads);
  }
  ptx::copy_async_commit();

  for (int tile = place.walker; tile < plan.row_tiles; tile += plan.walkers) {
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
      if (!plan.resident || (step == 0 && tile == place.walker)) {
        device::barrier();
      } else {
        device::sync_warp();
      }
      if (!plan.resident) {
        tiles.load_values(key_tile, 0, threads);
        ptx::copy_async_commit();
      }

      float scores[kCols / 8][4];
      clear_sums(scores);
      multiply_rows<Math, kCols>(scores, rows, 0, tiles.key_tile(slot), 0,
                                 padded_channels(query.channels));
      if (plan.resident && is_last && tile + plan.walkers < plan.row_tiles) {
        device::sync_warp();
        load_query_rows(query, first_row_of(tile + plan.walkers));
        ptx::copy_async_commit();
      }
      softmax.template weigh<kCols>(scores, params.scale_log2, tiles.key.tokens - key_tile * kCols,
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
      store_results(params, place, softmax, sums, first_row_of(tile), tiles.first_channel);
    } else {
      store_partial(params, place, softmax, sums, first_row_of(tile), tiles.first_channel);
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
         Grid{plan.blocks, plan.warps * device::kWarpThreads, plan.shared_bytes}, params);
  return true;
}

// Launches the kernel of the plan, and the combination of parts if there are any. `launch` is a
// KernelLauncher, or launches as one does. `workspace` has workspace_words, aligned to 16 bytes.
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
    launch_oc_attention_combine<typename Math::storage_t>(
        {params.partial, params.out, params.residual, params.lse, shape.images, plan.splits},
        launch);
  }
}

}  // namespace ocnet
