// SPDX-License-Identifier: MIT
// Host side of the forward pass on CUDA: checks, workspace, launches. Kernels are in the .cuh
// files: fp64 is multiplied by threads, everything else by tensor cores.
#include <optional>

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "oc_attention.h"
#include "oc_attention_host.h"
#include "oc_attention_mma_fwd.cuh"
#include "oc_attention_simt_fwd.cuh"

namespace ocnet {
namespace {

using Stages = std::vector<ForwardTensors>;

template <typename Params, typename scalar_t>
Params matrices(const AttentionCall& call, const Stages& stages) {
  Params params;
  std::vector<StageWork> work;
  for (size_t i = 0; i < stages.size(); ++i) {
    params.stages[i] = forward_stage<scalar_t>(stages[i]);
    const FwdStage<scalar_t>& to = params.stages[i];
    work.push_back(stage_work(call, i, stages[i].query.size(0), to.query.tokens, to.value.tokens));
  }
  params.work = list_work(work);
  return params;
}

template <typename Math>
void multiply_on_tensor_cores(const AttentionCall& call, const Stages& stages, const Sizes& sizes) {
  using scalar_t = typename Math::storage_t;
  for (const ForwardTensors& stage : stages) {
    check_operand(call.function, "query", stage.query);
    if (stage.key.has_value()) check_operand(call.function, "key", *stage.key);
    check_operand(call.function, "value", stage.value);
  }
  const Tensor& query = stages[0].query;
  const TensorLauncher launch(call.function, query);
  const AttentionShape shape{sizes.images,
                             static_cast<int>(sizes.queries),
                             static_cast<int>(sizes.keys),
                             static_cast<int>(sizes.channels),
                             static_cast<int>(sizes.value_channels),
                             arithmetic_of<Math>()};
  auto params = matrices<MmaFwdParams<scalar_t>, scalar_t>(call, stages);
  params.scale_log2 = static_cast<float>(call.scale * kLog2E);
  const size_t room = launch.shared_limit() - kGroupBytes;
  params.plan = call.partitions.empty() ? plan_forward(shape, room, launch.multiprocessors())
                                        : plan_groups(shape, !stages[0].key.has_value(),
                                                      params.work, room, launch.multiprocessors());
  if (params.plan.warps == 0) {
    fail_argument(call.function, "query",
                  "have channels that fit the " + std::to_string(launch.shared_limit()) +
                      " bytes of shared memory of a block",
                  shape_text(query.sizes()));
  }
  deal_forward(params.work, params.plan);
  // Freed when this returns, and reused after the kernels: the allocator knows the stream.
  std::optional<Tensor> workspace;
  float* words = nullptr;
  if (params.plan.splits > 1) {
    workspace = torch::stable::new_empty(query, {workspace_words(shape, params.plan)},
                                         torch::headeronly::ScalarType::Float);
    words = kernel_output<float>("workspace", *workspace);
  }
  launch_oc_attention_mma_fwd<Math>(params, shape, words, launch);
}

}  // namespace

void attend(const AttentionCall& call, const std::vector<ForwardTensors>& stages) {
  const Tensor& query = stages[0].query;
  const Sizes sizes = check_forward(call, stages);
  dispatch_floating(query.scalar_type(), call.function, "query", [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    if constexpr (std::is_same_v<scalar_t, double>) {
      auto params = matrices<FwdParams<double>, double>(call, stages);
      params.scale = call.scale;
      launch_oc_attention_fwd(params, TensorLauncher(call.function, query));
    } else if constexpr (std::is_same_v<scalar_t, float>) {
      if (call.tf32) {
        multiply_on_tensor_cores<TF32Math>(call, stages, sizes);
      } else {
        multiply_on_tensor_cores<SplitMath>(call, stages, sizes);
      }
    } else {
      multiply_on_tensor_cores<NarrowMath<scalar_t>>(call, stages, sizes);
    }
  });
}

void oc_attention_fwd(Tensor query, std::optional<Tensor> key, Tensor value, double scale,
                      bool tf32, Tensor out, Tensor lse, std::optional<Tensor> residual) {
  attend({"oc_attention_fwd", scale, tf32, {}}, {{query, key, value, out, lse, residual}});
}

}  // namespace ocnet
