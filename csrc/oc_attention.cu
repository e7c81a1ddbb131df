// SPDX-License-Identifier: MIT
// Host side of the forward pass on CUDA: checks, then launches. Kernels are in the .cuh files.
#include <optional>

#include <torch/csrc/stable/tensor.h>

#include "oc_attention.h"
#include "oc_attention_host.h"
#include "oc_attention_simt_fwd.cuh"

namespace ocnet {

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

}  // namespace ocnet
