// SPDX-License-Identifier: MIT
// Square tiles of token matrices in shared memory, and their products, by 16 x 16 threads.
//
// A product sums a[k][row] * b[k][col] over k. Both operands lie in shared memory with k as the
// slow axis, and each thread owns kMicro x kMicro neighbouring results: two 16-byte reads feed
// kMicro^2 multiply-adds.
#pragma once

#include "device.cuh"
#include "groups.h"
#include "math.h"
#include "tokens.h"

namespace ocnet {

template <typename acc_t_>
struct Tile {
  using acc_t = acc_t_;
  static constexpr int kGrid = 16;
  static constexpr int kThreads = kGrid * kGrid;
  static constexpr int kMicro = 16 / static_cast<int>(sizeof(acc_t));
  static constexpr int kSide = kGrid * kMicro;  // 64 for fp32, 32 for fp64
  static constexpr int kDepth = kSide / 2;      // channels staged at a time for scores
  // One pack of padding keeps rows apart in the banks (see Walk).
  static constexpr int kPitch = kSide + kMicro;
  static constexpr int kTileElements = kSide * kPitch;
  // Accumulators of one output chunk: kSide rows by kSide channels.
  static constexpr int kChunkElements = kSide * kSide;
  // The staging tile, the weight tile, then the accumulators.
  static constexpr size_t kFixedBytes = 2 * kTileElements * sizeof(acc_t);
  static constexpr size_t kChunkBytes = kChunkElements * sizeof(acc_t);

  static OCNET_HOST_DEVICE int chunks(int channels) {
    return static_cast<int>(ceil_div(channels, kSide));
  }
  static OCNET_DEVICE int thread_row() { return device::thread_index() / kGrid * kMicro; }
  static OCNET_DEVICE int thread_col() { return device::thread_index() % kGrid * kMicro; }
};

// kMicro neighbouring values: one 16-byte access to shared memory.
template <typename T>
struct alignas(16) Pack {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "accumulators are fp32 or fp64");
  T at[16 / sizeof(T)];
};

template <typename T>
OCNET_DEVICE Pack<T> load_pack(const T* from) {
  return *reinterpret_cast<const Pack<T>*>(from);
}
template <typename T>
OCNET_DEVICE void store_pack(T* to, const Pack<T>& pack) {
  *reinterpret_cast<Pack<T>*>(to) = pack;
}

// The way of one thread through a kRows x kSide tile: elements (k + i * k_step, n + i * n_step) for
// i < kElements. The block meets every element once, and neighbouring threads meet neighbours along
// the axis that is contiguous in global memory.
//   along n: a warp takes 32 columns of one row;
//   along k: a warp takes a patch of 8 rows x 4 columns. In global memory that is 4 runs of 8; in
//   shared memory the 32 fp32 elements fall into 32 banks, since rows start 4 banks apart.
template <typename TileT, int kRows>
struct Walk {
  static constexpr int kElements = kRows * TileT::kSide / TileT::kThreads;
  int k, n, k_step, n_step;

  OCNET_DEVICE explicit Walk(bool along_n) {
    constexpr int kRowPatches = kRows / 8;
    static_assert(kRows % 8 == 0 && TileT::kThreads / kRows % 4 == 0,
                  "patches must cover the tile");
    const int thread = device::thread_index();
    const int warp = thread / 32;
    const int lane = thread % 32;
    k = along_n ? thread / TileT::kSide : warp % kRowPatches * 8 + lane % 8;
    n = along_n ? thread % TileT::kSide : warp / kRowPatches * 4 + lane / 8;
    k_step = along_n ? TileT::kThreads / TileT::kSide : 0;
    n_step = along_n ? 0 : TileT::kThreads / kRows;
  }
};

