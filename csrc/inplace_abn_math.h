// SPDX-License-Identifier: MIT
// The arithmetic of activated batch norm: of a channel, and of a number. The formulas are in
// inplace_abn.h. Host and device.
//
// Clamps and branches are written so that NaN passes them.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "common/math.h"

namespace ocnet::abn {

// Codes of the schema.
constexpr int kIdentity = 0, kLeakyRelu = 1, kElu = 2, kRelu = 3;

OCNET_HOST_DEVICE bool sign_bit(float value) { return detail::bit_cast<int32_t>(value) < 0; }
OCNET_HOST_DEVICE bool sign_bit(double value) { return detail::bit_cast<int64_t>(value) < 0; }

template <typename acc_t>
OCNET_HOST_DEVICE acc_t at_most(acc_t value, acc_t limit) {
  return value > limit ? limit : value;
}
template <typename acc_t>
OCNET_HOST_DEVICE acc_t at_least(acc_t value, acc_t limit) {
  return value < limit ? limit : value;
}

// --- statistics ---

// Of some numbers: how many, their mean, and the sum of their squared deviations from it.
template <typename acc_t>
struct Moments {
  acc_t count = 0;
  acc_t mean = 0;
  acc_t squares = 0;
};

// The share of `added` numbers in all, if they join `count` others.
template <typename acc_t>
OCNET_HOST_DEVICE acc_t joining_share(acc_t count, acc_t added) {
  return added / at_least(count + added, acc_t(1));
}

// Squares are those about the common mean; `weight` is count * share.
template <typename acc_t>
OCNET_HOST_DEVICE void join(acc_t& mean, acc_t& squares, acc_t weight, acc_t share,
                            acc_t added_mean, acc_t added_squares) {
  const acc_t delta = added_mean - mean;
  mean += delta * share;
  squares += added_squares + delta * delta * weight;
}

template <typename acc_t>
OCNET_HOST_DEVICE Moments<acc_t> combined(Moments<acc_t> a, const Moments<acc_t>& b) {
  const acc_t share = joining_share(a.count, b.count);
  join(a.mean, a.squares, a.count * share, share, b.mean, b.squares);
  a.count += b.count;
  return a;
}

// --- sums of the backward pass ---

template <typename acc_t>
struct Sums {
  acc_t dy = 0;        // S
  acc_t centred = 0;   // T: of yc * dy
  acc_t negative = 0;  // of inverse(z) * grad_out, over negative z
};
constexpr int kSums = 3;

template <typename acc_t>
OCNET_HOST_DEVICE Sums<acc_t> combined(const Sums<acc_t>& a, const Sums<acc_t>& b) {
  return {a.dy + b.dy, a.centred + b.centred, a.negative + b.negative};
}

// --- channels ---

// What the point-wise part is told. Vectors are null where they are absent.
template <typename acc_t>
struct Pointwise {
  const acc_t* weight = nullptr;
  const acc_t* bias = nullptr;
  const acc_t* slope = nullptr;
  acc_t scale_eps = 0;
  acc_t negative = 0;  // slope of the leaky ReLU, 1 for the identity; or scale of the ELU
  acc_t lowest = 0;    // ELU: what z / scale is taken to be at least
  int activation = kIdentity;
  bool signed_scale = false;

