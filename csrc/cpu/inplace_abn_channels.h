// SPDX-License-Identifier: MIT
// What is computed once for a channel.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>

#include <torch/csrc/stable/tensor.h>

#include "inplace_abn_kernels.h"
#include "inplace_abn_schedule.h"
#include "runtime.h"

namespace ocnet::cpu {

// Of the schema.
constexpr int64_t kAbnIdentityCode = 0, kAbnLeakyCode = 1, kAbnEluCode = 2, kAbnReluCode = 3;

template <typename T>
T* values_of(const std::optional<torch::stable::Tensor>& tensor) {
  return tensor ? static_cast<T*>(tensor->data_ptr()) : nullptr;
}

// What both passes know of the channels. Scalars are rounded to T once.
template <typename T>
struct AbnParameters {
  const T *weight, *bias, *slope;
  T scale_eps, param;
  bool signed_scale;
  AbnActivation activation;

  AbnParameters(const std::optional<torch::stable::Tensor>& weight_vector,
                const std::optional<torch::stable::Tensor>& bias_vector,
                const std::optional<torch::stable::Tensor>& slopes, double scale_epsilon,
                int64_t activation_code, double parameter, bool sign)
      : weight(values_of<const T>(weight_vector)),
        bias(values_of<const T>(bias_vector)),
        slope(activation_code == kAbnLeakyCode ? values_of<const T>(slopes) : nullptr),
        scale_eps(static_cast<T>(scale_epsilon)),
        param(activation_code == kAbnIdentityCode ? T(1) : static_cast<T>(parameter)),
        signed_scale(sign),
        activation(activation_code == kAbnEluCode    ? kElu
                   : activation_code == kAbnReluCode ? kRelu
                                                     : kLeakyRelu) {}

  T scale(int64_t channel) const {
    if (weight == nullptr) {
      return 1;
    }
    // The sign of a weight of 0, and of NaN, is +.
    const T magnitude = (weight[channel] < 0 ? -weight[channel] : weight[channel]) + scale_eps;
    return signed_scale && weight[channel] < 0 ? -magnitude : magnitude;
  }
  // Adding -0 changes nothing, not even a sign.
  T bias_of(int64_t channel) const { return bias == nullptr ? T(-0.0) : bias[channel]; }
  T slope_of(int64_t channel) const {
    if (slope == nullptr) {
      return param;
    }
    const bool has_inverse = slope[channel] > 0 && slope[channel] <= std::numeric_limits<T>::max();
    return has_inverse ? slope[channel] : std::numeric_limits<T>::quiet_NaN();
  }
};

// Memory for the values that kernels read.
template <typename T>
class AbnChannelMemory {
 public:
  AbnChannelMemory(const torch::stable::Tensor& like, int64_t channels)
      : size_(abn_padded(channels)), memory_(like, kValues * size_) {
    T** const names[kValues] = {&values_.mean,  &values_.factor,        &values_.bias,
                                &values_.slope, &values_.inverse_slope, &values_.bound,
                                &values_.of_dy, &values_.of_centred,    &values_.offset};
    for (int i = 0; i < kValues; ++i) {
      *names[i] = memory_.data() + i * size_;
      std::fill(*names[i] + channels, *names[i] + size_, T(0));
    }
  }
  const AbnChannels<T>& values() const { return values_; }

  // NaN of whatever bits becomes the usual one: kernels count on that. Its sign bit, which
  // arithmetic keeps, makes both passes take the branch that multiplies by the slope.
  void set(T* AbnChannels<T>::* name, int64_t channel, T value) const {
    (values_.*name)[channel] = value == value ? value : -std::numeric_limits<T>::quiet_NaN();
  }

 private:
  static constexpr int kValues = 9;
  int64_t size_;
  ScratchBuffer<T> memory_;
  AbnChannels<T> values_;
};

template <typename T>
AbnChannels<T> from_channel(const AbnChannels<T>& values, int64_t channel) {
  AbnChannels<T> moved = values;
  for (T** value : {&moved.mean, &moved.factor, &moved.bias, &moved.slope, &moved.inverse_slope,
                    &moved.bound, &moved.of_dy, &moved.of_centred, &moved.offset}) {
    *value += channel;
  }
  return moved;
}

// Means, and sums of squared deviations from them, of `count` numbers: those of `part_count` others
// are merged into them.
template <typename Number>
void merge_moments(int64_t width, double count, double* means, double* squares, double part_count,
                   const Number* part_means, const Number* part_squares) {
  const double total = count + part_count;
  const double share = part_count / total, weight = count * share;
  for (int64_t i = 0; i < width; ++i) {
    const double delta = part_means[i] - means[i];
    means[i] += delta * share;
    squares[i] += part_squares[i] + delta * delta * weight;
  }
}

}  // namespace ocnet::cpu
