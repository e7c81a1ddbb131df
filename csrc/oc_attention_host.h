// SPDX-License-Identifier: MIT
// Argument checks that the host sides of the forward and the backward pass share.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include <torch/csrc/stable/tensor.h>

#include "common/checks.h"
#include "common/dispatch.h"
#include "common/token_tensors.h"

namespace ocnet {

struct Sizes {
  int64_t images, queries, keys, channels, value_channels;
};

inline Sizes check_inputs(const char* function, const Tensor& query,
                          const std::optional<Tensor>& key, const Tensor& value) {
  check_on_device(function, "query", query);
  check_dim(function, "query", 3, query);
  check_dim(function, "value", 3, value);
  check_sizes(function, "query", kLargestSize, query);
  check_sizes(function, "value", kLargestSize, value);
  // Shared keys are the queries.
  const int64_t keys = key.has_value() ? value.size(1) : query.size(1);
  const Sizes sizes{query.size(0), query.size(1), keys, query.size(2), value.size(2)};
  check_matrix(function, "value", query, {sizes.images, sizes.keys, sizes.value_channels}, value);
  if (key.has_value()) {
    check_matrix(function, "key", query, {sizes.images, sizes.keys, sizes.channels}, *key);
  }
  return sizes;
}

inline void check_lse(const char* function, const Tensor& query, const Sizes& sizes,
                      const Tensor& lse) {
  check_shape(function, "lse", {sizes.images, sizes.queries}, lse);
  check_dtype(function, "lse", accumulator_dtype(query.scalar_type()), lse);
  check_same_device(function, "lse", query, lse);
  check_contiguous(function, "lse", lse);
}

// What the tensor-core kernels take: aligned rows of as many channels as their tables know.
inline void check_operand(const char* function, const char* argument, const Tensor& tensor) {
  constexpr int64_t kMostChannels = 512;
  if (tensor.size(2) > kMostChannels) {
    fail_argument(function, argument, "have at most " + std::to_string(kMostChannels) + " channels",
                  std::to_string(tensor.size(2)));
  }
  check_aligned_rows(function, argument, tensor);
}

}  // namespace ocnet
