// SPDX-License-Identifier: MIT
// What the host sides of the CPU and the CUDA library make of the lists of a call.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <torch/csrc/stable/tensor.h>

#include "common/checks.h"
#include "common/segments.h"
#include "partitioned_attention.h"

namespace ocnet {

// Lists have one tensor for each stage; `optional` ones may be empty.
inline void check_list(const char* function, const char* argument, size_t stages, bool optional,
                       const TensorList& list) {
  if (list.size() != stages && !(optional && list.empty())) {
    fail_argument(function, argument,
                  "have a tensor for each of the " + std::to_string(stages) + " stages",
                  std::to_string(list.size()));
  }
}

inline void check_stage_count(const char* function, const TensorList& query) {
  if (query.empty() || query.size() > kMostStages) {
    fail_argument(function, "query", "have 1 to " + std::to_string(kMostStages) + " stages",
                  std::to_string(query.size()));
  }
}

// Check the lists of a call, and return how many stages it has.
inline size_t check_forward_lists(const char* function, const TensorList& query,
                                  const TensorList& key, const TensorList& value,
                                  const TensorList& out, const TensorList& lse,
                                  const TensorList& residual) {
  check_stage_count(function, query);
  const size_t count = query.size();
  check_list(function, "key", count, true, key);
  check_list(function, "value", count, false, value);
  check_list(function, "out", count, false, out);
  check_list(function, "lse", count, false, lse);
  check_list(function, "residual", count, true, residual);
  return count;
}
inline size_t check_backward_lists(const char* function, const TensorList& grad_out,
                                   const TensorList& query, const TensorList& key,
                                   const TensorList& value, const TensorList& out,
                                   const TensorList& lse, const TensorList& residual,
                                   const TensorList& grad_query, const TensorList& grad_key,
                                   const TensorList& grad_value) {
  check_stage_count(function, query);
  const size_t count = query.size();
  check_list(function, "grad_out", count, false, grad_out);
  check_forward_lists(function, query, key, value, out, lse, residual);
  check_list(function, "grad_query", count, true, grad_query);
  check_list(function, "grad_key", count, true, grad_key);
  check_list(function, "grad_value", count, true, grad_value);
  return count;
}

inline std::optional<torch::stable::Tensor> stage_of(const TensorList& list, size_t stage) {
  return list.empty() ? std::nullopt : std::optional<torch::stable::Tensor>(list[stage]);
}

namespace detail {

// Whether every position is in one group, and no group is empty.
inline bool is_axis(const int64_t (&numbers)[4]) {
  const auto [size, count, step, stride] = numbers;
  constexpr int64_t kLargest = int64_t{1} << 30;
  if (size < 1 || size > kLargest || count < 1 || count > size || step < 1 || step > size) {
    return false;
  }
  return stride > 1 ? step == 1 && stride == count : stride == 1 && (count - 1) * step < size;
}

}  // namespace detail

// The partition of a stage whose maps have `tokens` pixels.
inline Partition stage_partition(const char* function, const std::vector<int64_t>& numbers,
                                 size_t stage, int64_t tokens) {
  GroupAxis axes[2];
  for (size_t i = 0; i < 2; ++i) {
    const int64_t* const at = numbers.data() + 8 * stage + 4 * i;
    const int64_t axis[4] = {at[0], at[1], at[2], at[3]};
    if (!detail::is_axis(axis)) {
      fail_argument(function, "partition", "deal every position of an axis to one group",
                    shape_text(std::vector<int64_t>(at, at + 4)));
    }
    axes[i] = {static_cast<int>(axis[0]), static_cast<int>(axis[1]), static_cast<int>(axis[2]),
               static_cast<int>(axis[3])};
  }
  if (int64_t{axes[0].size} * axes[1].size != tokens) {
    fail_argument(function, "partition",
                  "be of a map of as many pixels as query has tokens, " + std::to_string(tokens),
                  std::to_string(axes[0].size) + " x " + std::to_string(axes[1].size));
  }
  return {axes[0], axes[1]};
}

inline void check_partition_numbers(const char* function, const std::vector<int64_t>& numbers,
                                    size_t stages) {
  if (numbers.size() != 8 * stages) {
    fail_argument(function, "partition", "have 8 numbers for each stage",
                  std::to_string(numbers.size()));
  }
}

}  // namespace ocnet
