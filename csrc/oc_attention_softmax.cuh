// SPDX-License-Identifier: MIT
// The streamed softmax of the 16 rows of a warp, whose scores lie as mma.sync and wgmma leave them
// (common/mma_tile.cuh).
#pragma once

#include "common/mma_tile.cuh"

namespace ocnet {

constexpr double kLog2E = 1.44269504088896340736;
constexpr float kLn2 = 0.693147180559945309417f;

// A row's reference is raised only when its maximum has grown by more than this power of two (lazy
// rescaling, FlashAttention-4). Weights reach at most 2^8, far from the end of any dtype.
constexpr int kLazyGrowth = 8;

// Rows g and g + 8, of which the four lanes of a quad have every fourth pair of columns. Powers are
// of two: weights are 2^(scale_log2 * score - reference).
struct SoftmaxRows {
  float maximum[2] = {negative_infinity<float>(), negative_infinity<float>()};
  // Of this lane's weights: exact, for lse.
  float total[2] = {0, 0};
  // Of all weights as the product with the values saw them: what its sums are divided by. With a
  // peaked softmax the rounding of the largest weight cancels so, and would not otherwise; the
  // gradient of the queries is a small difference in which it would be most of the result.
  float rounded[4] = {0, 0, 0, 0};

  // Factors of what was summed up before, where a reference is raised.
  struct Growth {
    bool any;  // in the warp
    float factor[2];
  };

  // Scores become weights, of which those from `keys` on are 0; the sums of earlier tiles are
  // rescaled where a reference is raised. A NaN reaches its row through its weight.
  template <int kCols, int kColumns>
  OCNET_DEVICE void weigh(float (&scores)[kCols / 8][4], float scale_log2, int keys,
                          float (&sums)[kColumns][4]) {
    rescale(raise<kCols>(scores, scale_log2, keys), sums);
    exponentiate<kCols>(scores, scale_log2, keys);
  }

  // The steps of `weigh`, for kernels whose sums are still being added to: references are raised by
  // the scores of a tile,
  template <int kCols, int kGrowth = kLazyGrowth>
  OCNET_DEVICE Growth raise(const float (&scores)[kCols / 8][4], float scale_log2, int keys) {
    float top[2];
    if (keys < kCols || scale_log2 < 0) {
      scaled_maxima<kCols>(top, scores, scale_log2, keys);
    } else {
      // Scaling keeps their order, so the largest alone is scaled.
      OCNET_UNROLL
      for (int r = 0; r < 2; ++r) top[r] = row_maximum<kCols>(scores, r) * scale_log2;
    }
    OCNET_UNROLL
    for (int r = 0; r < 2; ++r) {
      top[r] = ocnet::maximum(top[r], device::shuffle_xor(top[r], 1));
      top[r] = ocnet::maximum(top[r], device::shuffle_xor(top[r], 2));
    }
    return raise<kGrowth>(top);
  }
  // scores become weights,
  template <int kCols>
  OCNET_DEVICE void exponentiate(float (&scores)[kCols / 8][4], float scale_log2, int keys) {
    const float reference[2] = {softmax_reference(maximum[0]), softmax_reference(maximum[1])};
    OCNET_UNROLL
    for (int n = 0; n < kCols / 8; ++n) {
      OCNET_UNROLL
      for (int i = 0; i < 4; ++i) {
        scores[n][i] = ptx::exp2_approx(std::fma(scores[n][i], scale_log2, -reference[i / 2]));
      }
    }
    if (keys < kCols) clear_padding<kCols>(scores, keys);
    OCNET_UNROLL
    for (int n = 0; n < kCols / 8; ++n) {
      OCNET_UNROLL
      for (int i = 0; i < 4; ++i) total[i / 2] += scores[n][i];
    }
  }
  // and earlier sums are rescaled.
  template <int kColumns>
  OCNET_DEVICE static void rescale(const Growth& growth, float (&sums)[kColumns][4]) {
    if (!growth.any) return;
    OCNET_UNROLL
    for (int n = 0; n < kColumns; ++n) {
      OCNET_UNROLL
      for (int i = 0; i < 4; ++i) sums[n][i] *= growth.factor[i / 2];
    }
  }

  // Counts the weights of a tile as a product with them rounds them.
  template <typename Math, int kCols>
  OCNET_DEVICE void count_rounded(const float (&weights)[kCols / 8][4]) {
    if constexpr (Math::kRoundsWeights) sum_weights<Math, kCols>(rounded, weights);
  }

