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

#include "common/launch.cuh"
#include "common/tile.cuh"

namespace ocnet {

struct BwdParams {
  TokenMatrix<const double> query;     // (N, L, E)
  TokenMatrix<const double> key;       // (N, S, E); the query itself when keys are shared
  TokenMatrix<const double> value;     // (N, S, Ev)
  TokenMatrix<const double> grad_out;  // (N, L, Ev)
  const double* lse;                   // (N, L), contiguous
  double* delta;                       // (N, L), contiguous; unused without grad_tokens
  double scale;
  // Outputs; data is null where a gradient is not wanted.
  TokenMatrix<double> grad_tokens;  // of the rows that a block owns: queries, keys, or both
  TokenMatrix<double> grad_value;   // (N, S, Ev)
  BlockPlan plan;
};

// Which part the rows that a block owns play in the scores.
enum class Role { kQuery, kKey, kBoth };

// Per-token values of kMicro neighbouring tokens, 0 past the end.
template <typename acc_t, int kMicro>
OCNET_DEVICE void load_tokens(acc_t (&values)[kMicro], const acc_t* source, int first, int tokens) {
  OCNET_UNROLL
  for (int i = 0; i < kMicro; ++i) values[i] = first + i < tokens ? source[first + i] : acc_t(0);
}

// Gradients of kSide tokens of one image: queries, keys or, with shared keys, both at once.
//   kQuery  grad_tokens = scale * (P * (dP - delta)) key
//   kKey    grad_tokens = scale * (P * (dP - delta))^T query,  grad_value = P^T grad_out
//   kBoth   grad_tokens = the sum of the two; one tile of the symmetric scores serves P and P^T
//
// Grid: (image, tile of owned tokens, slice of output channels), slice fastest; 256 threads. Output
// chunks are those of grad_tokens, then those of grad_value; a slice without the former skips dP.
// Matrices have any strides; lse and delta are (N, L).
// Shared memory: 8 * (2 * kSide * kPitch + chunks_per_block * kSide * kSide) bytes, as in the
// forward kernel: E + Ev <= 512 (in whole chunks) needs one slice on sm_80. Derivation:
// docs/ops/oc_attention.md.
template <Role kRole>
OCNET_KERNEL(256, 2)
oc_attention_bwd_kernel(BwdParams params) {
  using acc_t = double;
  using TileT = Tile<acc_t>;
  constexpr int kMicro = TileT::kMicro;
  constexpr int kSide = TileT::kSide;
  constexpr bool kAsQuery = kRole != Role::kKey;
  constexpr bool kAsKey = kRole != Role::kQuery;

  acc_t* const stage = device::shared_memory<acc_t>();
  acc_t* const weights = stage + TileT::kTileElements;
  acc_t* const accumulators = weights + TileT::kTileElements;

  const BlockPlace place = locate_block(params.plan, device::block_index(), kSide);
  const auto own = (kAsKey ? params.key : params.query).image(place.image);
  const auto other = (kAsKey ? params.query : params.key).image(place.image);
  const auto value = params.value.image(place.image);
  const auto grad_out = params.grad_out.image(place.image);
  const acc_t* const lse = params.lse + place.image * grad_out.tokens;
  const acc_t* const delta = params.delta + place.image * grad_out.tokens;

  // This block's chunks: token_chunks of grad_tokens from first_chunk on, then value_chunks.
  const int all_token_chunks =
      params.grad_tokens.data != nullptr ? TileT::chunks(params.grad_tokens.channels) : 0;
  const int first_chunk = place.slice * params.plan.chunks_per_block;
  const int end_chunk = min_of(first_chunk + params.plan.chunks_per_block, params.plan.chunks);
  const int token_chunks = max_of(0, min_of(end_chunk, all_token_chunks) - first_chunk);
  const int value_chunks = end_chunk - first_chunk - token_chunks;
  const int first_value_chunk = max_of(0, first_chunk - all_token_chunks);
  acc_t* const value_accumulators = accumulators + token_chunks * TileT::kChunkElements;

  clear_accumulators<TileT>(accumulators, token_chunks + value_chunks);
  const int row = place.first_row + TileT::thread_row();
  acc_t one[kMicro];
  OCNET_UNROLL
  for (int i = 0; i < kMicro; ++i) one[i] = 1;

  for (int first_col = 0; first_col < other.tokens; first_col += kSide) {
    const int col = first_col + TileT::thread_col();
    const auto valid = [&](int i, int j) { return row + i < own.tokens && col + j < other.tokens; };
    acc_t scores[kMicro][kMicro];
    inner_products<TileT>(scores, stage, own, place.first_row, other, first_col);
    OCNET_UNROLL
    for (int i = 0; i < kMicro; ++i) {
      OCNET_UNROLL
      for (int j = 0; j < kMicro; ++j) scores[i][j] *= params.scale;
    }

    // As keys: P^T, normalised by the lse of the streamed queries.
    acc_t key_weights[kMicro][kMicro];
    if constexpr (kAsKey) {
      acc_t col_lse[kMicro];
      load_tokens(col_lse, lse, col, other.tokens);
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
      inner_products<TileT>(products, stage, grad_out, place.first_row, value, first_col);
      // Read again for every tile: held, they would not fit in the registers of two blocks.
      acc_t row_lse[kMicro];
      acc_t row_delta[kMicro];
      load_tokens(row_lse, lse, row, own.tokens);
      load_tokens(row_delta, delta, row, own.tokens);
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
      load_tokens(col_delta, delta, col, other.tokens);
      inner_products<TileT>(products, stage, value, place.first_row, grad_out, first_col);
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
    store_accumulators<TileT>(accumulators, stage, params.grad_tokens.image(place.image),
                              place.first_row, first_chunk, token_chunks, scale);
  }
  if (value_chunks > 0) {
    store_accumulators<TileT>(value_accumulators, stage, params.grad_value.image(place.image),
                              place.first_row, first_value_chunk, value_chunks, one);
  }
}

template <Role kRole, typename Launch>
void launch_oc_attention_bwd_role(BwdParams params, int64_t images, const Launch& launch) {
  using TileT = Tile<double>;
  const int tokens = kRole == Role::kQuery ? params.query.tokens : params.key.tokens;
  int chunks = 0;
  if (params.grad_tokens.data != nullptr) chunks += TileT::chunks(params.grad_tokens.channels);
  if (params.grad_value.data != nullptr) chunks += TileT::chunks(params.grad_value.channels);
  params.plan = plan_blocks(images, tokens, TileT::kSide, chunks, TileT::kFixedBytes,
                            TileT::kChunkBytes, launch.shared_limit());
  launch(oc_attention_bwd_kernel<kRole>,
         Grid{params.plan.blocks, TileT::kThreads, params.plan.shared_bytes}, params);
}

// Computes the gradients whose data is not null. `params` has all but grad_tokens and the plan.
// With `shared_keys`, params.key is the query and grad_query receives the sum of both roles.
template <typename Launch>
void launch_oc_attention_bwd(BwdParams params, int64_t images, bool shared_keys,
                             const TokenMatrix<double>& grad_query,
                             const TokenMatrix<double>& grad_key, const Launch& launch) {
  if (shared_keys && grad_query.data != nullptr) {
    params.grad_tokens = grad_query;
    launch_oc_attention_bwd_role<Role::kBoth>(params, images, launch);
    return;
  }
  if (grad_key.data != nullptr || params.grad_value.data != nullptr) {
    params.grad_tokens = grad_key;
    launch_oc_attention_bwd_role<Role::kKey>(params, images, launch);
  }
  if (grad_query.data != nullptr) {
    params.grad_tokens = grad_query;
    params.grad_value = {};
    launch_oc_attention_bwd_role<Role::kQuery>(params, images, launch);
  }
}

}  // namespace ocnet
