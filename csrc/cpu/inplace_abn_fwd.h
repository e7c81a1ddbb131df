// SPDX-License-Identifier: MIT
// Statistics, and the forward pass.
#pragma once

#include <cmath>
#include <cstdint>
#include <optional>

#include "inplace_abn_channels.h"

namespace ocnet::cpu {

using torch::stable::Tensor;

// Means, and sums of squared deviations from them, of every channel. The first step of forward.
template <typename T, typename Element>
class AbnMoments {
 public:
  static constexpr int kKinds = 2;

  AbnMoments(const AbnLayout& layout, const Tensor& x)
      : layout_(layout), kernels_(abn_kernels<T, Element>(layout.rows())) {
    block_.map = static_cast<const Element*>(x.const_data_ptr());
  }

  void reduce(const AbnUnit& unit, int64_t chunk, const AbnSums& partial, T* scratch) const {
    AbnBlock<T, Element> block = block_;
    layout_.place(unit, chunk, block);
    block.scratch = scratch;
    block.sums = partial.data;
    block.sums_stride = partial.stride;
    kernels_.moments(block);
  }

  void combine(int64_t chunk, int64_t width, const AbnSums& partial, const AbnSums& total) const {
    merge_moments(width, static_cast<double>(layout_.count_before(chunk)), total.data,
                  total.data + total.stride, static_cast<double>(layout_.count_of(chunk)),
                  partial.data, partial.data + partial.stride);
  }

 protected:
  const AbnLayout& layout_;
  const AbnKernels<T, Element>& kernels_;
  AbnBlock<T, Element> block_{};
};

template <typename T, typename Element>
class AbnStats : public AbnMoments<T, Element> {
 public:
  AbnStats(const AbnLayout& layout, const Tensor& x, T* packed)
      : AbnMoments<T, Element>(layout, x), packed_(packed) {
    packed_[2 * layout.channels()] = static_cast<T>(layout.count());
  }

  bool reduces() const { return true; }
  bool applies() const { return false; }
  void prepare(const AbnUnit&) const {}
  void finish(const AbnUnit& unit, const AbnSums& total) const {
    for (int64_t i = 0; i < unit.width; ++i) {
      packed_[unit.channel + i] = static_cast<T>(total.data[i]);
      packed_[this->layout_.channels() + unit.channel + i] =
          static_cast<T>(total.data[total.stride + i]);
    }
  }
  void apply(const AbnUnit&, int64_t) const {}

 private:
  T* packed_;
};

// `packed` are statistics of parts to merge, or there are none and they are those of x; where
// neither is so, the running ones normalise.
template <typename T>
struct AbnStatistics {
  const T* packed;
  int64_t parts;
  const T *running_mean, *running_var;
  bool training;
  double momentum;
  T eps;
  T *mean, *var, *new_mean, *new_var;
};

template <typename T, typename Element>
class AbnForward : public AbnMoments<T, Element> {
 public:
  AbnForward(const AbnLayout& layout, const Tensor& x, const std::optional<Tensor>& residual,
             const Tensor& out, const AbnParameters<T>& parameters,
             const AbnStatistics<T>& statistics)
      : AbnMoments<T, Element>(layout, x),
        parameters_(parameters),
        statistics_(statistics),
        memory_(x, layout.channels()),
        normalise_(this->kernels_.normalise[parameters.activation]) {
    this->block_.residual = values_of<const Element>(residual);
    this->block_.target = static_cast<Element*>(out.mutable_data_ptr());
    this->block_.channels = memory_.values();
    this->block_.alpha = parameters.param;
    this->block_.past_caches = layout.past_caches(this->block_);
  }

  bool reduces() const { return statistics_.training && statistics_.packed == nullptr; }
  bool applies() const { return true; }

  void prepare(const AbnUnit& unit) const {
    if (reduces()) {
      return;
    }
    for (int64_t channel = unit.channel; channel < unit.channel + unit.width; ++channel) {
      if (statistics_.training) {
        merge_parts(channel);
      } else {
        set(channel, statistics_.running_mean[channel], statistics_.running_var[channel]);
      }
    }
  }

  void finish(const AbnUnit& unit, const AbnSums& total) const {
    const Shares shares(static_cast<double>(this->layout_.count()));
    for (int64_t i = 0; i < unit.width; ++i) {
      take(unit.channel + i, shares, total.data[i], total.data[total.stride + i]);
    }
  }

  void apply(const AbnUnit& unit, int64_t chunk) const {
    AbnBlock<T, Element> block = this->block_;
    this->layout_.place(unit, chunk, block);
    block.channels = from_channel(block.channels, unit.channel);
    normalise_(block);
  }

 private:
  void merge_parts(int64_t channel) const {
    const int64_t channels = this->layout_.channels();
    double count = 0, mean = 0, squares = 0;
    for (int64_t part = 0; part < statistics_.parts; ++part) {
      const T* const values = statistics_.packed + part * (2 * channels + 1);
      if (values[2 * channels] != 0) {
        merge_moments(1, count, &mean, &squares, values[2 * channels], values + channel,
                      values + channels + channel);
        count += values[2 * channels];
      }
    }
    take(channel, Shares(count), mean, squares);
  }

  // What sums of squares are multiplied by for the biased variance and for the other one.
  struct Shares {
    double biased, unbiased;
    explicit Shares(double count)
        : biased(1 / std::max(count, 1.0)), unbiased(1 / std::max(count - 1, 1.0)) {}
  };

  // Statistics of the batch.
  void take(int64_t channel, const Shares& shares, double mean, double squares) const {
    const AbnStatistics<T>& to = statistics_;
    const double var = squares * shares.biased;
    set(channel, static_cast<T>(mean), static_cast<T>(var));
    if (to.mean != nullptr) {
      to.mean[channel] = static_cast<T>(mean);
    }
    if (to.var != nullptr) {
      to.var[channel] = static_cast<T>(var);
    }
    if (to.new_mean != nullptr && to.running_mean != nullptr) {
      to.new_mean[channel] = moved(to.running_mean[channel], mean);
    }
    if (to.new_var != nullptr && to.running_var != nullptr) {
      to.new_var[channel] = moved(to.running_var[channel], squares * shares.unbiased);
    }
  }

  T moved(T running, double batch) const {
    const double momentum = statistics_.momentum;
    return static_cast<T>((1 - momentum) * running + momentum * batch);
  }

  void set(int64_t channel, T mean, T var) const {
    using Channels = AbnChannels<T>;
    const T slope = parameters_.slope_of(channel);
    const double root = std::sqrt(static_cast<double>(var) + statistics_.eps);
    memory_.set(&Channels::mean, channel, mean);
    // A slope that is NaN makes numbers NaN that it does not multiply.
    memory_.set(&Channels::factor, channel,
                slope == slope ? static_cast<T>(parameters_.scale(channel) / root) : slope);
    memory_.set(&Channels::bias, channel, parameters_.bias_of(channel));
    memory_.set(&Channels::slope, channel, slope);
  }

  AbnParameters<T> parameters_;
  AbnStatistics<T> statistics_;
  AbnChannelMemory<T> memory_;
  typename AbnKernels<T, Element>::Run normalise_;
};

}  // namespace ocnet::cpu