  // The same for weights that this lane has packed in pairs: word i is of row g + 8 (i % 2).
  template <typename scalar_t, int kSteps>
  OCNET_DEVICE void count_packed(const uint32_t (&weights)[kSteps][4]) {
    OCNET_UNROLL
    for (int step = 0; step < kSteps; ++step) {
      OCNET_UNROLL
      for (int i = 0; i < 4; ++i) {
        rounded[i % 2 * 2] += low_half(weights[step][i], scalar_t{});
        rounded[i % 2 * 2 + 1] += high_half(weights[step][i], scalar_t{});
      }
    }
  }
  // After the last tile, where weights were counted so.
  OCNET_DEVICE void finish_packed() {
    OCNET_UNROLL
    for (int r = 0; r < 2; ++r) {
      total[r] = sum_of_quad(total[r]);
      rounded[2 * r] = sum_of_quad(rounded[2 * r] + rounded[2 * r + 1]);
    }
  }

  // After the last tile: totals of whole rows, in every lane of a quad.
  template <typename Math>
  OCNET_DEVICE void finish() {
    OCNET_UNROLL
    for (int r = 0; r < 2; ++r) {
      total[r] = sum_of_quad(total[r]);
      if constexpr (!Math::kRoundsWeights) rounded[2 * r] = total[r];
    }
  }
  // What sums over values are divided by.
  OCNET_DEVICE float divisor(int r) const { return rounded[2 * r]; }

 private:
  OCNET_DEVICE static float sum_of_quad(float part) {
    part += device::shuffle_xor(part, 1);
    return part + device::shuffle_xor(part, 2);
  }
  OCNET_DEVICE static float low_half(uint32_t pair, BFloat16) {
    return detail::bit_cast<float>(pair << 16);
  }
  OCNET_DEVICE static float high_half(uint32_t pair, BFloat16) {
    return detail::bit_cast<float>(pair & 0xffff0000u);
  }
  OCNET_DEVICE static float low_half(uint32_t pair, Float16) {
    return to_accumulator(Float16{static_cast<uint16_t>(pair)});
  }
  OCNET_DEVICE static float high_half(uint32_t pair, Float16) {
    return to_accumulator(Float16{static_cast<uint16_t>(pair >> 16)});
  }

  // The first of this lane's columns in a tile; pair n is 8 n further on.
  OCNET_DEVICE static int first_column() { return device::lane_index() % 4 * 2; }

  template <int kCols>
  OCNET_DEVICE static float row_maximum(const float (&scores)[kCols / 8][4], int r) {
    float top = negative_infinity<float>();
    OCNET_UNROLL
    for (int n = 0; n < kCols / 8; ++n) {
      top = ocnet::maximum(ocnet::maximum(top, scores[n][2 * r]), scores[n][2 * r + 1]);
    }
    return top;
  }
  // Of scaled scores, of which those from `keys` on do not count.
  template <int kCols>
  OCNET_DEVICE static void scaled_maxima(float (&top)[2], const float (&scores)[kCols / 8][4],
                                         float scale_log2, int keys) {
    const int left = keys - first_column();
    top[0] = top[1] = negative_infinity<float>();
    OCNET_UNROLL
    for (int n = 0; n < kCols / 8; ++n) {
      OCNET_UNROLL
      for (int i = 0; i < 4; ++i) {
        top[i / 2] = masked_maximum(top[i / 2], scores[n][i] * scale_log2, n * 8 + i % 2 < left);
      }
    }
  }

  template <int kCols>
  OCNET_DEVICE static void clear_padding(float (&weights)[kCols / 8][4], int keys) {
    const int left = keys - first_column();
    OCNET_UNROLL
    for (int n = 0; n < kCols / 8; ++n) {
      OCNET_UNROLL
      for (int i = 0; i < 4; ++i) {
        if (n * 8 + i % 2 >= left) weights[n][i] = 0;
      }
    }
  }

  // A row's results depend on its own scores only, whatever other rows of the warp need.
  template <int kGrowth>
  OCNET_DEVICE Growth raise(const float (&top)[2]) {
    const bool grows[2] = {top[0] > maximum[0] + kGrowth, top[1] > maximum[1] + kGrowth};
    Growth growth = {device::any(grows[0] || grows[1]), {1.0f, 1.0f}};
    if (!growth.any) return growth;
    OCNET_UNROLL
    for (int r = 0; r < 2; ++r) {
      growth.factor[r] = grows[r] ? ptx::exp2_approx(maximum[r] - top[r]) : 1.0f;
      maximum[r] = grows[r] ? top[r] : maximum[r];
      total[r] *= growth.factor[r];
    }
    OCNET_UNROLL
    for (int i = 0; i < 4; ++i) rounded[i] *= growth.factor[i / 2];
    return growth;
  }
};

}  // namespace ocnet