  OCNET_HOST_DEVICE bool flipped(int64_t c) const {
    return weight != nullptr && !signed_scale && weight[c] < 0;
  }
  OCNET_HOST_DEVICE acc_t scale(int64_t c) const {
    if (weight == nullptr) return 1;
    const acc_t value = weight[c];
    const acc_t magnitude = (value < 0 ? -value : value) + scale_eps;
    return signed_scale && value < 0 ? -magnitude : magnitude;
  }
  // What is added: -0 keeps the sign of 0. A slope that is not finite makes all of its channel NaN.
  OCNET_HOST_DEVICE acc_t bias_at(int64_t c) const {
    const acc_t added = bias == nullptr ? -acc_t(0) : bias[c];
    const acc_t spoilt = zero_if_finite(negative_at(c));
    return spoilt == 0 ? added : spoilt;
  }
  // A slope without an inverse is NaN.
  OCNET_HOST_DEVICE acc_t negative_at(int64_t c) const {
    if (slope == nullptr) return negative;
    const bool has_inverse = slope[c] > 0 && slope[c] <= std::numeric_limits<acc_t>::max();
    return has_inverse ? slope[c] : std::numeric_limits<acc_t>::quiet_NaN();
  }
};

template <typename acc_t>
struct alignas(16) ForwardChannel {
  acc_t mean, factor, bias, negative;
};

template <typename acc_t>
OCNET_HOST_DEVICE ForwardChannel<acc_t> forward_channel(const Pointwise<acc_t>& pointwise,
                                                        int64_t c, acc_t mean, acc_t var,
                                                        acc_t eps) {
  return {mean, pointwise.scale(c) / std::sqrt(var + eps), pointwise.bias_at(c),
          pointwise.negative_at(c)};
}

// grad_x = of_dy * dy + (of_centred * yc + offset), or of_dy * dy where statistics were frozen.
template <typename acc_t>
struct BackwardChannel {
  acc_t bias, bound, negative, inverse, of_dy, of_centred, offset;
};

// `var` is null where grad_x is not wanted; `count` is 0 where statistics were frozen.
template <typename acc_t>
OCNET_HOST_DEVICE BackwardChannel<acc_t> backward_channel(const Pointwise<acc_t>& pointwise,
                                                          int64_t c, const acc_t* var, acc_t eps,
                                                          acc_t count, const Sums<acc_t>& sums) {
  constexpr acc_t kMost = std::numeric_limits<acc_t>::max();
  const acc_t scale = pointwise.scale(c);
  const acc_t negative = pointwise.negative_at(c);
  const acc_t invstd = var == nullptr ? 0 : 1 / std::sqrt(var[c] + eps);
  BackwardChannel<acc_t> channel;
  channel.bias = pointwise.bias_at(c);
  channel.negative = negative;
  // So small a slope that its inverse is infinite would make NaN of what is stored as -0.
  channel.inverse = at_most(1 / negative, kMost);
  channel.of_dy = scale * invstd + zero_if_finite(negative);
  if (count > 0) {
    channel.bound = std::fabs(scale) * std::sqrt(count - 1);
    channel.of_centred = -invstd * sums.centred / (scale * count);
    channel.offset = -channel.of_dy * sums.dy / count;
  } else {
    channel.bound = std::numeric_limits<acc_t>::infinity();
    channel.of_centred = channel.offset = 0;
  }
  return channel;
}

// --- numbers ---

// What the backward pass has of a number: dy, and the activation's argument, from z and grad_out.
template <typename acc_t>
struct Recovered {
  acc_t dy, y;
};

// Also the identity, of which the slope is 1.
struct Leaky {
  template <typename acc_t>
  OCNET_HOST_DEVICE static acc_t activate(acc_t y, acc_t negative) {
    return sign_bit(y) ? y * negative : y;
  }
  template <typename acc_t>
  OCNET_HOST_DEVICE static Recovered<acc_t> recover(acc_t z, acc_t dz,
                                                    const BackwardChannel<acc_t>& channel, acc_t) {
    // A slope that is NaN shows in all of its channel, whatever the sign of a NaN in the output.
    if (!sign_bit(z)) return {dz + 0 * channel.inverse, z};
    return {dz * channel.negative, z * channel.inverse};
  }
};

struct Elu {
  template <typename acc_t>
  OCNET_HOST_DEVICE static acc_t activate(acc_t y, acc_t negative) {
    return sign_bit(y) ? negative * std::expm1(y) : y;
  }
  template <typename acc_t>
  OCNET_HOST_DEVICE static Recovered<acc_t> recover(acc_t z, acc_t dz,
                                                    const BackwardChannel<acc_t>& channel,
                                                    acc_t lowest) {
    if (!sign_bit(z)) return {dz, z};
    return {dz * (z + channel.negative), std::log1p(at_least(z / channel.negative, lowest))};
  }
};

// Has no inverse: what was negative has no gradient, so its value is of no interest.
struct Relu {
  template <typename acc_t>
  OCNET_HOST_DEVICE static acc_t activate(acc_t y, acc_t) {
    return at_least(y, acc_t(0));
  }
  template <typename acc_t>
  OCNET_HOST_DEVICE static Recovered<acc_t> recover(acc_t z, acc_t dz,
                                                    const BackwardChannel<acc_t>&, acc_t) {
    return {z > 0 ? dz : 0 * z, z};
  }
};

template <typename acc_t>
OCNET_HOST_DEVICE acc_t centred(acc_t y, acc_t residual, const BackwardChannel<acc_t>& channel) {
  return at_least(at_most(y - residual - channel.bias, channel.bound), -channel.bound);
}

}  // namespace ocnet::abn
