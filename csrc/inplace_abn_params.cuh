// SPDX-License-Identifier: MIT
// What kernels of activated batch norm are given, and what is done once for each channel. Pointers
// are null where something is absent or not wanted. `readable`: see reads_whole.
#pragma once

#include <cstdint>

#include "common/device.cuh"
#include "common/math.h"
#include "inplace_abn_math.h"
#include "inplace_abn_plan.h"

namespace ocnet::abn {

// Statistics of parts, (count, 2 C + 1): means, sums of squared deviations from them, numbers.
template <typename acc_t>
struct Records {
  const acc_t* data = nullptr;
  int64_t count = 0;
  int64_t channels = 0;

  OCNET_DEVICE Moments<acc_t> at(int64_t record, int64_t c) const {
    const acc_t* const one = data + record * (2 * channels + 1);
    return {one[2 * channels], one[c], one[channels + c]};
  }
};
template <typename acc_t>
OCNET_DEVICE void store_record(acc_t* records, int64_t channels, int64_t record, int64_t c,
                               acc_t numbers, acc_t mean, acc_t squares) {
  acc_t* const one = records + record * (2 * channels + 1);
  one[c] = mean;
  one[channels + c] = squares;
  if (c == 0) one[2 * channels] = numbers;
}

// Sums of parts, (kSums, count, C). Those of a caller have the first two kinds only.
template <typename acc_t>
struct SumRecords {
  const acc_t* data = nullptr;
  int64_t count = 0;
  int64_t channels = 0;
  bool all_kinds = true;

  OCNET_DEVICE Sums<acc_t> at(int64_t record, int64_t c) const {
    const acc_t* const one = data + record * channels + c;
    const int64_t kind = count * channels;
    return {one[0], one[kind], all_kinds ? one[2 * kind] : acc_t(0)};
  }
};
template <typename acc_t>
OCNET_DEVICE void store_sums(acc_t* records, int64_t count, int64_t channels, int64_t record,
                             int64_t c, const Sums<acc_t>& sums) {
  acc_t* const one = records + record * channels + c;
  const int64_t kind = count * channels;
  one[0] = sums.dy;
  one[kind] = sums.centred;
  one[2 * kind] = sums.negative;
}

// --- forward ---

template <typename scalar_t, typename Cut>
struct StatsParams {
  const scalar_t* x;
  int64_t readable;
  accumulator_t<scalar_t>* records;
  Cut cut;
};

template <typename acc_t>
struct Normalisation {
  bool training = false;
  Records<acc_t> records;  // in training
  const acc_t* running_mean = nullptr;
  const acc_t* running_var = nullptr;
  acc_t *mean = nullptr, *var = nullptr, *new_mean = nullptr, *new_var = nullptr;
  acc_t momentum = 0;
  acc_t keep = 0;  // 1 - momentum
  acc_t eps = 0;
};

template <typename scalar_t>
struct ForwardCall {
  const scalar_t* x;
  const scalar_t* residual;
  scalar_t* out;  // may be x
  int64_t readable;
  Pointwise<accumulator_t<scalar_t>> pointwise;
  Normalisation<accumulator_t<scalar_t>> normalisation;
};
template <typename scalar_t, typename Cut>
struct ForwardParams : ForwardCall<scalar_t> {
  Cut cut;
};

// One thread of a launch is the writer of a channel. Nobody else may read the running statistics in
// training: they may be what it writes.
template <typename acc_t>
OCNET_DEVICE ForwardChannel<acc_t> channel_of_batch(const Pointwise<acc_t>& pointwise,
                                                    const Normalisation<acc_t>& to, int64_t c,
                                                    const Moments<acc_t>& moments, bool writes) {
  const acc_t var = moments.squares / at_least(moments.count, acc_t(1));
  if (writes) {
    to.mean[c] = moments.mean;
    to.var[c] = var;
    if (to.new_mean != nullptr) {
      to.new_mean[c] = to.keep * to.running_mean[c] + to.momentum * moments.mean;
    }
    if (to.new_var != nullptr) {
      const acc_t unbiased = moments.squares / at_least(moments.count - 1, acc_t(1));
      to.new_var[c] = to.keep * to.running_var[c] + to.momentum * unbiased;
    }
  }
  return forward_channel(pointwise, c, moments.mean, var, to.eps);
}
template <typename acc_t>
OCNET_DEVICE ForwardChannel<acc_t> channel_of_running(const Pointwise<acc_t>& pointwise,
                                                      const Normalisation<acc_t>& from, int64_t c) {
  return forward_channel(pointwise, c, from.running_mean[c], from.running_var[c], from.eps);
}

// --- backward ---

template <typename acc_t>
struct VectorGradients {
  acc_t* sums = nullptr;  // (2, C)
  acc_t* weight = nullptr;
  acc_t* bias = nullptr;
  acc_t* slope = nullptr;
};

template <typename acc_t>
OCNET_DEVICE void write_vectors(const VectorGradients<acc_t>& to, const Pointwise<acc_t>& pointwise,
                                int64_t channels, int64_t c, const Sums<acc_t>& sums) {
  if (to.sums != nullptr) {
    to.sums[c] = sums.dy;
    to.sums[channels + c] = sums.centred;
  }
  if (to.bias != nullptr) to.bias[c] = sums.dy;
  if (to.weight != nullptr) {
    const acc_t of_scale = sums.centred / pointwise.scale(c);
    to.weight[c] = pointwise.flipped(c) ? -of_scale : of_scale;
  }
  if (to.slope != nullptr) to.slope[c] = sums.negative;
}

template <typename scalar_t>
struct BackwardCall {
  using acc_t = accumulator_t<scalar_t>;
  const scalar_t* out;
  const scalar_t* residual;
  const scalar_t* grad_out;
  scalar_t* grad_x;
  scalar_t* grad_residual;
  int64_t readable;
  Pointwise<acc_t> pointwise;
  VectorGradients<acc_t> vectors;
  const acc_t* var = nullptr;
  acc_t eps = 0;
  // Numbers of a channel over all ranks: at an address, or a number; 0 for frozen statistics.
  const acc_t* counted = nullptr;
  acc_t count = 0;
  SumRecords<acc_t> sums;    // to read, where grad_x needs them
  acc_t* records = nullptr;  // to write

  OCNET_DEVICE acc_t numbers() const { return counted == nullptr ? count : *counted; }
};
template <typename scalar_t, typename Cut>
struct BackwardParams : BackwardCall<scalar_t> {
  Cut cut;
};

// What needs no sums: all of a channel with frozen statistics, and what sums are made with.
template <typename scalar_t>
OCNET_DEVICE BackwardChannel<accumulator_t<scalar_t>> channel_without_sums(
    const BackwardCall<scalar_t>& call, int64_t c) {
  return backward_channel(call.pointwise, c, call.var, call.eps, call.numbers(), {});
}
template <typename scalar_t>
OCNET_DEVICE BackwardChannel<accumulator_t<scalar_t>> channel_with_sums(
    const BackwardCall<scalar_t>& call, int64_t c, const Sums<accumulator_t<scalar_t>>& sums) {
  return backward_channel(call.pointwise, c, call.var, call.eps, call.numbers(), sums);
}

}  // namespace ocnet::abn
