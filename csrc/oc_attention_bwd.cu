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

using Stages = std::vector<BackwardTensors>;

// A stage, as kernels see it.
template <typename scalar_t>
struct Matrices {
  TokenMatrix<const scalar_t> query, key, value, grad_out, out, residual;
  TokenMatrix<const accumulator_t<scalar_t>> lse, delta;
  accumulator_t<scalar_t>* delta_out;
  TokenMatrix<scalar_t> grad_query, grad_key, grad_value;
};

void check_operands(const char* function, const BackwardTensors& tensors) {
  check_operand(function, "query", tensors.query);
  if (tensors.key.has_value()) check_operand(function, "key", *tensors.key);
  check_operand(function, "value", tensors.value);
  check_operand(function, "grad_out", tensors.grad_out);
}

template <typename scalar_t>
Matrices<scalar_t> matrices(const BackwardTensors& tensors, const Tensor& delta) {
  using acc_t = accumulator_t<scalar_t>;
  Matrices<scalar_t> all;
  all.query = input<scalar_t>("query", tensors.query);
  all.key = tensors.key.has_value() ? input<scalar_t>("key", *tensors.key) : all.query;
  all.value = input<scalar_t>("value", tensors.value);
  all.grad_out = input<scalar_t>("grad_out", tensors.grad_out);
  all.out = input<scalar_t>("out", tensors.out);
  all.residual = input<scalar_t>("residual", tensors.residual);
  all.lse = per_token(kernel_input<acc_t>("lse", tensors.lse), tensors.lse);
  all.delta_out = kernel_output<acc_t>("delta", delta);
  all.delta = per_token<const acc_t>(all.delta_out, delta);
  all.grad_query = output<scalar_t>("grad_query", tensors.grad_query);
  all.grad_key = output<scalar_t>("grad_key", tensors.grad_key);
  all.grad_value = output<scalar_t>("grad_value", tensors.grad_value);
  return all;
}

// Calls run(as_query, as_key) for each pass: one for shared keys, or one whose blocks own keys and
// one whose blocks own queries, where their gradients are wanted.
template <typename Run>
void each_pass(const BackwardTensors& tensors, const Run& run) {
  const bool query = tensors.grad_query.has_value();
  const bool one_pass = query && !tensors.key.has_value();
  if (one_pass || tensors.grad_key.has_value() || tensors.grad_value.has_value()) {
    run(one_pass, true);
  }
  if (query && !one_pass) run(true, false);
}

// What blocks of a pass own, and what streams past them.
WorkTable pass_work(const AttentionCall& call, const Stages& stages, bool as_key) {
  std::vector<StageWork> work;
  for (size_t i = 0; i < stages.size(); ++i) {
    const auto queries = static_cast<int>(stages[i].query.size(1));
    const auto keys = static_cast<int>(stages[i].value.size(1));
    work.push_back(stage_work(call, i, stages[i].query.size(0), as_key ? keys : queries,
                              as_key ? queries : keys));
  }
  return list_work(work);
}

template <typename scalar_t>
void launch_delta(const Stages& stages, const std::vector<Matrices<scalar_t>>& matrices, bool tf32,
                  const TensorLauncher& launch) {
  DeltaParams<scalar_t> params;
  params.tf32 = tf32;
  std::vector<StageWork> work;
  for (size_t i = 0; i < stages.size(); ++i) {
    const Matrices<scalar_t>& from = matrices[i];
    params.stages[i] = {from.grad_out, from.out, from.residual, from.delta_out, nullptr,
                        nullptr,       0};
    work.push_back({static_cast<int>(stages[i].query.size(0)), one_group(from.out.tokens), 0});
  }
  params.work = list_work(work);
  launch_oc_attention_bwd_delta(params, launch);
}

