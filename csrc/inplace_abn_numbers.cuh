// SPDX-License-Identifier: MIT
// What is done with the numbers of a few vectors in registers. `channels(j)` is the channel of
// number j of each vector: one for all of a plane, or one each for the vectors of a row.
#pragma once

#include <cstdint>

#include "common/device.cuh"
#include "inplace_abn_math.h"
#include "inplace_abn_vector.cuh"

namespace ocnet::abn {

// Calls body with the activation of a code: one that has an inverse, or any.
template <typename Body>
OCNET_DEVICE void with_invertible(int code, const Body& body) {
  if (code == kElu) {
    body(Elu{});
  } else {
    body(Leaky{});
  }
}
template <typename Body>
OCNET_DEVICE void with_activation(int code, const Body& body) {
  if (code == kRelu) {
    body(Relu{});
  } else {
    with_invertible(code, body);
  }
}

// Moments of the numbers of vectors of one channel: their mean first, then deviations from it.
template <bool kAll, typename scalar_t, int kVectors>
OCNET_DEVICE Moments<accumulator_t<scalar_t>> moments_of(const Vector<scalar_t>* x,
                                                         const Slot* slots) {
  using acc_t = accumulator_t<scalar_t>;
  Moments<acc_t> moments;
  int count = 0;
  OCNET_UNROLL
  for (int i = 0; i < kVectors; ++i) {
    acc_t own = 0;
    OCNET_UNROLL
    for (int j = 0; j < kWidth<scalar_t>; ++j) {
      count += kAll || slots[i].has(j) ? 1 : 0;
      own += x[i][j];  // 0 where there is no number
    }
    moments.mean += own;
  }
  moments.count = static_cast<acc_t>(count);
  moments.mean /= at_least(moments.count, acc_t(1));
  OCNET_UNROLL
  for (int i = 0; i < kVectors; ++i) {
    OCNET_UNROLL
    for (int j = 0; j < kWidth<scalar_t>; ++j) {
      const acc_t deviation = x[i][j] - moments.mean;
      if (kAll || slots[i].has(j)) moments.squares += deviation * deviation;
    }
  }
  return moments;
}
// By 16 numbers (8 of fp64): so many have a common mean.
template <typename scalar_t, int kVectors>
OCNET_DEVICE void add_moments(Moments<accumulator_t<scalar_t>>& moments,
                              const Vector<scalar_t> (&x)[kVectors],
                              const Slot (&slots)[kVectors]) {
  constexpr int kFew = sizeof(scalar_t) == 2 ? 2 : 4;
  static_assert(kVectors % kFew == 0, "no vectors are left over");
  OCNET_UNROLL
  for (int first = 0; first < kVectors; first += kFew) {
    bool all = true;
    OCNET_UNROLL
    for (int i = first; i < first + kFew; ++i) all = all && is_whole<scalar_t>(slots[i]);
    moments = combined(moments, all ? moments_of<true, scalar_t, kFew>(x + first, slots + first)
                                    : moments_of<false, scalar_t, kFew>(x + first, slots + first));
  }
}

// x becomes z.
template <typename Act, bool kAdds, typename scalar_t, int kVectors, typename Channels>
OCNET_DEVICE void normalise(Vector<scalar_t> (&x)[kVectors],
                            const Vector<scalar_t> (&residual)[kVectors],
                            const Channels& channels) {
  using acc_t = accumulator_t<scalar_t>;
  const auto result = [&](int i, int j, const ForwardChannel<acc_t>& channel) {
    acc_t y = (x[i][j] - channel.mean) * channel.factor + channel.bias;
    if (kAdds) y += residual[i][j];
    return Act::activate(y, channel.negative);
  };
  OCNET_UNROLL
  for (int pair = 0; pair < kWidth<scalar_t> / 2; ++pair) {
    const ForwardChannel<acc_t> low = channels(2 * pair), high = channels(2 * pair + 1);
    OCNET_UNROLL
    for (int i = 0; i < kVectors; ++i) {
      x[i].round(pair, result(i, 2 * pair, low), result(i, 2 * pair + 1, high));
    }
  }
}

// Calls take(j, sums over the vectors of their numbers j). Numbers of z and of its gradient that
// are 0 add nothing.
template <typename Act, typename scalar_t, int kVectors, typename Channels, typename Take>
OCNET_DEVICE void add_up(const Vector<scalar_t> (&z)[kVectors],
                         const Vector<scalar_t> (&grad_out)[kVectors],
                         const Vector<scalar_t> (&residual)[kVectors], const Channels& channels,
                         accumulator_t<scalar_t> lowest, const Take& take) {
  using acc_t = accumulator_t<scalar_t>;
  OCNET_UNROLL
  for (int j = 0; j < kWidth<scalar_t>; ++j) {
    const BackwardChannel<acc_t> channel = channels(j);
    Sums<acc_t> sums;
    OCNET_UNROLL
    for (int i = 0; i < kVectors; ++i) {
      const auto number = Act::recover(z[i][j], grad_out[i][j], channel, lowest);
      sums.dy += number.dy;
      sums.centred += centred(number.y, residual[i][j], channel) * number.dy;
      const bool counts = sign_bit(z[i][j]) || number.y != number.y;
      if (counts) sums.negative += number.y * grad_out[i][j];
    }
    take(j, sums);
  }
}

// z becomes grad_x, and grad_out becomes grad_residual.
template <typename Act, typename scalar_t, int kVectors, typename Channels>
OCNET_DEVICE void differentiate(Vector<scalar_t> (&z)[kVectors],
                                Vector<scalar_t> (&grad_out)[kVectors],
                                const Vector<scalar_t> (&residual)[kVectors], bool frozen,
                                const Channels& channels, accumulator_t<scalar_t> lowest) {
  using acc_t = accumulator_t<scalar_t>;
  const auto dx_of = [&](int i, int j, const BackwardChannel<acc_t>& channel, acc_t& dy) {
    const auto number = Act::recover(z[i][j], grad_out[i][j], channel, lowest);
    dy = number.dy;
    if (frozen) return channel.of_dy * dy;
    const acc_t own = centred(number.y, residual[i][j], channel);
    return channel.of_dy * dy + (channel.of_centred * own + channel.offset);
  };
  OCNET_UNROLL
  for (int pair = 0; pair < kWidth<scalar_t> / 2; ++pair) {
    const BackwardChannel<acc_t> low = channels(2 * pair), high = channels(2 * pair + 1);
    OCNET_UNROLL
    for (int i = 0; i < kVectors; ++i) {
      acc_t dy_low, dy_high;
      const acc_t dx_low = dx_of(i, 2 * pair, low, dy_low);
      const acc_t dx_high = dx_of(i, 2 * pair + 1, high, dy_high);
      z[i].round(pair, dx_low, dx_high);
      grad_out[i].round(pair, dy_low, dy_high);
    }
  }
}

}  // namespace ocnet::abn
