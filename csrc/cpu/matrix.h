// SPDX-License-Identifier: MIT
// Token matrices as the caller has them, and their packed, widened copies.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

namespace ocnet::cpu {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

inline double widen(double value) { return value; }

inline float widen(float value) { return value; }

inline float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

inline float widen(c10::BFloat16 value) { return from_bits(uint32_t{value.x} << 16); }

inline float widen(c10::Half value) {
  // Shifted into place, the exponent is 112 too small; one exact product repairs it, for subnormals
  // too. No branch, so that loops over this become vector code.
  const uint32_t magnitude = uint32_t{value.x} & 0x7fffu;
  const float scaled = from_bits(magnitude << 13) * from_bits((127u + 112u) << 23);
  uint32_t bits;
  std::memcpy(&bits, &scaled, sizeof(bits));
  bits |= magnitude >= 0x7c00u ? 0x7f800000u : 0u;
  return from_bits(bits | (uint32_t{value.x} & 0x8000u) << 16);
}

// A batch of token matrices with the strides of the tensor, in elements.
template <typename Element>
struct Matrices {
  Element* data;
  int64_t tokens, channels;
  int64_t batch_stride, token_stride, channel_stride;

  Element* at(int64_t batch, int64_t token) const {
    return data + batch * batch_stride + token * token_stride;
  }
};

// panels[p][d][w] = source[(p * width + w) * across + d * along]: the layout that a register block
// reads in order. The last panel is filled up with zeros.
template <typename T, typename Element>
void pack(const Element* source, int64_t count, int64_t depth, int64_t across, int64_t along,
          int64_t width, T* panels) {
  for (int64_t start = 0; start < count; start += width) {
    const int64_t used = std::min(width, count - start);
    const Element* from = source + start * across;
    if (used < width) {
      std::fill(panels, panels + width * depth, T(0));
    }
    if (across == 1) {
      for (int64_t d = 0; d < depth; ++d) {
        for (int64_t w = 0; w < used; ++w) {
          panels[d * width + w] = widen(from[d * along + w]);
        }
      }
    } else {
      for (int64_t w = 0; w < used; ++w) {
        for (int64_t d = 0; d < depth; ++d) {
          panels[d * width + w] = widen(from[w * across + d * along]);
        }
      }
    }
    panels += width * depth;
  }
}

// `count` tokens from `token` on as panels of tokens (depth: channels), the operands of a product
// over channels.
template <typename T, typename Element>
void pack_by_token(const Matrices<Element>& from, int64_t batch, int64_t token, int64_t count,
                   int64_t width, T* panels) {
  pack(from.at(batch, token), count, from.channels, from.token_stride, from.channel_stride, width,
       panels);
}

// The same tokens as panels of channels (depth: tokens), the right operand of a sum over tokens.
template <typename T, typename Element>
void pack_by_channel(const Matrices<Element>& from, int64_t batch, int64_t token, int64_t count,
                     int64_t width, T* panels) {
  pack(from.at(batch, token), from.channels, count, from.channel_stride, from.token_stride, width,
       panels);
}

// to[token][channel] = narrow(convert(token, value)) for `count` rows of an accumulator.
template <typename T, typename Element, typename Convert>
void unpack(const T* rows, int64_t row_stride, const Matrices<Element>& to, int64_t batch,
            int64_t token, int64_t count, const Convert& convert) {
  Element* target = to.at(batch, token);
  if (to.channel_stride <= to.token_stride) {
    for (int64_t r = 0; r < count; ++r) {
      for (int64_t c = 0; c < to.channels; ++c) {
        target[r * to.token_stride + c * to.channel_stride] =
            static_cast<Element>(convert(r, rows[r * row_stride + c]));
      }
    }
  } else {
    for (int64_t c = 0; c < to.channels; ++c) {
      for (int64_t r = 0; r < count; ++r) {
        target[r * to.token_stride + c * to.channel_stride] =
            static_cast<Element>(convert(r, rows[r * row_stride + c]));
      }
    }
  }
}

}  // namespace ocnet::cpu
