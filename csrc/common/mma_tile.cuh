// SPDX-License-Identifier: MIT
// Tiles of tokens in shared memory, and the two products of a warp with them by mma.sync:
//   multiply_rows      sums (16 x kCols) += rows (16 x channels) cols^T (channels x kCols)
//   accumulate_tokens  sums (16 x kWidth) += weights (16 x kTokens) tokens (kTokens x kWidth)
// The first makes scores, the second sums of values weighted by them, straight from the registers
// that the first left them in.
//
// Sums and weights of a warp lie as mma.sync leaves them: with g = lane / 4 and t = lane % 4,
// sums[n][0], sums[n][1] are columns 8n + 2t and 8n + 2t + 1 of row g, sums[n][2], sums[n][3] those
// of row g + 8.
//
// A Math says how numbers are stored and multiplied; sums are always fp32:
//   NarrowMath<BFloat16>, NarrowMath<Float16>  16-bit storage; weights are rounded to it
//   TF32Math   fp32 storage, operands rounded to the nearest TF32 (the hardware would truncate)
//   SplitMath  fp32 storage, operands cut exactly into three BFloat16; six products are as exact
//              as fp32's
#pragma once

#include "device.cuh"
#include "math.h"
#include "ptx/arithmetic.cuh"
#include "ptx/matrix_copy.cuh"
#include "ptx/mma.cuh"
#include "shared_tile.cuh"
#include "tokens.h"

namespace ocnet {

constexpr int kMmaRows = 16;

// Where one lane reads in a tile: a row, and of every group of chunks its own. Found once per
// product; what is left inside of loops is an exclusive or and additions.
struct TilePlace {
  uint32_t start;
  int pitch;

  // `rows` (a multiple of 8) further down, in the group that begins with this chunk.
  OCNET_DEVICE uint32_t at(int rows, int chunk) const {
    return (start ^ static_cast<uint32_t>((chunk & 7) * kChunkBytes)) +
           static_cast<uint32_t>((chunk >> 3) * (8 * kChunkBytes) + rows * pitch);
  }
};

// `own` is the chunk of a lane in its group, whose size is a power of two. Tiles start at multiples
// of 128 bytes, so the exclusive or with the row's place (SharedTile) commutes with what is added.
OCNET_DEVICE TilePlace tile_place(uint32_t base, const SharedTile& tile, int row, int own) {
  return {base + static_cast<uint32_t>(tile.offset(row, own)), tile.pitch};
}
OCNET_DEVICE TilePlace matrix_place(const SharedTile& tile, int row, int own) {
  return tile_place(ptx::shared_address(tile.data), tile, row, own);
}

namespace detail {

OCNET_DEVICE float as_float(uint32_t bits) { return bit_cast<float>(bits); }

// The fp32 numbers of tokens 2t, 2t + 1, with t = lane % 4, and of channel lane / 4: neighbours in
// the accumulators of scores, and in different banks. `low` is of token 2t.
struct NumberPlaces {
  const unsigned char* data;
  TilePlace low, high;

  OCNET_DEVICE explicit NumberPlaces(const SharedTile& tile) : data(tile.data) {
    const int lane = device::lane_index();
    const int chunk = lane / 16;
    const uint32_t word = lane / 4 % 4 * 4;
    low = tile_place(word, tile, lane % 4 * 2, chunk);
    high = tile_place(word, tile, lane % 4 * 2 + 1, chunk);
  }
  OCNET_DEVICE float number(const TilePlace& place, int rows, int channel) const {
    return *reinterpret_cast<const float*>(data + place.at(rows, channel / 4));
  }
  OCNET_DEVICE float first(int rows, int channel) const { return number(low, rows, channel); }
  OCNET_DEVICE float second(int rows, int channel) const { return number(high, rows, channel); }
};

}  // namespace detail

template <typename scalar_t>
struct NarrowMath {
  using storage_t = scalar_t;

