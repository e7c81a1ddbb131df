// SPDX-License-Identifier: MIT
// Host side of the forward pass on Hopper's own instructions: checks and workspace.
#include <optional>
#include <string>
#include <vector>

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "oc_attention_hopper.h"
#include "oc_attention_hopper_launch.cuh"
#include "oc_attention_hopper_plan.h"
#include "oc_attention_host.h"

namespace ocnet {
namespace {

using Stages = std::vector<ForwardTensors>;

bool is_channel_major(const Tensor& tensor) {
  return tensor.stride(1) == 1 && tensor.stride(2) != 1 && tensor.size(2) > 1;
}

// Token-major operands, as the other tensor-core kernels take them, or all of them channel-major.
HopperSource check_source(const AttentionCall& call, const Stages& stages) {
  const auto check = [&](const auto& each) {
    for (const ForwardTensors& stage : stages) {
      each("query", stage.query);
      if (stage.key.has_value()) each("key", *stage.key);
      each("value", stage.value);
    }
  };
  const bool has_groups = !call.partitions.empty();
  if (has_groups || !is_channel_major(stages[0].query)) {
    check([&](const char* argument, const Tensor& tensor) {
      check_aligned_rows(call.function, argument, tensor);
    });
    return has_groups ? HopperSource::kGroups : HopperSource::kTokenMajor;
  }
  check([&](const char* argument, const Tensor& tensor) {
    check_aligned_channels(call.function, argument, tensor);
  });
  return HopperSource::kChannelMajor;
}

void check_channels(const AttentionCall& call, const Sizes& sizes) {
  const auto check = [&](const char* argument, int64_t channels, int64_t most) {
    if (channels > most) {
      fail_argument(call.function, argument, "have at most " + std::to_string(most) + " channels",
                    std::to_string(channels));
    }
  };
  check("query", sizes.channels, kHopperMostChannels);
  check("value", sizes.value_channels, kHopperMostValues);
}

template <typename Tile>
void run_tile(const AttentionCall& call, const Stages& stages, const Sizes& sizes) {
  using scalar_t = typename Tile::scalar_t;
  constexpr int kTileRows = Tile::kCluster * kHopperRows;
  const Tensor& query = stages[0].query;
  const TensorLauncher launch(call.function, query);
  HopperFwdParams<scalar_t> params;
  std::vector<StageWork> work;
  for (size_t i = 0; i < stages.size(); ++i) {
    params.stages[i] = forward_stage<scalar_t>(stages[i]);
    const FwdStage<scalar_t>& stage = params.stages[i];
    work.push_back(
        stage_work(call, i, stages[i].query.size(0), stage.query.tokens, stage.value.tokens));
  }
  params.work = list_work(work);
  params.scale_log2 = static_cast<float>(call.scale * kLog2E);
  const int slices = static_cast<int>(ceil_div(sizes.value_channels, Tile::kValues));
  params.plan = deal_hopper(params.work, !call.partitions.empty(), kTileRows, Tile::kCols, slices,
                            max_of(launch.multiprocessors() / Tile::kCluster, 1));
  // Freed when this returns, and reused after the kernels: the allocator knows the stream.
  std::optional<Tensor> workspace;
  if (params.plan.steps > 0) {
    workspace =
        torch::stable::new_empty(query, {hopper_part_words(params.plan, kTileRows, Tile::kValues)},
                                 torch::headeronly::ScalarType::Float);
    params.partial = kernel_output<float>("workspace", *workspace);
  }
  launch_oc_attention_hopper<Tile>(call.function, params, sizes.images, launch);
}

template <typename Tile>
bool run_if_wide_enough(const AttentionCall& call, const Stages& stages, const Sizes& sizes,
                        HopperSource source) {
  const int64_t values = sizes.value_channels < 256 ? sizes.value_channels : 256;
  if (source != Tile::kSource || sizes.channels > Tile::kChannels || values > Tile::kValues) {
    return false;
  }
  run_tile<Tile>(call, stages, sizes);
  return true;
}

template <typename scalar_t>
void run(const AttentionCall& call, const Stages& stages, const Sizes& sizes, HopperSource source) {
#define OCNET_TRY(kind, channels, values, cols)                                             \
  if (run_if_wide_enough<HopperTile<scalar_t, channels, values, cols, HopperSource::kind>>( \
          call, stages, sizes, source)) {                                                   \
    return;                                                                                 \
  }
  OCNET_HOPPER_ROWS(OCNET_TRY)
#undef OCNET_TRY
}

}  // namespace

void attend_on_hopper(const AttentionCall& call, const Stages& stages) {
  const Sizes sizes = check_forward(call, stages);
  check_channels(call, sizes);
  const HopperSource source = check_source(call, stages);
  const auto dtype = stages[0].query.scalar_type();
  if (dtype == torch::headeronly::ScalarType::BFloat16) {
    run<BFloat16>(call, stages, sizes, source);
  } else if (dtype == torch::headeronly::ScalarType::Half) {
    run<Float16>(call, stages, sizes, source);
  } else {
    fail_argument(call.function, "query", "have dtype BFloat16 or Half",
                  torch::headeronly::toString(dtype));
  }
}

void oc_attention_hopper_fwd(Tensor query, std::optional<Tensor> key, Tensor value, double scale,
                             Tensor out, Tensor lse, std::optional<Tensor> residual) {
  attend_on_hopper({"oc_attention_hopper_fwd", scale, false, {}},
                   {{query, key, value, out, lse, residual}});
}

}  // namespace ocnet
