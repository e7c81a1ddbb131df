// SPDX-License-Identifier: MIT
// Token matrices as host functions get them, tensors, and as kernels take them.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>

#include <torch/csrc/stable/tensor.h>

#include "checks.h"
#include "tokens.h"
#include "torch_launch.h"

namespace ocnet {

using torch::stable::Tensor;

// Tokens and channels are counted in 32 bits, with room for a tile beyond the last one.
constexpr int64_t kLargestSize = int64_t{1} << 30;

// A token matrix of the given shape, like the query in dtype and device.
inline void check_matrix(const char* function, const char* argument, const Tensor& query,
                         std::initializer_list<int64_t> shape, const Tensor& tensor) {
  check_shape(function, argument, shape, tensor);
  check_dtype(function, argument, query.scalar_type(), tensor);
  check_same_device(function, argument, query, tensor);
}

namespace detail {

// Elements of `axis` lie side by side, and every other step is a multiple of 16 bytes.
inline void check_aligned(const char* function, const char* argument, const Tensor& tensor,
                          int64_t axis, const char* requirement) {
  constexpr int64_t kAlignment = 16;
  const int64_t width = kAlignment / static_cast<int64_t>(tensor.element_size());
  bool fits = tensor.size(axis) == 1 || tensor.stride(axis) == 1;
  for (const int64_t other : {int64_t{0}, 3 - axis}) {
    fits = fits && (tensor.size(other) == 1 || tensor.stride(other) % width == 0);
  }
  const auto address = reinterpret_cast<uintptr_t>(tensor.const_data_ptr());
  if (!fits || address % kAlignment != 0) {
    fail_argument(function, argument, requirement,
                  "strides " + shape_text(tensor.strides()) + " at an address that leaves " +
                      std::to_string(address % kAlignment));
  }
}

}  // namespace detail

// What kernels on tensor cores ask for: rows that they can read 16 bytes at a time.
// `ocnet.ops._layout.aligned_rows` makes such rows.
inline void check_aligned_rows(const char* function, const char* argument, const Tensor& tensor) {
  detail::check_aligned(function, argument, tensor, 2,
                        "have channel stride 1 and rows aligned to 16 bytes");
}
// The same of channels whose tokens lie side by side.
inline void check_aligned_channels(const char* function, const char* argument,
                                   const Tensor& tensor) {
  detail::check_aligned(function, argument, tensor, 1,
                        "have token stride 1 and channels aligned to 16 bytes, as its query has");
}

template <typename T>
TokenMatrix<T> matrix(T* data, const Tensor& tensor) {
  return {data,
          tensor.stride(0),
          tensor.stride(1),
          tensor.stride(2),
          static_cast<int>(tensor.size(1)),
          static_cast<int>(tensor.size(2))};
}

template <typename scalar_t>
TokenMatrix<const scalar_t> input(const char* name, const std::optional<Tensor>& tensor) {
  if (!tensor.has_value()) return {};
  return matrix(kernel_input<scalar_t>(name, *tensor), *tensor);
}

template <typename scalar_t>
TokenMatrix<scalar_t> output(const char* name, const std::optional<Tensor>& tensor) {
  if (!tensor.has_value()) return {};
  return matrix(kernel_output<scalar_t>(name, *tensor), *tensor);
}

}  // namespace ocnet