  // Channels of one step of multiply_rows, tokens of one step of accumulate_tokens; steps of the
  // first that the compiler may interleave; whether weights lose digits when they are multiplied.
  static constexpr int kDepth = 16;
  static constexpr int kTokenDepth = 16;
  static constexpr int kUnroll = 4;
  static constexpr bool kRoundsWeights = true;

  struct Left {
    uint32_t bits[4];
  };
  struct Right {
    uint32_t bits[2];
  };

  OCNET_DEVICE static void multiply(float (&sums)[4], const Left& left, const Right& right) {
    ptx::mma(sums, left.bits, right.bits, scalar_t{});
  }

  OCNET_DEVICE static TilePlace row_place(const SharedTile& rows, int first_row) {
    const int lane = device::lane_index();
    return matrix_place(rows, first_row + lane % 16, lane / 16);
  }
  OCNET_DEVICE static Left row_operand(const TilePlace& place, int channel) {
    Left left;
    ptx::load_matrices(left.bits, place.at(0, channel / 8));
    return left;
  }

  OCNET_DEVICE static TilePlace column_place(const SharedTile& cols, int first_col) {
    const int lane = device::lane_index();
    return matrix_place(cols, first_col + lane % 8 + lane / 16 * 8, lane / 8 % 2);
  }
  // Two neighbouring groups of 8 columns, `col` (a multiple of 16) further on.
  OCNET_DEVICE static void column_operands(Right (&right)[2], const TilePlace& place, int col,
                                           int channel) {
    uint32_t bits[4];
    ptx::load_matrices(bits, place.at(col, channel / 8));
    right[0] = {{bits[0], bits[1]}};
    right[1] = {{bits[2], bits[3]}};
  }

  template <int kTokens>
  OCNET_DEVICE static Left weight_operand(const float (&weights)[kTokens / 8][4], int step) {
    const float (&low)[4] = weights[2 * step];
    const float (&high)[4] = weights[2 * step + 1];
    return {{ptx::pack_pair(low[0], low[1], scalar_t{}), ptx::pack_pair(low[2], low[3], scalar_t{}),
             ptx::pack_pair(high[0], high[1], scalar_t{}),
             ptx::pack_pair(high[2], high[3], scalar_t{})}};
  }

  OCNET_DEVICE static TilePlace token_place(const SharedTile& tile) {
    const int lane = device::lane_index();
    return matrix_place(tile, lane % 16, lane / 16);
  }
  OCNET_DEVICE static Right ones() {
    const uint32_t pair = ptx::pack_pair(1.0f, 1.0f, scalar_t{});
    return {{pair, pair}};
  }

  // Two neighbouring groups of 8 channels, of the tokens of a step.
  OCNET_DEVICE static void token_operands(Right (&right)[2], const TilePlace& place, int token,
                                          int channel) {
    uint32_t bits[4];
    ptx::load_matrices<true>(bits, place.at(token, channel / 8));
    right[0] = {{bits[0], bits[1]}};
    right[1] = {{bits[2], bits[3]}};
  }
};

// Which channel of a step is which does not matter to a sum over them, so tokens 2t and 2t + 1 take
// places t and t + 4: where the accumulators of the scores have them.
struct TF32Math {
  using storage_t = float;
  static constexpr int kDepth = 8;
  static constexpr int kTokenDepth = 8;
  static constexpr int kUnroll = 4;
  static constexpr bool kRoundsWeights = true;

  struct Left {
    uint32_t bits[4];
  };
  struct Right {
    uint32_t bits[2];
  };

  OCNET_DEVICE static void multiply(float (&sums)[4], const Left& left, const Right& right) {
    ptx::mma(sums, left.bits, right.bits, ptx::TFloat32{});
  }

  OCNET_DEVICE static uint32_t rounded(uint32_t bits) {
    return ptx::round_to_tf32(detail::as_float(bits));
  }

  OCNET_DEVICE static TilePlace row_place(const SharedTile& rows, int first_row) {
    const int lane = device::lane_index();
    return matrix_place(rows, first_row + lane % 16, lane / 16);
  }
  OCNET_DEVICE static Left row_operand(const TilePlace& place, int channel) {
    Left left;
    ptx::load_matrices(left.bits, place.at(0, channel / 4));
    OCNET_UNROLL
    for (int i = 0; i < 4; ++i) left.bits[i] = rounded(left.bits[i]);
    return left;
  }

