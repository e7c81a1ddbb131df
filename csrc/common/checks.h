// SPDX-License-Identifier: MIT
// Argument checks of native ops: what protects memory. Texts read
// `<function>: <argument> must <requirement>, got <value>`; they become a RuntimeError in Python.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <sstream>
#include <stdexcept>
#include <string>

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

namespace ocnet {

[[noreturn]] inline void fail_argument(const char* function, const char* argument,
                                       const std::string& requirement, const std::string& got) {
  throw std::runtime_error(std::string(function) + ": " + argument + " must " + requirement +
                           ", got " + got);
}

// "(2, 9, 4)" of anything that can be iterated over.
template <typename Sizes>
std::string shape_text(const Sizes& sizes) {
  std::ostringstream text;
  const char* separator = "(";
  for (const int64_t size : sizes) {
    text << separator << size;
    separator = ", ";
  }
  text << ")";
  return text.str();
}

inline void check_dim(const char* function, const char* argument, int64_t dim,
                      const torch::stable::Tensor& tensor) {
  if (tensor.dim() != dim) {
    fail_argument(function, argument, "have " + std::to_string(dim) + " dimensions",
                  std::to_string(tensor.dim()));
  }
}

inline void check_shape(const char* function, const char* argument,
                        std::initializer_list<int64_t> expected,
                        const torch::stable::Tensor& tensor) {
  const auto sizes = tensor.sizes();
  bool equal = sizes.size() == expected.size();
  size_t index = 0;
  for (const int64_t size : expected) {
    equal = equal && sizes[index] == size;
    ++index;
  }
  if (!equal) {
    fail_argument(function, argument, "have shape " + shape_text(expected), shape_text(sizes));
  }
}

// Every size at least 1 and at most `limit`: kernels count tokens and channels in 32 bits.
inline void check_sizes(const char* function, const char* argument, int64_t limit,
                        const torch::stable::Tensor& tensor) {
  for (const int64_t size : tensor.sizes()) {
    if (size < 1 || size > limit) {
      fail_argument(function, argument, "have sizes from 1 to " + std::to_string(limit),
                    shape_text(tensor.sizes()));
    }
  }
}

inline void check_dtype(const char* function, const char* argument,
                        torch::headeronly::ScalarType expected,
                        const torch::stable::Tensor& tensor) {
  if (tensor.scalar_type() != expected) {
    fail_argument(function, argument,
                  std::string("have dtype ") + torch::headeronly::toString(expected),
                  torch::headeronly::toString(tensor.scalar_type()));
  }
}

inline std::string device_text(const torch::stable::Tensor& tensor) {
  const std::string type = tensor.is_cuda() ? "cuda" : tensor.is_cpu() ? "cpu" : "another device";
  const int32_t index = tensor.get_device_index();
  return index < 0 ? type : type + ":" + std::to_string(index);
}

inline void check_same_device(const char* function, const char* argument,
                              const torch::stable::Tensor& reference,
                              const torch::stable::Tensor& tensor) {
  if (tensor.is_cuda() != reference.is_cuda() || tensor.is_cpu() != reference.is_cpu() ||
      tensor.get_device_index() != reference.get_device_index()) {
    fail_argument(function, argument, "be on " + device_text(reference), device_text(tensor));
  }
}

inline void check_contiguous(const char* function, const char* argument,
                             const torch::stable::Tensor& tensor) {
  if (!tensor.is_contiguous()) {
    fail_argument(function, argument, "be contiguous", "strides " + shape_text(tensor.strides()));
  }
}

}  // namespace ocnet
