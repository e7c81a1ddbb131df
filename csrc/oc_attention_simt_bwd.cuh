// SPDX-License-Identifier: MIT
// Backward kernels of pixel-wise attention, and their launches. No torch headers.
//
// With P[l][s] = exp(scale * <q_l, k_s> - lse_l), dP = grad_out value^T
// and delta_l = <grad_out_l, out_l + residual_l>:
//   grad_query = scale * (P * (dP - delta)) key
//   grad_key   = scale * (P * (dP - delta))^T query        grad_value = P^T grad_out
// P is recomputed from lse. A block owns rows of an output and walks the other side in a fixed
// order, so nothing is added by atomics and results repeat bit for bit.
#pragma once

#include "common/launch.cuh"
#include "common/tile.cuh"

namespace ocnet {

template <typename scalar_t>
struct BwdParams {
  TokenMatrix<const scalar_t> query;     // (N, L, E)
  TokenMatrix<const scalar_t> key;       // (N, S, E); the query itself when keys are shared
  TokenMatrix<const scalar_t> value;     // (N, S, Ev)
  TokenMatrix<const scalar_t> out;       // (N, L, Ev)
  TokenMatrix<const scalar_t> residual;  // (N, L, Ev); data is null where there is none
  TokenMatrix<const scalar_t> grad_out;  // (N, L, Ev)
  const accumulator_t<scalar_t>* lse;    // (N, L), contiguous
  accumulator_t<scalar_t>* delta;        // (N, L), contiguous; unused without grad_tokens
  accumulator_t<scalar_t> scale;
  // Outputs; data is null where a gradient is not wanted.
  TokenMatrix<scalar_t> grad_tokens;  // of the rows that a block owns: queries, keys, or both
  TokenMatrix<scalar_t> grad_value;   // (N, S, Ev)
  BlockPlan plan;
};

// Which part the rows that a block owns play in the scores.
enum class Role { kQuery, kKey, kBoth };

// delta[n][l] = <grad_out_l, out_l + residual_l>, but NaN when grad_out_l has an infinity: then dP
// has one at every key, and dP - sum(P * dP), for which delta stands, is NaN at every key.
//
// Grid: (image, tile of 32 tokens); 256 threads, 8 per token. Thread p of a token sums channels p,
// p + 8, ... in fp32 (fp64); the 8 sums are added in order. Lanes walk the contiguous axis.
// Shared memory: sizeof(acc) * 256 bytes.
template <typename scalar_t>
OCNET_KERNEL(256, 4)
oc_attention_bwd_delta_kernel(BwdParams<scalar_t> params) {
  using acc_t = accumulator_t<scalar_t>;
  constexpr int kTokens = 32;
  constexpr int kParts = 8;
  acc_t* const partial = device::shared_memory<acc_t>();  // (kParts, kTokens)

  const BlockPlace place = locate_block(params.plan, device::block_index(), kTokens);
  const auto grad_out = params.grad_out.image(place.image);
  const auto out = params.out.image(place.image);
  const auto residual = params.residual.image(place.image);
  const int thread = device::thread_index();
  const bool along_tokens = out.token_stride <= out.channel_stride;
  const int local = along_tokens ? thread % kTokens : thread / kParts;
  const int part = along_tokens ? thread / kTokens : thread % kParts;
  const int token = place.first_row + local;

  acc_t sum = 0;
  if (token < out.tokens) {
    for (int channel = part; channel < out.channels; channel += kParts) {
      const acc_t gradient = to_accumulator(*grad_out.at(token, channel));
      acc_t context = to_accumulator(*out.at(token, channel));
      if (residual.data != nullptr) context += to_accumulator(*residual.at(token, channel));
      sum += gradient * context + zero_if_finite(gradient);
    }
  }
  partial[part * kTokens + local] = sum;
  device::barrier();

  const int owned = place.first_row + thread;
  if (thread < kTokens && owned < out.tokens) {
    acc_t total = 0;
    OCNET_UNROLL
    for (int i = 0; i < kParts; ++i) total += partial[i * kTokens + thread];
    params.delta[place.image * out.tokens + owned] = total;
  }
}

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
// kSide is 64, and 32 for fp64.
//
// Grid: (image, tile of owned tokens, slice of output channels), slice fastest; 256 threads. Output
// chunks are those of grad_tokens, then those of grad_value; a slice without the former skips dP.
// Matrices have any strides; lse and delta are (N, L). Sums are fp32, and fp64 for fp64 storage.
// Shared memory: sizeof(acc) * (2 * kSide * kPitch + chunks_per_block * kSide * kSide) bytes, as in
// the forward kernel: E + Ev <= 512 (in whole chunks) needs one slice on sm_80.
// Derivation: docs/ops/oc_attention.md.
template <typename scalar_t, Role kRole>
OCNET_KERNEL(256, 2)
oc_attention_bwd_kernel(BwdParams<scalar_t> params) {
  using acc_t = accumulator_t<scalar_t>;
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

template <typename scalar_t, Role kRole, typename Launch>
void launch_oc_attention_bwd_role(BwdParams<scalar_t> params, int64_t images,
                                  const Launch& launch) {
  using TileT = Tile<accumulator_t<scalar_t>>;
  const int tokens = kRole == Role::kQuery ? params.query.tokens : params.key.tokens;
  int chunks = 0;
  if (params.grad_tokens.data != nullptr) chunks += TileT::chunks(params.grad_tokens.channels);
  if (params.grad_value.data != nullptr) chunks += TileT::chunks(params.grad_value.channels);
  params.plan = plan_blocks(images, tokens, TileT::kSide, chunks, TileT::kFixedBytes,
                            TileT::kChunkBytes, launch.shared_limit());
  launch(oc_attention_bwd_kernel<scalar_t, kRole>,
         Grid{params.plan.blocks, TileT::kThreads, params.plan.shared_bytes}, params);
}

// Computes the gradients whose data is not null. `params` has all but grad_tokens and the plan.
// With `shared_keys`, params.key is the query and grad_query receives the sum of both roles.
template <typename scalar_t, typename Launch>
void launch_oc_attention_bwd(BwdParams<scalar_t> params, int64_t images, bool shared_keys,
                             const TokenMatrix<scalar_t>& grad_query,
                             const TokenMatrix<scalar_t>& grad_key, const Launch& launch) {
  if (grad_query.data != nullptr || grad_key.data != nullptr) {
    using acc_t = accumulator_t<scalar_t>;
    BwdParams<scalar_t> first = params;
    first.plan = plan_blocks(images, params.out.tokens, 32, 1, 256 * sizeof(acc_t), 1,
                             launch.shared_limit());
    launch(oc_attention_bwd_delta_kernel<scalar_t>,
           Grid{first.plan.blocks, 256, first.plan.shared_bytes}, first);
  }
  if (shared_keys && grad_query.data != nullptr) {
    params.grad_tokens = grad_query;
    launch_oc_attention_bwd_role<scalar_t, Role::kBoth>(params, images, launch);
    return;
  }
  if (grad_key.data != nullptr || params.grad_value.data != nullptr) {
    params.grad_tokens = grad_key;
    launch_oc_attention_bwd_role<scalar_t, Role::kKey>(params, images, launch);
  }
  if (grad_query.data != nullptr) {
    params.grad_tokens = grad_query;
    params.grad_value = {};
    launch_oc_attention_bwd_role<scalar_t, Role::kQuery>(params, images, launch);
  }
}

}  // namespace ocnet
