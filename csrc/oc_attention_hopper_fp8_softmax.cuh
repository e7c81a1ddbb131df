// SPDX-License-Identifier: MIT
// The streamed softmax of the 16 rows of a warp whose weights are rounded to e4m3.
#pragma once

#include "common/mma_store.cuh"
#include "oc_attention_softmax.cuh"

namespace ocnet {

// Weights are 2^kFloat8Power times those of the softmax of a row's own maximum: the smallest number
// of e4m3 is then 2^-17 of the largest weight.
constexpr float kFloat8Power = 8;

// Rows g and g + 8, as SoftmaxRows has them. The reference of a row is its running maximum in
// powers of two, rounded up. Earlier sums are then rescaled by powers of two, and a weight is
// rounded as it would be relative to the maximum of all keys, whatever the order of the tiles; but
// for those below 2^-6, whose rounding is finer the earlier they come.
struct Float8Softmax {
  float reference[2] = {negative_infinity<float>(), negative_infinity<float>()};
  // Of this lane's weights as they were rounded, times 2^-120: two sums for each row.
  float counted[4] = {0, 0, 0, 0};

  // Scores, products of 8-bit numbers yet, become weights, of which those from `keys` on are 0.
  // `factor` is that of what was summed up before.
  template <int kCols>
  OCNET_DEVICE void weigh(float (&factor)[2], float (&scores)[kCols / 8][4],
                          const float (&row_scales)[2], const float* key_scales, int keys) {
    scale_columns<kCols>(scores, key_scales);
    if (keys < kCols) hide_padding<kCols>(scores, keys);
    raise(factor, largest<kCols>(scores, 0) * row_scales[0],
          largest<kCols>(scores, 1) * row_scales[1]);
    OCNET_UNROLL
    for (int n = 0; n < kCols / 8; ++n) {
      OCNET_UNROLL
      for (int i = 0; i < 4; ++i) {
        scores[n][i] = ptx::exp2_approx(std::fma(scores[n][i], row_scales[i / 2], shift(i / 2)));
      }
    }
  }

  // Counts weights that this lane has packed in fours: word i is of row g + 8 (i % 2).
  template <int kSteps>
  OCNET_DEVICE void count(const uint32_t (&weights)[kSteps][4]) {
    OCNET_UNROLL
    for (int step = 0; step < kSteps; ++step) {
      OCNET_UNROLL
      for (int i = 0; i < 4; ++i) {
        OCNET_UNROLL
        for (int byte = 0; byte < 4; ++byte) {
          counted[i % 2 * 2 + byte % 2] += shrunk(weights[step][i], byte);
        }
      }
    }
  }

  // After the last tile: what is stored of a row.
  OCNET_DEVICE SoftmaxRows finish() const {
    SoftmaxRows rows;
    OCNET_UNROLL
    for (int r = 0; r < 2; ++r) {
      rows.maximum[r] = reference[r];
      rows.rounded[2 * r] = (counted[2 * r] + counted[2 * r + 1]) * 0x1p120f;
    }
    rows.finish_packed();
    return rows;
  }

 private:
  template <int kCols>
  OCNET_DEVICE static void scale_columns(float (&scores)[kCols / 8][4], const float* key_scales) {
    const auto* const pairs =
        reinterpret_cast<const detail::TwoFloats*>(key_scales) + device::lane_index() % 4;
    OCNET_UNROLL
    for (int n = 0; n < kCols / 8; ++n) {
      const detail::TwoFloats pair = pairs[4 * n];
      OCNET_UNROLL
      for (int i = 0; i < 4; ++i) scores[n][i] *= pair.at[i % 2];
    }
  }
  template <int kCols>
  OCNET_DEVICE static void hide_padding(float (&scores)[kCols / 8][4], int keys) {
    const int left = keys - device::lane_index() % 4 * 2;
    OCNET_UNROLL
    for (int n = 0; n < kCols / 8; ++n) {
      OCNET_UNROLL
      for (int i = 0; i < 4; ++i) {
        if (n * 8 + i % 2 >= left) scores[n][i] = negative_infinity<float>();
      }
    }
  }
  // Of all four lanes. NaN does not count; it reaches its row through its weight.
  template <int kCols>
  OCNET_DEVICE static float largest(const float (&scores)[kCols / 8][4], int r) {
    float top = negative_infinity<float>();
    OCNET_UNROLL
    for (int n = 0; n < kCols / 8; ++n) {
      top = ocnet::maximum(ocnet::maximum(top, scores[n][2 * r]), scores[n][2 * r + 1]);
    }
    top = ocnet::maximum(top, device::shuffle_xor(top, 1));
    return ocnet::maximum(top, device::shuffle_xor(top, 2));
  }
  OCNET_DEVICE void raise(float (&factor)[2], float top, float top_below) {
    const float tops[2] = {top, top_below};
    OCNET_UNROLL
    for (int r = 0; r < 2; ++r) {
      const float raised = ocnet::maximum(reference[r], std::ceil(tops[r]));
      factor[r] = ptx::exp2_approx(reference[r] - softmax_reference(raised));
      reference[r] = raised;
      counted[2 * r] *= factor[r];
      counted[2 * r + 1] *= factor[r];
    }
  }
  OCNET_DEVICE float shift(int r) const { return kFloat8Power - softmax_reference(reference[r]); }

  // 2^-120 times a weight: fp32 has the bits of e4m3 in its own, and subnormals where that has
  // them. NaN is lost, but not to the sums over values.
  OCNET_DEVICE static float shrunk(uint32_t word, int byte) {
    const uint32_t bits = byte < 3 ? word << (20 - 8 * byte) : word >> 4;
    return detail::bit_cast<float>(bits & 0x07f00000u);
  }
};

}  // namespace ocnet
