// SPDX-License-Identifier: MIT
// Attention on CUDA as its host sides call it, whether it has groups or not: one launch for all
// stages. And the checks that both passes share.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <torch/csrc/stable/tensor.h>

#include "common/checks.h"
#include "common/dispatch.h"
#include "common/groups.h"
#include "common/token_tensors.h"
#include "oc_attention_fwd_stage.cuh"

namespace ocnet {

struct ForwardTensors {
  Tensor query;
  std::optional<Tensor> key;
  Tensor value, out, lse;
  std::optional<Tensor> residual;
};

struct BackwardTensors {
  Tensor grad_out, query;
  std::optional<Tensor> key;
  Tensor value, out, lse;
  std::optional<Tensor> residual, grad_query, grad_key, grad_value;
};

struct AttentionCall {
  const char* function;
  double scale;
  bool tf32;
  // Of each stage; none where attention has no groups, and one stage.
  std::vector<Partition> partitions;
};

// Stages agree in which of their optional tensors are present. Everything is checked before
// anything is written.
void attend(const AttentionCall& call, const std::vector<ForwardTensors>& stages);
void attend_on_hopper(const AttentionCall& call, const std::vector<ForwardTensors>& stages);
void attend_backward(const AttentionCall& call, const std::vector<BackwardTensors>& stages);
void attend_backward_on_hopper(const AttentionCall& call,
                               const std::vector<BackwardTensors>& stages);

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

// A stage like the first one in dtype, device and channels, whose groups are of the same tokens on
// both sides.
template <typename Tensors>
void check_stage(const AttentionCall& call, const Tensors& first, const Tensors& stage) {
  check_matrix(call.function, "query", first.query,
               {stage.query.size(0), stage.query.size(1), first.query.size(2)}, stage.query);
  check_matrix(call.function, "value", first.query,
               {stage.query.size(0), stage.query.size(1), first.value.size(2)}, stage.value);
}

inline void check_lse(const char* function, const Tensor& query, const Sizes& sizes,
                      const Tensor& lse) {
  check_shape(function, "lse", {sizes.images, sizes.queries}, lse);
  check_dtype(function, "lse", accumulator_dtype(query.scalar_type()), lse);
  check_same_device(function, "lse", query, lse);
  check_contiguous(function, "lse", lse);
}

inline Sizes check_forward(const char* function, const ForwardTensors& tensors) {
  const Tensor& query = tensors.query;
  const Sizes sizes = check_inputs(function, query, tensors.key, tensors.value);
  const auto check = [&](const char* argument, const Tensor& tensor) {
    check_matrix(function, argument, query, {sizes.images, sizes.queries, sizes.value_channels},
                 tensor);
  };
  check("out", tensors.out);
  if (tensors.residual.has_value()) {
    if (query.scalar_type() == accumulator_dtype(query.scalar_type())) {
      fail_argument(function, "residual", "be absent where nothing is rounded",
                    torch::headeronly::toString(query.scalar_type()));
    }
    check("residual", *tensors.residual);
  }
  check_lse(function, query, sizes, tensors.lse);
  return sizes;
}

// Of the last stage: without groups, of the only one.
inline Sizes check_forward(const AttentionCall& call, const std::vector<ForwardTensors>& stages) {
  Sizes sizes;
  for (const ForwardTensors& stage : stages) {
    sizes = check_forward(call.function, stage);
    if (!call.partitions.empty()) check_stage(call, stages[0], stage);
  }
  return sizes;
}

inline Sizes check_backward(const char* function, const BackwardTensors& tensors) {
  const Tensor& query = tensors.query;
  const Sizes sizes = check_inputs(function, query, tensors.key, tensors.value);
  const auto check = [&](const char* argument, std::initializer_list<int64_t> shape,
                         const std::optional<Tensor>& tensor) {
    if (tensor.has_value()) check_matrix(function, argument, query, shape, *tensor);
  };
  check("out", {sizes.images, sizes.queries, sizes.value_channels}, tensors.out);
  check("grad_out", {sizes.images, sizes.queries, sizes.value_channels}, tensors.grad_out);
  check("residual", {sizes.images, sizes.queries, sizes.value_channels}, tensors.residual);
  check_lse(function, query, sizes, tensors.lse);
  check("grad_query", {sizes.images, sizes.queries, sizes.channels}, tensors.grad_query);
  if (tensors.grad_key.has_value() && !tensors.key.has_value()) {
    fail_argument(function, "grad_key", "be absent without a key", "a tensor");
  }
  check("grad_key", {sizes.images, sizes.keys, sizes.channels}, tensors.grad_key);
  check("grad_value", {sizes.images, sizes.keys, sizes.value_channels}, tensors.grad_value);
  return sizes;
}

// Elsewhere the kernels on Hopper's own instructions are empty.
inline void check_hopper(const char* function, const Tensor& query) {
  constexpr int kHopper = 90;
  const int capability = compute_capability(query);
  if (capability != kHopper) {
    fail_argument(function, "query", "be on a device of compute capability 9.0",
                  std::to_string(capability / 10) + "." + std::to_string(capability % 10));
  }
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

// A number for each token: (N, L, 1).
template <typename T>
TokenMatrix<T> per_token(T* data, const Tensor& tensor) {
  const auto tokens = static_cast<int>(tensor.size(1));
  return {data, tokens, 1, 1, tokens, 1};
}

template <typename scalar_t>
FwdStage<scalar_t> forward_stage(const ForwardTensors& from) {
  FwdStage<scalar_t> to;
  to.query = input<scalar_t>("query", from.query);
  to.key = from.key.has_value() ? input<scalar_t>("key", *from.key) : to.query;
  to.value = input<scalar_t>("value", from.value);
  to.out = output<scalar_t>("out", from.out);
  to.residual = output<scalar_t>("residual", from.residual);
  to.lse = per_token(kernel_output<accumulator_t<scalar_t>>("lse", from.lse), from.lse);
  return to;
}

// The groups of a stage, of which blocks own the tokens of one side, and stream those of the other.
inline StageWork stage_work(const AttentionCall& call, size_t stage, int64_t images, int owned,
                            int streamed) {
  return {static_cast<int>(images),
          call.partitions.empty() ? one_group(owned) : call.partitions[stage], streamed};
}

}  // namespace ocnet