  OCNET_DEVICE static TilePlace column_place(const SharedTile& cols, int first_col) {
    const int lane = device::lane_index();
    return matrix_place(cols, first_col + lane % 8 + lane / 16 * 8, lane / 8 % 2);
  }
  OCNET_DEVICE static void column_operands(Right (&right)[2], const TilePlace& place, int col,
                                           int channel) {
    uint32_t bits[4];
    ptx::load_matrices(bits, place.at(col, channel / 4));
    right[0] = {{rounded(bits[0]), rounded(bits[1])}};
    right[1] = {{rounded(bits[2]), rounded(bits[3])}};
  }

  template <int kTokens>
  OCNET_DEVICE static Left weight_operand(const float (&weights)[kTokens / 8][4], int step) {
    const float (&here)[4] = weights[step];
    return {{ptx::round_to_tf32(here[0]), ptx::round_to_tf32(here[2]), ptx::round_to_tf32(here[1]),
             ptx::round_to_tf32(here[3])}};
  }

  OCNET_DEVICE static Right ones() {
    const uint32_t one = ptx::round_to_tf32(1.0f);
    return {{one, one}};
  }

  OCNET_DEVICE static detail::NumberPlaces token_place(const SharedTile& tile) {
    return detail::NumberPlaces(tile);
  }
  OCNET_DEVICE static void token_operands(Right (&right)[2], const detail::NumberPlaces& place,
                                          int token, int channel) {
    OCNET_UNROLL
    for (int group = 0; group < 2; ++group) {
      const int own = channel + group * 8;
      right[group] = {{ptx::round_to_tf32(place.first(token, own)),
                       ptx::round_to_tf32(place.second(token, own))}};
    }
  }
};

// x = high + middle + low exactly, each a BFloat16: 24 bits, cut 8 at a time. The remainders of an
// infinity or NaN are 0. In the products that only correct, its high part is 0 too: infinity * 0
// would make NaN of what is infinite.
struct SplitMath {
  using storage_t = float;
  static constexpr int kDepth = 16;
  static constexpr int kTokenDepth = 16;
  static constexpr int kUnroll = 1;
  static constexpr bool kRoundsWeights = false;

  // Each part of two neighbouring operands, in the halves of a register.
  struct Pair {
    uint32_t high, finite_high, middle, low;
  };
  struct Left {
    Pair pairs[4];
  };
  struct Right {
    Pair pairs[2];
  };

  struct Parts {
    uint32_t high, finite_high, middle, low;  // in the upper half of a word
  };
  OCNET_DEVICE static Parts split(float x) {
    constexpr uint32_t kUpper = 0xffff0000u;
    const uint32_t bits = ocnet::detail::bit_cast<uint32_t>(x);
    const bool finite = (bits & 0x7f800000u) != 0x7f800000u;
    Parts parts;
    // What tells a NaN from an infinity may lie in the bits that are cut off.
    parts.high = (x != x ? bits | 0x00400000u : bits) & kUpper;
    parts.finite_high = finite ? parts.high : 0u;
    const float rest = finite ? x - detail::as_float(parts.high) : 0.0f;
    parts.middle = ocnet::detail::bit_cast<uint32_t>(rest) & kUpper;
    parts.low = ocnet::detail::bit_cast<uint32_t>(rest - detail::as_float(parts.middle)) & kUpper;
    return parts;
  }
  OCNET_DEVICE static Pair pair(float first, float second) {
    const Parts low = split(first);
    const Parts high = split(second);
    return {low.high >> 16 | high.high, low.finite_high >> 16 | high.finite_high,
            low.middle >> 16 | high.middle, low.low >> 16 | high.low};
  }
  OCNET_DEVICE static Pair pair(uint32_t first, uint32_t second) {
    return pair(detail::as_float(first), detail::as_float(second));
  }

