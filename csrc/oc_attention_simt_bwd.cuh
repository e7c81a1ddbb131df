// SPDX-License-Identifier: MIT
// Backward kernels of pixel-wise attention in fp64, and their launches. No torch headers.
//
// With P[l][s] = exp(scale * <q_l, k_s> - lse_l), dP = grad_out value^T and delta_l as the kernel
// of its own leaves it:
//   grad_query = scale * (P * (dP - delta)) key
//   grad_key   = scale * (P * (dP - delta))^T query        grad_value = P^T grad_out
// P is recomputed from lse. A block owns rows of an output and walks the other side in a fixed
// order, so nothing is added by atomics and results repeat bit for bit.
#pragma once

#include "common/group_spans.cuh"
#include "common/groups.h"
#include "common/launch.cuh"
#include "common/tile.cuh"

namespace ocnet {

// Matrices of whole maps, any strides; all stages have the same gradients.
struct BwdStage {
  TokenMatrix<const double> query;     // (N, L, E)
  TokenMatrix<const double> key;       // (N, S, E); the query itself when keys are shared
  TokenMatrix<const double> value;     // (N, S, Ev)
  TokenMatrix<const double> grad_out;  // (N, L, Ev)
  TokenMatrix<const double> lse;       // (N, L, 1), contiguous
  TokenMatrix<const double> delta;     // (N, L, 1), contiguous; unused without grad_tokens
  // Outputs; data is null where a gradient is not wanted.
  TokenMatrix<double> grad_tokens;  // of the rows that a block owns: queries, keys, or both
  TokenMatrix<double> grad_value;   // (N, S, Ev)
};

struct BwdParams {
  BwdStage stages[kStageSlots];
  double scale;
  BlockPlan plan;
  WorkTable work;
};

// A block's own tokens and those that stream past it, at the start of its shared memory.
struct BwdGroup : Group {
  GroupSpan<const double> own, other, value, grad_out, lse, delta;
  GroupSpan<double> grad_tokens, grad_value;
};

// Which part the rows that a block owns play in the scores.
enum class Role { kQuery, kKey, kBoth };

// By all threads of a block; ends with a barrier.
template <bool kAsKey>
OCNET_DEVICE const BwdGroup& load_group(const BwdStage& stage, const WorkPlace& place,
                                        const Family& family, int threads) {
  static_assert(sizeof(BwdGroup) <= kGroupBytes, "tiles lie behind it");
  auto& group = *device::shared_memory<BwdGroup>();
  const int queries = kAsKey ? family.streamed : family.owned;
  SpanWriter writer(place, family, threads);
  writer.put(group.own, kAsKey ? stage.key : stage.query, family.owned);
  writer.put(group.other, kAsKey ? stage.query : stage.key, family.streamed);
  writer.put(group.value, stage.value, kAsKey ? family.owned : family.streamed);
  writer.put(group.grad_out, stage.grad_out, queries);
  writer.put(group.lse, stage.lse, queries);
  writer.put(group.delta, stage.delta, queries);
  writer.put(group.grad_tokens, stage.grad_tokens, family.owned);
  writer.put(group.grad_value, stage.grad_value, family.owned);
  writer.finish(group);
  return group;
}

// Per-token values of kMicro neighbouring tokens, 0 past the end.
template <typename acc_t, int kMicro>
OCNET_DEVICE void load_numbers(acc_t (&values)[kMicro], const GroupMatrix<const acc_t>& source,
                               int first) {
  OCNET_UNROLL
  for (int i = 0; i < kMicro; ++i) {
    values[i] = first + i < source.tokens ? *source.at(first + i, 0) : acc_t(0);
  }
}

// Gradients of kSide tokens of one group: queries, keys or, with shared keys, both at once.
//   kQuery  grad_tokens = scale * (P * (dP - delta)) key
//   kKey    grad_tokens = scale * (P * (dP - delta))^T query,  grad_value = P^T grad_out
//   kBoth   grad_tokens = the sum of the two; one tile of the symmetric scores serves P and P^T
//
// Grid: (group, tile of owned tokens, slice of output channels), slice fastest; 256 threads. Output
// chunks are those of grad_tokens, then those of grad_value; a slice without the former skips dP.
// Shared memory: 8 * (2 * kSide * kPitch + chunks_per_block * kSide * kSide) bytes, as in the
// forward kernel: E + Ev <= 512 (in whole chunks) needs one slice on sm_80. Derivation:
// docs/ops/oc_attention.md.
template <Role kRole>
OCNET_KERNEL(256, 2)
oc_attention_bwd_kernel(OCNET_GRID_CONSTANT BwdParams params) {
  using acc_t = double;
  using TileT = Tile<acc_t>;
  constexpr int kMicro = TileT::kMicro;
  constexpr int kSide = TileT::kSide;
  constexpr bool kAsQuery = kRole != Role::kKey;
  constexpr bool kAsKey = kRole != Role::kQuery;

  acc_t* const stage = device::shared_memory<acc_t>() + kGroupBytes / sizeof(acc_t);
  acc_t* const weights = stage + TileT::kTileElements;
  acc_t* const accumulators = weights + TileT::kTileElements;

  const WorkPlace place = locate_work(params.work, device::block_index());
  const Family& family = params.work.families[place.family];
  const auto& group =
      load_group<kAsKey>(params.stages[family.stage], place, family, TileT::kThreads);
  const int first_row = place.block / params.plan.slices * kSide;
  const auto own = group.rows(group.own);
  const auto other = group.rows(group.other);
  const auto value = group.rows(group.value);
  const auto grad_out = group.rows(group.grad_out);
  const auto lse = group.rows(group.lse);
  const auto delta = group.rows(group.delta);

  // This block's chunks: token_chunks of grad_tokens from first_chunk on, then value_chunks.
  const int all_token_chunks =
      group.grad_tokens.data != nullptr ? TileT::chunks(group.grad_tokens.channels) : 0;
  const int first_chunk = place.block % params.plan.slices * params.plan.chunks_per_block;
  const int end_chunk = min_of(first_chunk + params.plan.chunks_per_block, params.plan.chunks);
  const int token_chunks = max_of(0, min_of(end_chunk, all_token_chunks) - first_chunk);
  const int value_chunks = end_chunk - first_chunk - token_chunks;
  const int first_value_chunk = max_of(0, first_chunk - all_token_chunks);
  acc_t* const value_accumulators = accumulators + token_chunks * TileT::kChunkElements;

  clear_accumulators<TileT>(accumulators, token_chunks + value_chunks);
  const int row = first_row + TileT::thread_row();
  acc_t one[kMicro];
  OCNET_UNROLL
  for (int i = 0; i < kMicro; ++i) one[i] = 1;

  for (int first_col = 0; first_col < other.tokens; first_col += kSide) {
    const int col = first_col + TileT::thread_col();
    const auto valid = [&](int i, int j) { return row + i < own.tokens && col + j < other.tokens; };
    acc_t scores[kMicro][kMicro];
    inner_products<TileT>(scores, stage, own, first_row, other, first_col);
    OCNET_UNROLL
    for (int i = 0; i < kMicro; ++i) {
      OCNET_UNROLL
      for (int j = 0; j < kMicro; ++j) scores[i][j] *= params.scale;
    }

    // As keys: P^T, normalised by the lse of the streamed queries.
    acc_t key_weights[kMicro][kMicro];
    if constexpr (kAsKey) {
      acc_t col_lse[kMicro];
      load_numbers(col_lse, lse, col);
      OCNET_UNROLL
      for (int i = 0; i < kMicro; ++i) {
        OCNET_UNROLL
        for (int j = 0; j < kMicro; ++j) {
          key_weights[i][j] = masked_exponential(scores[i][j], col_lse[j], valid(i, j));
        }
      }
      if (value_chunks > 0) {
        store_weights<TileT>(weights, key_weights);
        accumulate_products<TileT>(value_accumulators, weights, stage, grad_out, first_col,
                                   first_value_chunk, value_chunks, one);
      }
    }
    if (token_chunks == 0) continue;

    // The gradient of the scores, of both roles; `scores` is turned into it in place. Padding has
    // weight 0 and a finite factor, unless the owned row of grad_out or value is not finite; delta
    // is not finite then, and the gradient of that row is NaN anyhow.
    acc_t products[kMicro][kMicro];
    if constexpr (kAsQuery) {
      inner_products<TileT>(products, stage, grad_out, first_row, value, first_col);
      // Read again for every tile: held, they would not fit in the registers of two blocks.
      acc_t row_lse[kMicro];
      acc_t row_delta[kMicro];
      load_numbers(row_lse, lse, row);
      load_numbers(row_delta, delta, row);
      OCNET_UNROLL
      for (int i = 0; i < kMicro; ++i) {
        OCNET_UNROLL
        for (int j = 0; j < kMicro; ++j) {
          const acc_t weight = masked_exponential(scores[i][j], row_lse[i], valid(i, j));
          scores[i][j] = weight * (products[i][j] - row_delta[i]);
        }
      }
    }
    if constexpr (kAsKey) {
      acc_t col_delta[kMicro];
      load_numbers(col_delta, delta, col);
      inner_products<TileT>(products, stage, value, first_row, grad_out, first_col);
      OCNET_UNROLL
      for (int i = 0; i < kMicro; ++i) {
        OCNET_UNROLL
        for (int j = 0; j < kMicro; ++j) {
          const acc_t gradient = key_weights[i][j] * (products[i][j] - col_delta[j]);
          scores[i][j] = kAsQuery ? scores[i][j] + gradient : gradient;
        }
      }
    }
    store_weights<TileT>(weights, scores);
    accumulate_products<TileT>(accumulators, weights, stage, other, first_col, first_chunk,
                               token_chunks, one);
  }

  if (token_chunks > 0) {
    acc_t scale[kMicro];
    OCNET_UNROLL
    for (int i = 0; i < kMicro; ++i) scale[i] = params.scale;
    store_accumulators<TileT>(accumulators, stage, group.rows(group.grad_tokens), first_row,
                              first_chunk, token_chunks, scale);
  }
  if (value_chunks > 0) {
    store_accumulators<TileT>(value_accumulators, stage, group.rows(group.grad_value), first_row,
                              first_value_chunk, value_chunks, one);
  }
}

// Launches one pass. `params` has all but the plan and the cut of the work.
template <Role kRole, typename Launch>
void launch_oc_attention_bwd(BwdParams params, const Launch& launch) {
  using TileT = Tile<double>;
  const BwdStage& stage = params.stages[0];
  int chunks = 0;
  if (stage.grad_tokens.data != nullptr) chunks += TileT::chunks(stage.grad_tokens.channels);
  if (stage.grad_value.data != nullptr) chunks += TileT::chunks(stage.grad_value.channels);
  params.plan = plan_blocks(1, 1, TileT::kSide, chunks, TileT::kFixedBytes, TileT::kChunkBytes,
                            launch.shared_limit() - kGroupBytes);
  const int64_t blocks = deal_work(params.work, [&](Family& family) {
    return cut_family(family, TileT::kSide, TileT::kSide, params.plan.slices);
  });
  launch(oc_attention_bwd_kernel<kRole>,
         Grid{blocks, TileT::kThreads, params.plan.shared_bytes + kGroupBytes}, params);
}

}  // namespace ocnet
