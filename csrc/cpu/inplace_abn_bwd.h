// SPDX-License-Identifier: MIT
// The backward pass: its sums, its gradients of maps, or both.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>

#include "inplace_abn_channels.h"

namespace ocnet::cpu {

using torch::stable::Tensor;

// What a backward pass is to write, where it is not nullptr, and what it knows. Statistics were
// those of the batch where `count` is above 0.
template <typename T>
struct AbnGradients {
  const T* var;  // needed where there is a gradient of x
  T eps;
  double count;
  const T* given;  // S and T, which are not computed then
  T *sums, *weight, *bias, *slope;
};

template <typename T, typename Element>
struct AbnGradientMaps {
  const Element *out, *residual, *grad_out;
  Element *grad_x, *grad_residual;
};

template <typename T, typename Element>
class AbnBackwardPass {
 public:
  static constexpr int kKinds = kAbnSums;

  AbnBackwardPass(const AbnLayout& layout, const Tensor& like,
                  const AbnGradientMaps<T, Element>& maps, const AbnParameters<T>& parameters,
                  const AbnGradients<T>& gradients)
      : layout_(layout),
        parameters_(parameters),
        gradients_(gradients),
        inverse_count_(1 / gradients.count),
        bound_(bound_of(gradients.count)),
        memory_(like, layout.channels()),
        kernels_(abn_kernels<T, Element>(layout.rows())) {
    block_.map = maps.out;
    block_.residual = maps.residual;
    block_.grad_out = maps.grad_out;
    block_.target = maps.grad_x;
    block_.grad_residual = maps.grad_residual;
    block_.channels = memory_.values();
    block_.alpha = parameters.param;
    block_.alpha_floor = elu_floor();
    block_.past_caches = layout.past_caches(block_);
  }

  bool reduces() const {
    const AbnGradients<T>& to = gradients_;
    return to.sums != nullptr || to.weight != nullptr || to.bias != nullptr ||
           to.slope != nullptr || (centred() && to.given == nullptr);
  }
  // Maps that need no sums are written while sums are made.
  bool applies() const { return writes() && (centred() || !reduces()); }

  void prepare(const AbnUnit& unit) const {
    using Channels = AbnChannels<T>;
    for (int64_t channel = unit.channel; channel < unit.channel + unit.width; ++channel) {
      const T scale = parameters_.scale(channel), slope = parameters_.slope_of(channel);
      memory_.set(&Channels::slope, channel, slope);
      // So small a slope that its inverse is infinite would make NaN of what is stored as -0.
      memory_.set(&Channels::inverse_slope, channel,
                  std::min(T(1) / slope, std::numeric_limits<T>::max()));
      memory_.set(&Channels::bias, channel, parameters_.bias_of(channel));
      memory_.set(&Channels::bound, channel, static_cast<T>(std::fabs(scale) * bound_));
      memory_.set(&Channels::of_dy, channel,
                  block_.target == nullptr ? T(0) : static_cast<T>(scale / root(channel)));
      if (centred() && gradients_.given != nullptr) {
        const double of_product = gradients_.given[layout_.channels() + channel];
        set(channel, gradients_.given[channel], of_product / parameters_.scale(channel));
      }
    }
  }

  void reduce(const AbnUnit& unit, int64_t chunk, const AbnSums& partial, T* scratch) const {
    AbnBlock<T, Element> block = placed(unit, chunk);
    block.scratch = scratch;
    block.sums = partial.data;
    block.sums_stride = partial.stride;
    for (int kind = 0; kind < kKinds; ++kind) {
      std::fill_n(partial.data + kind * partial.stride, unit.width, 0.0);
    }
    if (applies()) {
      block.target = block.grad_residual = nullptr;
    }
    const bool of_slope = gradients_.slope != nullptr;
    kernels_.backward[kSums][of_slope ? kSlopeGradient : parameters_.activation](block);
  }

  void combine(int64_t, int64_t width, const AbnSums& partial, const AbnSums& total) const {
    for (int kind = 0; kind < kKinds; ++kind) {
      for (int64_t i = 0; i < width; ++i) {
        total.data[kind * total.stride + i] += partial.data[kind * partial.stride + i];
      }
    }
  }

  void finish(const AbnUnit& unit, const AbnSums& total) const {
    const AbnGradients<T>& to = gradients_;
    for (int64_t i = 0; i < unit.width; ++i) {
      const int64_t channel = unit.channel + i;
      const T of_dy = static_cast<T>(total.data[i]);
      const T of_product = static_cast<T>(total.data[total.stride + i]);
      if (to.sums != nullptr) {
        to.sums[channel] = of_dy;
        to.sums[layout_.channels() + channel] = of_product;
      }
      const double of_normalised = of_product / static_cast<double>(parameters_.scale(channel));
      if (to.weight != nullptr) {
        const bool flipped = !parameters_.signed_scale && parameters_.weight[channel] < 0;
        to.weight[channel] = static_cast<T>(flipped ? -of_normalised : of_normalised);
      }
      if (to.bias != nullptr) {
        to.bias[channel] = of_dy;
      }
      if (to.slope != nullptr) {
        to.slope[channel] = static_cast<T>(total.data[2 * total.stride + i]);
      }
      if (centred()) {
        set(channel, of_dy, of_normalised);
      }
    }
  }

  void apply(const AbnUnit& unit, int64_t chunk) const {
    kernels_.backward[centred() ? kCentred : kScaled][parameters_.activation](placed(unit, chunk));
  }

 private:
  bool writes() const { return block_.target != nullptr || block_.grad_residual != nullptr; }
  bool centred() const { return block_.target != nullptr && gradients_.count > 0; }

  AbnBlock<T, Element> placed(const AbnUnit& unit, int64_t chunk) const {
    AbnBlock<T, Element> block = block_;
    layout_.place(unit, chunk, block);
    block.channels = from_channel(block.channels, unit.channel);
    return block;
  }

  double root(int64_t channel) const {
    return std::sqrt(static_cast<double>(gradients_.var[channel]) + gradients_.eps);
  }

  // What normalised numbers of the batch never exceed; frozen statistics bound nothing.
  static double bound_of(double count) {
    return count > 0 ? std::sqrt(std::max(count - 1, 0.0))
                     : std::numeric_limits<double>::infinity();
  }

  // B and K, from S and from T / scale.
  void set(int64_t channel, double of_dy, double of_normalised) const {
    using Channels = AbnChannels<T>;
    const double share = inverse_count_ / root(channel);
    memory_.set(&Channels::of_centred, channel, static_cast<T>(-of_normalised * share));
    memory_.set(&Channels::offset, channel,
                static_cast<T>(-parameters_.scale(channel) * of_dy * share));
  }

  // -1 has no inverse: half a unit of the last place of what is stored (a whole one of T) is where
  // numbers began to be rounded to it.
  static T elu_floor() {
    const double wide = std::numeric_limits<T>::epsilon();
    const double stored = std::is_same_v<Element, c10::BFloat16> ? 0x1p-7
                          : std::is_same_v<Element, c10::Half>   ? 0x1p-10
                                                                 : wide;
    return static_cast<T>(-1 + std::max(stored / 4, wide / 2));
  }

  const AbnLayout& layout_;
  AbnParameters<T> parameters_;
  AbnGradients<T> gradients_;
  double inverse_count_, bound_;
  AbnChannelMemory<T> memory_;
  const AbnKernels<T, Element>& kernels_;
  AbnBlock<T, Element> block_{};
};

}  // namespace ocnet::cpu