// tile[k][n] = source element (k, n), and 0 where k or n is past its end.
template <typename TileT, int kRows, typename scalar_t>
OCNET_DEVICE void load_tile(typename TileT::acc_t* tile, const scalar_t* source, int64_t k_stride,
                            int64_t n_stride, int k_end, int n_end) {
  Walk<TileT, kRows> walk(n_stride <= k_stride);
  source += walk.k * k_stride + walk.n * n_stride;
  tile += walk.k * TileT::kPitch + walk.n;
  const int64_t step = walk.k_step * k_stride + walk.n_step * n_stride;
  const int tile_step = walk.k_step * TileT::kPitch + walk.n_step;
  OCNET_UNROLL_BY_8
  for (int i = 0; i < walk.kElements; ++i) {
    typename TileT::acc_t value = 0;
    if (walk.k < k_end && walk.n < n_end) value = to_accumulator(*source);
    *tile = value;
    walk.k += walk.k_step;
    walk.n += walk.n_step;
    source += step;
    tile += tile_step;
  }
}

// tile[k][n] = a channel of a token, from first_channel and first_token on, and 0 past the end of
// either. Tokens lie along k, or along n.
template <typename TileT, int kRows, bool kTokensAlongK, typename scalar_t>
OCNET_DEVICE void load_tokens(typename TileT::acc_t* tile, const TokenMatrix<const scalar_t>& from,
                              int first_token, int first_channel) {
  const int tokens = from.tokens - first_token;
  const int channels = from.channels - first_channel;
  load_tile<TileT, kRows>(tile, from.at(first_token, first_channel),
                          kTokensAlongK ? from.token_stride : from.channel_stride,
                          kTokensAlongK ? from.channel_stride : from.token_stride,
                          kTokensAlongK ? tokens : channels, kTokensAlongK ? channels : tokens);
}
template <typename TileT, int kRows, bool kTokensAlongK, typename scalar_t>
OCNET_DEVICE void load_tokens(typename TileT::acc_t* tile, const GroupMatrix<const scalar_t>& from,
                              int first_token, int first_channel) {
  if (from.is_run()) {
    load_tokens<TileT, kRows, kTokensAlongK>(tile, from.run(), first_token, first_channel);
    return;
  }
  Walk<TileT, kRows> walk((from.channel_stride < from.token_stride) == kTokensAlongK);
  OCNET_UNROLL_BY(1)
  for (int i = 0; i < walk.kElements; ++i) {
    const int token = first_token + (kTokensAlongK ? walk.k : walk.n);
    const int channel = first_channel + (kTokensAlongK ? walk.n : walk.k);
    typename TileT::acc_t value = 0;
    if (token < from.tokens && channel < from.channels) {
      value = to_accumulator(*from.scattered(token, channel));
    }
    tile[walk.k * TileT::kPitch + walk.n] = value;
    walk.k += walk.k_step;
    walk.n += walk.n_step;
  }
}

// Writes element (k, n) of the tile to target element (k, n), unless k or n is past its end.
template <typename TileT, typename scalar_t>
OCNET_DEVICE void store_tile(scalar_t* target, int64_t k_stride, int64_t n_stride, int k_end,
                             int n_end, const typename TileT::acc_t* tile) {
  const Walk<TileT, TileT::kSide> walk(n_stride <= k_stride);
  OCNET_UNROLL
  for (int i = 0; i < walk.kElements; ++i) {
    const int k = walk.k + i * walk.k_step;
    const int n = walk.n + i * walk.n_step;
    if (k < k_end && n < n_end) {
      target[k * k_stride + n * n_stride] = from_accumulator<scalar_t>(tile[k * TileT::kPitch + n]);
    }
  }
}

// Writes rows of the tile to tokens, and its columns to their channels.
template <typename TileT, typename scalar_t>
OCNET_DEVICE void store_tokens(const GroupMatrix<scalar_t>& target, int first_token,
                               int first_channel, const typename TileT::acc_t* tile) {
  if (target.is_run()) {
    const TokenMatrix<scalar_t> run = target.run();
    store_tile<TileT>(run.at(first_token, first_channel), run.token_stride, run.channel_stride,
                      run.tokens - first_token, run.channels - first_channel, tile);
    return;
  }
  Walk<TileT, TileT::kSide> walk(target.channel_stride < target.token_stride);
  OCNET_UNROLL_BY(1)
  for (int i = 0; i < walk.kElements; ++i) {
    if (first_token + walk.k < target.tokens && first_channel + walk.n < target.channels) {
      *target.scattered(first_token + walk.k, first_channel + walk.n) =
          from_accumulator<scalar_t>(tile[walk.k * TileT::kPitch + walk.n]);
    }
    walk.k += walk.k_step;
    walk.n += walk.n_step;
  }
}

