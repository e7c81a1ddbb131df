// SPDX-License-Identifier: MIT
// Stores of the sums of a warp (common/mma_tile.cuh) to global memory, 16 bytes at a time where
// rows allow it.
#pragma once

#include "mma_tile.cuh"

namespace ocnet {

namespace detail {

struct alignas(16) FourWords {
  uint32_t at[4];
};
struct alignas(8) TwoFloats {
  float at[2];
};

// Transposes the 4 x 4 words of a quad: lane t gets word t of lanes 0 to 3.
OCNET_DEVICE FourWords transpose_quad(const uint32_t (&words)[4]) {
  const int lane = device::lane_index();
  const bool odd = (lane & 1) != 0;
  const bool upper = (lane & 2) != 0;
  const uint32_t low = device::shuffle_xor(odd ? words[0] : words[1], 1);
  const uint32_t high = device::shuffle_xor(odd ? words[2] : words[3], 1);
  // Words 0 and 1 of a pair of lanes, for its even lane and for its odd one; then words 2 and 3.
  const uint32_t a[2] = {odd ? low : words[0], odd ? words[1] : low};
  const uint32_t b[2] = {odd ? high : words[2], odd ? words[3] : high};
  const uint32_t c[2] = {device::shuffle_xor(upper ? a[0] : b[0], 2),
                         device::shuffle_xor(upper ? a[1] : b[1], 2)};
  return {{upper ? c[0] : a[0], upper ? c[1] : a[1], upper ? b[0] : c[0], upper ? b[1] : c[1]}};
}

// 8 neighbouring channels of a row.
template <typename T>
OCNET_DEVICE void store_eight(T* to, const FourWords& words, int channels) {
  if (channels >= 8) {
    *reinterpret_cast<FourWords*>(to) = words;
    return;
  }
  OCNET_UNROLL
  for (int i = 0; i < 8; ++i) {
    if (i < channels) to[i] = {static_cast<uint16_t>(words.at[i / 2] >> (i % 2 * 16))};
  }
}

template <typename T, template <typename> class Matrix, int kColumns>
OCNET_DEVICE void store_wide(const float (&sums)[kColumns][4], const Matrix<T>& to, int first_token,
                             int first_channel) {
  static_assert(kColumns % 4 == 0, "the lanes of a quad take a group of 8 channels each");
  const int lane = device::lane_index();
  OCNET_UNROLL
  for (int half = 0; half < 2; ++half) {
    const int token = first_token + lane / 4 + half * 8;
    const bool valid = token < to.tokens;
    T* const row = to.at(valid ? token : 0, 0);
    OCNET_UNROLL
    for (int n = 0; n < kColumns; n += 4) {
      if (first_channel + n * 8 >= to.channels) break;
      const int channel = first_channel + (n + lane % 4) * 8;
      uint32_t words[4];
      OCNET_UNROLL
      for (int k = 0; k < 4; ++k) {
        words[k] = ptx::pack_pair(sums[n + k][2 * half], sums[n + k][2 * half + 1], T{});
      }
      const FourWords eight = transpose_quad(words);
      if (valid) store_eight(row + channel, eight, to.channels - channel);
    }
  }
}

// The quad of a row has 32 bytes side by side already.
template <template <typename> class Matrix, int kColumns>
OCNET_DEVICE void store_wide(const float (&sums)[kColumns][4], const Matrix<float>& to,
                             int first_token, int first_channel) {
  const int token = first_token + device::lane_index() / 4;
  const int own_channel = first_channel + device::lane_index() % 4 * 2;
  const bool valid[2] = {token < to.tokens, token + 8 < to.tokens};
  float* const rows[2] = {to.at(valid[0] ? token : 0, own_channel),
                          to.at(valid[1] ? token + 8 : 0, own_channel)};
  OCNET_UNROLL
  for (int n = 0; n < kColumns; ++n) {
    const int left = to.channels - own_channel - n * 8;
    if (first_channel + n * 8 >= to.channels) break;
    OCNET_UNROLL
    for (int half = 0; half < 2; ++half) {
      float* const pair = rows[half] + n * 8;
      if (valid[half] && left > 1) {
        *reinterpret_cast<TwoFloats*>(pair) = {{sums[n][2 * half], sums[n][2 * half + 1]}};
      } else if (valid[half] && left == 1) {
        *pair = sums[n][2 * half];
      }
    }
  }
}

}  // namespace detail

// Writes 16 rows of sums from `first_token` and `first_channel` (a multiple of 8) on, as far as the
// matrix goes. Any strides. Matrix: TokenMatrix or GroupMatrix.
template <typename T, template <typename> class Matrix, int kColumns>
OCNET_DEVICE void store_rows(const float (&sums)[kColumns][4], const Matrix<T>& to, int first_token,
                             int first_channel) {
  constexpr int kAlignment = sizeof(T) == 2 ? 16 : 8;
  const bool wide = to.channel_stride == 1 && to.token_stride * sizeof(T) % kAlignment == 0 &&
                    reinterpret_cast<uintptr_t>(to.data) % kAlignment == 0;
  if (wide) {
    detail::store_wide(sums, to, first_token, first_channel);
  } else {
    store_sums(sums, to, first_token, first_channel, {1.0f, 1.0f});
  }
}

}  // namespace ocnet
