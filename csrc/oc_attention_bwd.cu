// SPDX-License-Identifier: MIT
// Host side of the backward pass on CUDA: checks, then launches. Kernels are in the .cuh files.
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <type_traits>
#include <vector>

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "oc_attention.h"
#include "oc_attention_delta.cuh"
#include "oc_attention_host.h"
#include "oc_attention_mma_bwd.cuh"
#include "oc_attention_simt_bwd.cuh"

namespace ocnet {

namespace {

constexpr const char* kFunction = "oc_attention_bwd";

// The arguments of a call, as kernels see them.
template <typename scalar_t>
struct Call {
  TokenMatrix<const scalar_t> query, key, value, grad_out;
  const accumulator_t<scalar_t>* lse;
  accumulator_t<scalar_t>* delta;
  double scale;
  TokenMatrix<scalar_t> grad_query, grad_key, grad_value;
  int64_t images;
  bool shared_keys;
};

void launch_simt(const Call<double>& call, const TensorLauncher& launch) {
  BwdParams params;
  params.query = call.query;
  params.key = call.key;
  params.value = call.value;
  params.grad_out = call.grad_out;
  params.lse = call.lse;
  params.delta = call.delta;
  params.scale = call.scale;
  params.grad_value = call.grad_value;
  launch_oc_attention_bwd(params, call.images, call.shared_keys, call.grad_query, call.grad_key,
                          launch);
}

// One pass for shared keys, or one whose blocks own keys and one whose blocks own queries.
template <typename Math, typename Workspace>
void launch_mma(const Call<typename Math::storage_t>& call, const Workspace& workspace,
                const TensorLauncher& launch) {
  using Params = MmaBwdParams<typename Math::storage_t>;
  const auto run = [&](Params params, bool as_query, bool as_key) {
    const bool tokens = params.grad_tokens.data != nullptr;
    if (as_query && tokens) {
      params.own_grad = call.grad_out;
      params.other_value = call.value;
    }
    if (as_key) {
      params.other_grad = call.grad_out;
      if (tokens) params.own_value = call.value;
    }
    params.lse = call.lse;
    params.delta = call.delta;
    params.scale = static_cast<float>(call.scale);
    launch_oc_attention_mma_bwd<Math>(params, call.images, workspace, launch);
  };
  const bool one_pass = call.shared_keys && call.grad_query.data != nullptr;
  const TokenMatrix<typename Math::storage_t> grad_key = one_pass ? call.grad_query : call.grad_key;
  if (grad_key.data != nullptr || call.grad_value.data != nullptr) {
    Params params;
    params.own = call.key;
    params.other = call.query;
    params.grad_tokens = grad_key;
    params.grad_value = call.grad_value;
    run(params, one_pass, true);
  }
  if (call.grad_query.data != nullptr && !one_pass) {
    Params params;
    params.own = call.query;
    params.other = call.key;
    params.grad_tokens = call.grad_query;
    run(params, true, false);
  }
}

}  // namespace

void oc_attention_bwd(Tensor grad_out, Tensor query, std::optional<Tensor> key, Tensor value,
                      Tensor out, Tensor lse, std::optional<Tensor> residual, double scale,
                      bool tf32, std::optional<Tensor> grad_query, std::optional<Tensor> grad_key,
                      std::optional<Tensor> grad_value) {
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
    if constexpr (!std::is_same_v<scalar_t, double>) {
      check_operand(kFunction, "query", query);
      if (key.has_value()) check_operand(kFunction, "key", *key);
      check_operand(kFunction, "value", value);
      check_operand(kFunction, "grad_out", grad_out);
    }
    const TensorLauncher launch(kFunction, query);
    const Tensor delta = torch::stable::empty_like(lse);
    Call<scalar_t> call;
    call.query = input<scalar_t>("query", query);
    call.key = key.has_value() ? input<scalar_t>("key", *key) : call.query;
    call.value = input<scalar_t>("value", value);
    call.grad_out = input<scalar_t>("grad_out", grad_out);
    call.lse = kernel_input<accumulator_t<scalar_t>>("lse", lse);
    call.delta = kernel_output<accumulator_t<scalar_t>>("delta", delta);
    call.scale = scale;
    call.grad_query = output<scalar_t>("grad_query", grad_query);
    call.grad_key = output<scalar_t>("grad_key", grad_key);
    call.grad_value = output<scalar_t>("grad_value", grad_value);
    call.images = sizes.images;
    call.shared_keys = !key.has_value();
    if (grad_query.has_value() || grad_key.has_value()) {
      DeltaParams<scalar_t> params;
      params.grad_out = call.grad_out;
      params.out = input<scalar_t>("out", out);
      params.residual = input<scalar_t>("residual", residual);
      params.delta = call.delta;
      params.tf32 = tf32;
      launch_oc_attention_bwd_delta(params, sizes.images, launch);
    }

    std::vector<Tensor> rooms;
    const auto workspace = [&](int64_t count) {
      rooms.push_back(torch::stable::new_empty(lse, {count}));
      return kernel_output<float>("workspace", rooms.back());
    };
    if constexpr (std::is_same_v<scalar_t, double>) {
      launch_simt(call, launch);
    } else if constexpr (!std::is_same_v<scalar_t, float>) {
      launch_mma<NarrowMath<scalar_t>>(call, workspace, launch);
    } else if (tf32) {
      launch_mma<TF32Math>(call, workspace, launch);
    } else {
      launch_mma<SplitMath>(call, workspace, launch);
    }
  });
}

}  // namespace ocnet