  template <uint32_t Pair::* kLeft, uint32_t Pair::* kRight>
  OCNET_DEVICE static void multiply_parts(float (&sums)[4], const Left& left, const Right& right) {
    const uint32_t a[4] = {left.pairs[0].*kLeft, left.pairs[1].*kLeft, left.pairs[2].*kLeft,
                           left.pairs[3].*kLeft};
    const uint32_t b[2] = {right.pairs[0].*kRight, right.pairs[1].*kRight};
    ptx::mma(sums, a, b, BFloat16{});
  }
  // Tensor cores round their sums towards 0: over thousands of tokens that would add up to far more
  // than fp32 loses. So they sum one step, and what was summed before is added by an fp32 addition.
  OCNET_DEVICE static void multiply(float (&sums)[4], const Left& left, const Right& right) {
    float step[4] = {0, 0, 0, 0};
    multiply_parts<&Pair::middle, &Pair::middle>(step, left, right);
    multiply_parts<&Pair::low, &Pair::finite_high>(step, left, right);
    multiply_parts<&Pair::finite_high, &Pair::low>(step, left, right);
    multiply_parts<&Pair::middle, &Pair::finite_high>(step, left, right);
    multiply_parts<&Pair::finite_high, &Pair::middle>(step, left, right);
    multiply_parts<&Pair::high, &Pair::high>(step, left, right);
    OCNET_UNROLL
    for (int i = 0; i < 4; ++i) sums[i] += step[i];
  }

  // Channels t, t + 4 are the first pair of a step and t + 8, t + 12 the second, on both sides.
  OCNET_DEVICE static TilePlace row_place(const SharedTile& rows, int first_row) {
    const int lane = device::lane_index();
    return matrix_place(rows, first_row + lane % 8, lane / 8);
  }
  OCNET_DEVICE static Left row_operand(const TilePlace& place, int channel) {
    uint32_t low[4];
    uint32_t high[4];
    ptx::load_matrices(low, place.at(0, channel / 4));
    ptx::load_matrices(high, place.at(8, channel / 4));
    return {{pair(low[0], low[1]), pair(high[0], high[1]), pair(low[2], low[3]),
             pair(high[2], high[3])}};
  }

  OCNET_DEVICE static TilePlace column_place(const SharedTile& cols, int first_col) {
    return row_place(cols, first_col);
  }
  OCNET_DEVICE static void column_operands(Right (&right)[2], const TilePlace& place, int col,
                                           int channel) {
    OCNET_UNROLL
    for (int group = 0; group < 2; ++group) {
      uint32_t bits[4];
      ptx::load_matrices(bits, place.at(col + group * 8, channel / 4));
      right[group] = {{pair(bits[0], bits[1]), pair(bits[2], bits[3])}};
    }
  }

  template <int kTokens>
  OCNET_DEVICE static Left weight_operand(const float (&weights)[kTokens / 8][4], int step) {
    const float (&low)[4] = weights[2 * step];
    const float (&high)[4] = weights[2 * step + 1];
    return {{pair(low[0], low[1]), pair(low[2], low[3]), pair(high[0], high[1]),
             pair(high[2], high[3])}};
  }

