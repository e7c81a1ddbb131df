// SPDX-License-Identifier: MIT
// Tensors of activated batch norm as kernels get them: checks, pointers, and the cut of a map.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <optional>
#include <string>
#include <type_traits>

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "common/dispatch.h"
#include "common/torch_launch.h"
#include "inplace_abn_math.h"
#include "inplace_abn_plan.h"

namespace ocnet::abn {

using torch::stable::Tensor;
using Maybe = std::optional<Tensor>;

// Checks of what a call is given, all like one map.
class Checked {
 public:
  Checked(const char* function, const char* argument, const Tensor& map)
      : function_(function), map_(map) {
    check_on_device(function, argument, map);
    if (map.dim() != 2) check_dim(function, argument, 3, map);
    check_sizes(function, argument, kLargestAxis, map);
    check_dense(argument, map);
  }

  void map(const char* argument, const Tensor& tensor) const {
    check_dim(function_, argument, map_.dim(), tensor);
    for (int64_t axis = 0; axis < map_.dim(); ++axis) {
      if (tensor.size(axis) != map_.size(axis)) {
        fail_argument(function_, argument, "have shape " + shape_text(map_.sizes()),
                      shape_text(tensor.sizes()));
      }
    }
    check_dtype(function_, argument, map_.scalar_type(), tensor);
    check_same_device(function_, argument, map_, tensor);
    check_dense(argument, tensor);
  }
  void map(const char* argument, const Maybe& tensor) const {
    if (tensor.has_value()) map(argument, *tensor);
  }
  void values(const char* argument, std::initializer_list<int64_t> shape,
              const Tensor& tensor) const {
    check_shape(function_, argument, shape, tensor);
    check_dtype(function_, argument, accumulator_dtype(map_.scalar_type()), tensor);
    check_same_device(function_, argument, map_, tensor);
    check_contiguous(function_, argument, tensor);
  }
  void values(const char* argument, std::initializer_list<int64_t> shape,
              const Maybe& tensor) const {
    if (tensor.has_value()) values(argument, shape, *tensor);
  }
  void vector(const char* argument, const Maybe& tensor) const {
    values(argument, {channels()}, tensor);
  }
  void given(const char* argument, const char* when, bool is_given) const {
    if (!is_given) fail_argument(function_, argument, std::string("be given ") + when, "None");
  }
  void activation(int64_t code, bool batch) const {
    if (code < kIdentity || code > (batch ? kElu : kRelu)) {
      fail_argument(function_, "activation",
                    batch ? "be a code from 0 to 2 where statistics are those of the batch"
                          : "be a code from 0 to 3",
                    std::to_string(code));
    }
  }
  int64_t channels() const { return map_.size(1); }

 private:
  // With eight of them to a vector, places in a super-row are counted in 32 bits.
  static constexpr int64_t kLargestAxis = int64_t{1} << 40;
  static constexpr int64_t kMostChannels = int64_t{1} << 27;

  void check_dense(const char* argument, const Tensor& tensor) const {
    constexpr uintptr_t kAlignment = 16;
    check_contiguous(function_, argument, tensor);
    const auto address = reinterpret_cast<uintptr_t>(tensor.const_data_ptr());
    if (address % kAlignment != 0) {
      fail_argument(function_, argument, "start at a multiple of 16 bytes",
                    "an address that leaves " + std::to_string(address % kAlignment));
    }
    if (tensor.size(1) > kMostChannels) {
      fail_argument(function_, argument, "have at most 2^27 channels",
                    std::to_string(tensor.size(1)));
    }
  }

  const char* function_;
  const Tensor& map_;
};

// Null where a tensor is absent.
template <typename T>
const T* input(const char* name, const Maybe& tensor) {
  return tensor.has_value() ? kernel_input<T>(name, *tensor) : nullptr;
}
template <typename T>
T* output(const char* name, const Maybe& tensor) {
  return tensor.has_value() ? kernel_output<T>(name, *tensor) : nullptr;
}
// What may be one of the outputs itself: that has been handed to kernels already.
template <typename T>
const T* input_beside(const char* name, const Maybe& tensor, const T* written) {
  const bool same = tensor.has_value() && tensor->const_data_ptr() == written;
  return same ? written : input<T>(name, tensor);
}

inline Tensor workspace(const Tensor& map, std::initializer_list<int64_t> shape) {
  return torch::stable::new_empty(map, shape, accumulator_dtype(map.scalar_type()));
}

// How near to -1 z / scale of a saturated ELU is taken to be: half a unit of the last place of what
// is stored, a whole one of the accumulator, is where numbers began to be rounded to -1.
template <typename scalar_t>
constexpr double elu_floor() {
  constexpr double kWide = std::numeric_limits<accumulator_t<scalar_t>>::epsilon() / 2;
  constexpr double kStored = std::is_same_v<scalar_t, BFloat16>  ? 0x1p-7
                             : std::is_same_v<scalar_t, Float16> ? 0x1p-10
                                                                 : 0;
  return std::max(kStored / 4, kWide);
}

template <typename scalar_t>
Pointwise<accumulator_t<scalar_t>> pointwise_of(const Maybe& weight, const Maybe& bias,
                                                const Maybe& slope, double scale_eps,
                                                int64_t activation, double param,
                                                bool signed_scale) {
  using acc_t = accumulator_t<scalar_t>;
  Pointwise<acc_t> pointwise;
  pointwise.weight = input<acc_t>("weight", weight);
  pointwise.bias = input<acc_t>("bias", bias);
  pointwise.slope = input<acc_t>("slope", slope);
  pointwise.scale_eps = static_cast<acc_t>(scale_eps);
  pointwise.negative = activation == kIdentity ? 1 : static_cast<acc_t>(param);
  pointwise.lowest = static_cast<acc_t>(-1 + elu_floor<scalar_t>());
  pointwise.activation = static_cast<int>(activation);
  pointwise.signed_scale = signed_scale;
  return pointwise;
}

// Calls body with the cut of a map into parts that kernels stream.
template <typename scalar_t, typename Body>
void with_cut(const Tensor& map, const Body& body) {
  constexpr int kNumbers = kWidth<scalar_t>;
  if (map.dim() == 2) {
    body(cut_rows(map.size(0), map.size(1), kNumbers));
  } else {
    body(cut_stream(map.size(0), map.size(1), map.size(2), kNumbers));
  }
}

inline int64_t size_of(const Tensor& map) {
  int64_t numbers = 1;
  for (const int64_t size : map.sizes()) numbers *= size;
  return numbers;
}
// Of a channel.
inline double numbers_of(const Tensor& map) {
  return static_cast<double>(size_of(map) / map.size(1));
}

// No plan where the map is rows, or too large.
template <typename scalar_t, typename Launch>
SlabPlan slab_of(const Tensor& map, int maps, const Launch& launch) {
  if (map.dim() == 2) return {};
  return plan_slab(map.size(0), map.size(1), map.size(2), kWidth<scalar_t>, maps,
                   launch.shared_limit(), launch.has_clusters());
}

}  // namespace ocnet::abn
