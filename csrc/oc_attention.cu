// SPDX-License-Identifier: MIT
// Host side of pixel-wise attention on CUDA: checks, then launches. Kernels are in the .cuh files.
#include <cstdint>
#include <initializer_list>
#include <optional>

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "common/checks.h"
#include "common/dispatch.h"
#include "common/torch_launch.h"
#include "oc_attention.h"
#include "oc_attention_bwd.cuh"
#include "oc_attention_fwd.cuh"

namespace ocnet {
namespace {

using torch::stable::Tensor;

// Tokens and channels are counted in 32 bits, with room for a tile beyond the last one.
constexpr int64_t kLargestSize = int64_t{1} << 30;

struct Sizes {
  int64_t images, queries, keys, channels, value_channels;
};

// A token matrix of the given shape, like the query in dtype and device.
void check_matrix(const char* function, const char* argument, const Tensor& query,
                  std::initializer_list<int64_t> shape, const Tensor& tensor) {
  check_shape(function, argument, shape, tensor);
  check_dtype(function, argument, query.scalar_type(), tensor);
  check_same_device(function, argument, query, tensor);
}

Sizes check_inputs(const char* function, const Tensor& query, const std::optional<Tensor>& key,
                   const Tensor& value) {
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

void check_lse(const char* function, const Tensor& query, const Sizes& sizes, const Tensor& lse) {
  check_shape(function, "lse", {sizes.images, sizes.queries}, lse);
  check_dtype(function, "lse", accumulator_dtype(query.scalar_type()), lse);
  check_same_device(function, "lse", query, lse);
  check_contiguous(function, "lse", lse);
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

}  // namespace

void oc_attention_fwd(Tensor query, std::optional<Tensor> key, Tensor value, double scale,
                      bool /*tf32*/, Tensor out, Tensor lse, std::optional<Tensor> residual) {
  constexpr const char* kFunction = "oc_attention_fwd";
  const Sizes sizes = check_inputs(kFunction, query, key, value);
  const auto check = [&](const char* argument, const Tensor& tensor) {
    check_matrix(kFunction, argument, query, {sizes.images, sizes.queries, sizes.value_channels},
                 tensor);
  };
  check("out", out);
  if (residual.has_value()) check("residual", *residual);
  check_lse(kFunction, query, sizes, lse);

  dispatch_floating(query.scalar_type(), kFunction, "query", [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    using acc_t = accumulator_t<scalar_t>;
    FwdParams<scalar_t> params;
    params.query = input<scalar_t>("query", query);
    params.key = key.has_value() ? input<scalar_t>("key", *key) : params.query;
    params.value = input<scalar_t>("value", value);
    params.out = output<scalar_t>("out", out);
    params.residual = output<scalar_t>("residual", residual);
    params.lse = kernel_output<acc_t>("lse", lse);
    params.scale = static_cast<acc_t>(scale);
    const TensorLauncher launch(kFunction, query);
    launch_oc_attention_fwd(params, sizes.images, launch);
  });
}

void oc_attention_bwd(Tensor grad_out, Tensor query, std::optional<Tensor> key, Tensor value,
                      Tensor out, Tensor lse, std::optional<Tensor> residual, double scale,
                      bool /*tf32*/, std::optional<Tensor> grad_query,
                      std::optional<Tensor> grad_key, std::optional<Tensor> grad_value) {
  constexpr const char* kFunction = "oc_attention_bwd";
  const Sizes sizes = check_inputs(kFunction, query, key, value);
  const auto check = [&](const char* argument, std::initializer_list<int64_t> shape,
                         const Tensor& tensor) {
    check_matrix(kFunction, argument, query, shape, tensor);
  };
  check("out", {sizes.images, sizes.queries, sizes.value_channels}, out);
  check("grad_out", {sizes.images, sizes.queries, sizes.value_channels}, grad_out);
  if (residual.has_value()) {
    check("residual", {sizes.images, sizes.queries, sizes.value_channels}, *residual);
  }
  check_lse(kFunction, query, sizes, lse);
  if (grad_query.has_value()) {
    check("grad_query", {sizes.images, sizes.queries, sizes.channels}, *grad_query);
  }
  if (grad_key.has_value()) {
    if (!key.has_value()) {
      fail_argument(kFunction, "grad_key", "be absent without a key", "a tensor");
    }
    check("grad_key", {sizes.images, sizes.keys, sizes.channels}, *grad_key);
  }
  if (grad_value.has_value()) {
    check("grad_value", {sizes.images, sizes.keys, sizes.value_channels}, *grad_value);
  }

  dispatch_floating(query.scalar_type(), kFunction, "query", [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    using acc_t = accumulator_t<scalar_t>;
    const TensorLauncher launch(kFunction, query);
    const Tensor delta = torch::stable::empty_like(lse);
    BwdParams<scalar_t> params;
    params.query = input<scalar_t>("query", query);
    params.key = key.has_value() ? input<scalar_t>("key", *key) : params.query;
    params.value = input<scalar_t>("value", value);
    params.out = input<scalar_t>("out", out);
    params.residual = input<scalar_t>("residual", residual);
    params.grad_out = input<scalar_t>("grad_out", grad_out);
    params.lse = kernel_input<acc_t>("lse", lse);
    params.delta = kernel_output<acc_t>("delta", delta);
    params.scale = static_cast<acc_t>(scale);
    params.grad_value = output<scalar_t>("grad_value", grad_value);
    launch_oc_attention_bwd(params, sizes.images, !key.has_value(),
                            output<scalar_t>("grad_query", grad_query),
                            output<scalar_t>("grad_key", grad_key), launch);
  });
}

}  // namespace ocnet