// sums[i][j] += sum over k < kRows of a[k][thread row + i] * b[k][thread column + j].
template <typename TileT, int kRows>
OCNET_DEVICE void multiply_tiles(typename TileT::acc_t (&sums)[TileT::kMicro][TileT::kMicro],
                                 const typename TileT::acc_t* a, const typename TileT::acc_t* b) {
  constexpr int kMicro = TileT::kMicro;
  a += TileT::thread_row();
  b += TileT::thread_col();
  OCNET_UNROLL_BY_4
  for (int k = 0; k < kRows; ++k) {
    const auto left = load_pack(a + k * TileT::kPitch);
    const auto right = load_pack(b + k * TileT::kPitch);
    OCNET_UNROLL
    for (int i = 0; i < kMicro; ++i) {
      OCNET_UNROLL
      for (int j = 0; j < kMicro; ++j) sums[i][j] += left.at[i] * right.at[j];
    }
  }
}

// sums[i][j] = inner product over all channels of token (first_row + thread row + i) of `rows` and
// token (first_col + thread column + j) of `cols`; tokens past the end count as 0 (so NaN times one
// is NaN). Uses the staging tile. Matrix: TokenMatrix or GroupMatrix.
template <typename TileT, typename Matrix>
OCNET_DEVICE void inner_products(typename TileT::acc_t (&sums)[TileT::kMicro][TileT::kMicro],
                                 typename TileT::acc_t* stage, const Matrix& rows, int first_row,
                                 const Matrix& cols, int first_col) {
  constexpr int kMicro = TileT::kMicro;
  constexpr int kDepth = TileT::kDepth;
  typename TileT::acc_t* const a = stage;
  typename TileT::acc_t* const b = stage + kDepth * TileT::kPitch;
  OCNET_UNROLL
  for (int i = 0; i < kMicro; ++i) {
    OCNET_UNROLL
    for (int j = 0; j < kMicro; ++j) sums[i][j] = 0;
  }
  for (int channel = 0; channel < rows.channels; channel += kDepth) {
    device::barrier();
    load_tokens<TileT, kDepth, false>(a, rows, first_row, channel);
    load_tokens<TileT, kDepth, false>(b, cols, first_col, channel);
    device::barrier();
    multiply_tiles<TileT, kDepth>(sums, a, b);
  }
}

// The accumulators of one thread in one chunk: pack i is row i, kThreads packs after pack i - 1, so
// that a warp reads and writes neighbours. No other thread touches them: they need no barrier.
template <typename TileT>
struct ThreadAccumulators {
  using PackT = Pack<typename TileT::acc_t>;
  PackT* packs;

  OCNET_DEVICE ThreadAccumulators(typename TileT::acc_t* accumulators, int chunk)
      : packs(reinterpret_cast<PackT*>(accumulators + chunk * TileT::kChunkElements) +
              device::thread_index()) {}
  OCNET_DEVICE PackT& row(int i) const { return packs[i * TileT::kThreads]; }
};

template <typename TileT>
OCNET_DEVICE void clear_accumulators(typename TileT::acc_t* accumulators, int chunks) {
  for (int chunk = 0; chunk < chunks; ++chunk) {
    const ThreadAccumulators<TileT> own(accumulators, chunk);
    OCNET_UNROLL
    for (int i = 0; i < TileT::kMicro; ++i) own.row(i) = {};
  }
}

