// SPDX-License-Identifier: MIT
// Forward kernel of pixel-wise attention in fp64, by threads, and its launch. No torch headers.
#pragma once

#include "common/groups.h"
#include "common/launch.cuh"
#include "common/tile.cuh"
#include "oc_attention_fwd_stage.cuh"

namespace ocnet {

template <typename scalar_t>
struct FwdParams {
  FwdStage<scalar_t> stages[kStageSlots];  // without residuals
  accumulator_t<scalar_t> scale;
  BlockPlan plan;
  WorkTable work;
};

// out = softmax(scale * query key^T) value and lse, for kSide (32) queries of one group and the
// output channels of one slice.
//
// Grid: (group, query tile, slice of Ev), slice fastest; 256 threads. Every slice computes the
// scores of its queries; there is one slice wherever the accumulators of all Ev channels fit.
// query (N, L, E), key (N, S, E), value (N, S, Ev), out (N, L, Ev): any strides; lse (N, L).
// Keys stream by in tiles of kSide, with the online softmax. Channels are staged kDepth at a time,
// so E has no limit.
// Shared memory: sizeof(acc) * (2 * kSide * kPitch + chunks_per_block * kSide * kSide) bytes: the
// staging tile, the probabilities, and an accumulator per output element. At Ev = 512 that is
// 2 * 8,704 + 16 * 8,192 = 148,480 of the 166,912 bytes of sm_80.
template <typename scalar_t>
OCNET_KERNEL(256, 2)
oc_attention_fwd_kernel(OCNET_GRID_CONSTANT FwdParams<scalar_t> params) {
  using acc_t = accumulator_t<scalar_t>;
  using TileT = Tile<acc_t>;
  constexpr int kMicro = TileT::kMicro;
  constexpr int kSide = TileT::kSide;

  acc_t* const stage = device::shared_memory<acc_t>() + kGroupBytes / sizeof(acc_t);
  acc_t* const weights = stage + TileT::kTileElements;
  acc_t* const accumulators = weights + TileT::kTileElements;

  const WorkPlace place = locate_work(params.work, device::block_index());
  const Family& family = params.work.families[place.family];
  const auto& group = load_group(params.stages[family.stage], place, family, TileT::kThreads);
  const int first_row = place.block / params.plan.slices * kSide;
  const int slice = place.block % params.plan.slices;
  const int first_chunk = slice * params.plan.chunks_per_block;
  const int chunks = min_of(params.plan.chunks_per_block, params.plan.chunks - first_chunk);
  const auto query = group.rows(group.query);
  const auto key = group.rows(group.key);
  const auto value = group.rows(group.value);

  clear_accumulators<TileT>(accumulators, chunks);
  // All 16 threads of a row know its maximum; their totals are added up at the end.
  OnlineSoftmax<acc_t> softmax[kMicro];

  for (int first_key = 0; first_key < key.tokens; first_key += kSide) {
    acc_t scores[kMicro][kMicro];
    inner_products<TileT>(scores, stage, query, first_row, key, first_key);
    const int keys_left = key.tokens - first_key - TileT::thread_col();

    // Scores become weights relative to the running maximum; `rescale` is for earlier sums.
    acc_t rescale[kMicro];
    OCNET_UNROLL
    for (int i = 0; i < kMicro; ++i) {
      acc_t tile_maximum = negative_infinity<acc_t>();
      OCNET_UNROLL
      for (int j = 0; j < kMicro; ++j) {
        scores[i][j] *= params.scale;
        tile_maximum = masked_maximum(tile_maximum, scores[i][j], j < keys_left);
      }
      rescale[i] = softmax[i].raise(row_maximum<TileT>(tile_maximum));
      OCNET_UNROLL
      for (int j = 0; j < kMicro; ++j) {
        scores[i][j] = masked_exponential(scores[i][j], softmax[i].reference(), j < keys_left);
        softmax[i].total += scores[i][j];
      }
    }

    store_weights<TileT>(weights, scores);
    accumulate_products<TileT>(accumulators, weights, stage, value, first_key, first_chunk, chunks,
                               rescale);
  }

  acc_t inverse_total[kMicro];
  const int row = first_row + TileT::thread_row();
  // One writer per row: the first of its threads, in the first slice.
  const bool writes_lse = slice == 0 && TileT::thread_col() == 0;
  const auto lse = group.rows(group.lse);
  OCNET_UNROLL
  for (int i = 0; i < kMicro; ++i) {
    const acc_t total = row_total<TileT>(softmax[i].total);
    if (writes_lse && row + i < query.tokens) {
      *lse.at(row + i, 0) = log_sum_exp(softmax[i].maximum, total);
    }
    inverse_total[i] = acc_t(1) / total;
  }
  const auto out = group.rows(group.out);
  store_accumulators<TileT>(accumulators, stage, out, first_row, first_chunk, chunks,
                            inverse_total);
}

// `params` has all but the plan and the cut of the work. `launch` is a KernelLauncher, or launches
// as one does.
template <typename scalar_t, typename Launch>
void launch_oc_attention_fwd(FwdParams<scalar_t> params, const Launch& launch) {
  using TileT = Tile<accumulator_t<scalar_t>>;
  params.plan =
      plan_blocks(1, 1, TileT::kSide, TileT::chunks(params.stages[0].value.channels),
                  TileT::kFixedBytes, TileT::kChunkBytes, launch.shared_limit() - kGroupBytes);
  const int64_t blocks = deal_work(params.work, [&](Family& family) {
    return cut_family(family, TileT::kSide, TileT::kSide, params.plan.slices);
  });
  launch(oc_attention_fwd_kernel<scalar_t>,
         Grid{blocks, TileT::kThreads, params.plan.shared_bytes + kGroupBytes}, params);
}

}  // namespace ocnet