  OCNET_DEVICE static detail::NumberPlaces token_place(const SharedTile& tile) {
    return detail::NumberPlaces(tile);
  }
  OCNET_DEVICE static void token_operands(Right (&right)[2], const detail::NumberPlaces& place,
                                          int token, int channel) {
    OCNET_UNROLL
    for (int group = 0; group < 2; ++group) {
      const int own = channel + group * 8;
      right[group] = {{pair(place.first(token, own), place.second(token, own)),
                       pair(place.first(token + 8, own), place.second(token + 8, own))}};
    }
  }
};

template <int kColumns>
OCNET_DEVICE void clear_sums(float (&sums)[kColumns][4]) {
  OCNET_UNROLL
  for (int n = 0; n < kColumns; ++n) {
    OCNET_UNROLL
    for (int i = 0; i < 4; ++i) sums[n][i] = 0;
  }
}

// Adds the inner products of 16 rows with kCols tokens over `channels` channels (a multiple of 16).
template <typename Math, int kCols>
OCNET_DEVICE void multiply_rows(float (&sums)[kCols / 8][4], const SharedTile& rows, int first_row,
                                const SharedTile& cols, int first_col, int channels) {
  const auto row_place = Math::row_place(rows, first_row);
  const auto column_place = Math::column_place(cols, first_col);
  OCNET_UNROLL_BY(Math::kUnroll)
  for (int channel = 0; channel < channels; channel += Math::kDepth) {
    const typename Math::Left left = Math::row_operand(row_place, channel);
    OCNET_UNROLL
    for (int n = 0; n < kCols / 8; n += 2) {
      typename Math::Right right[2];
      Math::column_operands(right, column_place, n * 8, channel);
      Math::multiply(sums[n], left, right[0]);
      Math::multiply(sums[n + 1], left, right[1]);
    }
  }
}

// Adds kTokens tokens of a tile, weighted; of their channels those from 0 to kWidth, or to
// `channels` rounded up to kGroup if that is less. Of the tile, whole groups are read: larger ones
// leave the compiler longer runs without a branch, in which loads go ahead of products.
template <typename Math, int kTokens, int kWidth, int kGroup = 16>
OCNET_DEVICE void accumulate_tokens(float (&sums)[kWidth / 8][4],
                                    const float (&weights)[kTokens / 8][4], const SharedTile& tile,
                                    int channels) {
  static_assert(kGroup % 16 == 0, "two groups of 8 channels are read at a time");
  const auto place = Math::token_place(tile);
  OCNET_UNROLL
  for (int step = 0; step < kTokens / Math::kTokenDepth; ++step) {
    const typename Math::Left left = Math::template weight_operand<kTokens>(weights, step);
    OCNET_UNROLL
    for (int n = 0; n < kWidth / 8; n += 2) {
      if (n * 8 % kGroup == 0 && n * 8 >= channels) break;
      typename Math::Right right[2];
      Math::token_operands(right, place, step * Math::kTokenDepth, n * 8);
      Math::multiply(sums[n], left, right[0]);
      Math::multiply(sums[n + 1], left, right[1]);
    }
  }
}

// Adds the weights of each row, rounded as accumulate_tokens rounds them: a column of ones. All
// columns of `sums` come out equal.
template <typename Math, int kTokens>
OCNET_DEVICE void sum_weights(float (&sums)[4], const float (&weights)[kTokens / 8][4]) {
  OCNET_UNROLL
  for (int step = 0; step < kTokens / Math::kTokenDepth; ++step) {
    Math::multiply(sums, Math::template weight_operand<kTokens>(weights, step), Math::ones());
  }
}

// Writes 16 rows of sums from `first_token` and `first_channel` on, as far as the matrix goes, each
// row multiplied by its factor: that of row g and that of row g + 8. Matrix: TokenMatrix or
// GroupMatrix.
template <typename T, template <typename> class Matrix, int kColumns>
OCNET_DEVICE void store_sums(const float (&sums)[kColumns][4], const Matrix<T>& to, int first_token,
                             int first_channel, const float (&factors)[2]) {
  const int lane = device::lane_index();
  const int own_channel = first_channel + lane % 4 * 2;
  OCNET_UNROLL
  for (int half = 0; half < 2; ++half) {
    const int token = first_token + lane / 4 + half * 8;
    if (token >= to.tokens) continue;
    T* element = to.at(token, own_channel);
    OCNET_UNROLL
    for (int n = 0; n < kColumns; ++n) {
      OCNET_UNROLL
      for (int i = 0; i < 2; ++i) {
        if (own_channel + n * 8 + i < to.channels) {
          element[i * to.channel_stride] =
              from_accumulator<T>(sums[n][2 * half + i] * factors[half]);
        }
      }
      element += 8 * to.channel_stride;
    }
  }
}

}  // namespace ocnet