void launch_simt(const AttentionCall& call, const Stages& stages,
                 const std::vector<Matrices<double>>& matrices, const TensorLauncher& launch) {
  each_pass(stages[0], [&](bool as_query, bool as_key) {
    BwdParams params;
    params.scale = call.scale;
    params.work = pass_work(call, stages, as_key);
    for (size_t i = 0; i < stages.size(); ++i) {
      const Matrices<double>& from = matrices[i];
      params.stages[i] = {from.query,
                          from.key,
                          from.value,
                          from.grad_out,
                          from.lse,
                          from.delta,
                          as_query ? from.grad_query : from.grad_key,
                          as_key ? from.grad_value : TokenMatrix<double>{}};
    }
    if (as_query && as_key) {
      launch_oc_attention_bwd<Role::kBoth>(params, launch);
    } else if (as_key) {
      launch_oc_attention_bwd<Role::kKey>(params, launch);
    } else {
      launch_oc_attention_bwd<Role::kQuery>(params, launch);
    }
  });
}

template <typename Math, typename Workspace>
void launch_mma(const AttentionCall& call, const Stages& stages,
                const std::vector<Matrices<typename Math::storage_t>>& matrices,
                const Workspace& workspace, const TensorLauncher& launch) {
  each_pass(stages[0], [&](bool as_query, bool as_key) {
    MmaBwdParams<typename Math::storage_t> params;
    params.scale = static_cast<float>(call.scale);
    params.work = pass_work(call, stages, as_key);
    for (size_t i = 0; i < stages.size(); ++i) {
      const Matrices<typename Math::storage_t>& from = matrices[i];
      MmaBwdStage<typename Math::storage_t>& to = params.stages[i];
      to.own = as_key ? from.key : from.query;
      to.other = as_key ? from.query : from.key;
      to.lse = from.lse;
      to.delta = from.delta;
      to.grad_tokens = as_query ? from.grad_query : from.grad_key;
      const bool tokens = to.grad_tokens.data != nullptr;
      if (as_query && tokens) {
        to.own_grad = from.grad_out;
        to.other_value = from.value;
      }
      if (as_key) {
        to.other_grad = from.grad_out;
        to.grad_value = from.grad_value;
        if (tokens) to.own_value = from.value;
      }
    }
    launch_oc_attention_mma_bwd<Math>(call.function, params, call.partitions.empty(), workspace,
                                      launch);
  });
}

}  // namespace

void attend_backward(const AttentionCall& call, const Stages& stages) {
  const BackwardTensors& first = stages[0];
  for (const BackwardTensors& stage : stages) {
    check_backward(call.function, stage);
    if (!call.partitions.empty()) check_stage(call, first, stage);
  }
  dispatch_floating(first.query.scalar_type(), call.function, "query", [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    if constexpr (!std::is_same_v<scalar_t, double>) {
      for (const BackwardTensors& stage : stages) check_operands(call.function, stage);
    }
    const TensorLauncher launch(call.function, first.query);
    std::vector<Tensor> rooms;
    std::vector<Matrices<scalar_t>> all;
    for (const BackwardTensors& stage : stages) {
      rooms.push_back(torch::stable::empty_like(stage.lse));
      all.push_back(matrices<scalar_t>(stage, rooms.back()));
    }
    if (first.grad_query.has_value() || first.grad_key.has_value()) {
      launch_delta(stages, all, call.tf32, launch);
    }
    const auto workspace = [&](int64_t count) {
      rooms.push_back(torch::stable::new_empty(first.lse, {count}));
      return kernel_output<float>("workspace", rooms.back());
    };
    if constexpr (std::is_same_v<scalar_t, double>) {
      launch_simt(call, stages, all, launch);
    } else if constexpr (!std::is_same_v<scalar_t, float>) {
      launch_mma<NarrowMath<scalar_t>>(call, stages, all, workspace, launch);
    } else if (call.tf32) {
      launch_mma<TF32Math>(call, stages, all, workspace, launch);
    } else {
      launch_mma<SplitMath>(call, stages, all, workspace, launch);
    }
  });
}

void oc_attention_bwd(Tensor grad_out, Tensor query, std::optional<Tensor> key, Tensor value,
                      Tensor out, Tensor lse, std::optional<Tensor> residual, double scale,
                      bool tf32, std::optional<Tensor> grad_query, std::optional<Tensor> grad_key,
                      std::optional<Tensor> grad_value) {
  attend_backward(
      {"oc_attention_bwd", scale, tf32, {}},
      {{grad_out, query, key, value, out, lse, residual, grad_query, grad_key, grad_value}});
}

}  // namespace ocnet