// For each of `chunks` chunks of output channels, from first_chunk of `source` on:
//   accumulators[row][channel] = rescale[row] * accumulators[row][channel]
//                                + sum over k of weights[k][row] * source[first_token +
//                                k][channel].
// Weights of tokens past the end must be 0. Uses the staging tile.
template <typename TileT, typename Matrix>
OCNET_DEVICE void accumulate_products(typename TileT::acc_t* accumulators,
                                      const typename TileT::acc_t* weights,
                                      typename TileT::acc_t* stage, const Matrix& source,
                                      int first_token, int first_chunk, int chunks,
                                      const typename TileT::acc_t (&rescale)[TileT::kMicro]) {
  constexpr int kMicro = TileT::kMicro;
  constexpr int kSide = TileT::kSide;
  for (int chunk = 0; chunk < chunks; ++chunk) {
    const int channel = (first_chunk + chunk) * kSide;
    device::barrier();
    load_tokens<TileT, kSide, true>(stage, source, first_token, channel);
    device::barrier();
    const ThreadAccumulators<TileT> own(accumulators, chunk);
    typename TileT::acc_t sums[kMicro][kMicro];
    OCNET_UNROLL
    for (int i = 0; i < kMicro; ++i) {
      const auto before = own.row(i);
      OCNET_UNROLL
      for (int j = 0; j < kMicro; ++j) sums[i][j] = rescale[i] * before.at[j];
    }
    multiply_tiles<TileT, kSide>(sums, weights, stage);
    OCNET_UNROLL
    for (int i = 0; i < kMicro; ++i) {
      Pack<typename TileT::acc_t> after;
      OCNET_UNROLL
      for (int j = 0; j < kMicro; ++j) after.at[j] = sums[i][j];
      own.row(i) = after;
    }
  }
}

// weights[thread column + j][thread row + i] = values[i][j], as accumulate_products reads them.
template <typename TileT>
OCNET_DEVICE void store_weights(
    typename TileT::acc_t* weights,
    const typename TileT::acc_t (&values)[TileT::kMicro][TileT::kMicro]) {
  weights += TileT::thread_col() * TileT::kPitch + TileT::thread_row();
  OCNET_UNROLL
  for (int j = 0; j < TileT::kMicro; ++j) {
    Pack<typename TileT::acc_t> column;
    OCNET_UNROLL
    for (int i = 0; i < TileT::kMicro; ++i) column.at[i] = values[i][j];
    store_pack(weights + j * TileT::kPitch, column);
  }
}

// Writes factor[row] * accumulators to `target`, through the staging tile to coalesce the stores.
template <typename TileT, typename scalar_t>
OCNET_DEVICE void store_accumulators(typename TileT::acc_t* accumulators,
                                     typename TileT::acc_t* stage,
                                     const GroupMatrix<scalar_t>& target, int first_row,
                                     int first_chunk, int chunks,
                                     const typename TileT::acc_t (&factor)[TileT::kMicro]) {
  constexpr int kMicro = TileT::kMicro;
  for (int chunk = 0; chunk < chunks; ++chunk) {
    const int channel = (first_chunk + chunk) * TileT::kSide;
    const ThreadAccumulators<TileT> own(accumulators, chunk);
    const int row = TileT::thread_row();
    const int col = TileT::thread_col();
    device::barrier();
    OCNET_UNROLL
    for (int i = 0; i < kMicro; ++i) {
      auto pack = own.row(i);
      OCNET_UNROLL
      for (int j = 0; j < kMicro; ++j) pack.at[j] *= factor[i];
      store_pack(stage + (row + i) * TileT::kPitch + col, pack);
    }
    device::barrier();
    store_tokens<TileT>(target, first_row, channel, stage);
  }
}

// Combine over the 16 threads that share rows: half a warp. Every one of them gets the same bits.
template <typename TileT>
OCNET_DEVICE typename TileT::acc_t row_maximum(typename TileT::acc_t value) {
  OCNET_UNROLL
  for (int mask = TileT::kGrid / 2; mask > 0; mask /= 2) {
    value = maximum(value, device::shuffle_xor(value, mask));
  }
  return value;
}
template <typename TileT>
OCNET_DEVICE typename TileT::acc_t row_total(typename TileT::acc_t value) {
  OCNET_UNROLL
  for (int mask = TileT::kGrid / 2; mask > 0; mask /= 2) value += device::shuffle_xor(value, mask);
  return value;
}

}  // namespace ocnet
