// SPDX-License-Identifier: MIT
// Host side of the backward pass on CUDA: checks, then launches. Kernels are in the .cuh files.
#include <initializer_list>
#include <optional>

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "oc_attention.h"
#include "oc_attention_host.h"
#include "oc_attention_simt_bwd.cuh"

namespace ocnet {

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
