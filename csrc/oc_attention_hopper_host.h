// SPDX-License-Identifier: MIT
// What the host sides of the forward kernels on Hopper's own instructions share: from a checked
// call to its launches.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "oc_attention_hopper_launch.cuh"
#include "oc_attention_hopper_plan.h"
#include "oc_attention_host.h"

namespace ocnet {

using HopperStages = std::vector<ForwardTensors>;

// Strict fp32, without groups; checked like the others. Operands may have any strides.
void attend_in_parts_on_hopper(const AttentionCall& call, const ForwardTensors& tensors,
                               const Sizes& sizes);

template <typename Tile>
bool is_wide_enough(const Sizes& sizes) {
  const int64_t values = sizes.value_channels < 256 ? sizes.value_channels : 256;
  return sizes.channels <= Tile::kChannels && values <= Tile::kValues;
}

// Deals the work of a call, and launches its kernel and the combination of parts. `maps_of(stage)`
// makes the maps that the kernel reads its only stage by.
template <typename Tile, typename Kernel, typename MapsOf>
void run_hopper(const AttentionCall& call, const HopperStages& stages, const Sizes& sizes,
                const TensorLauncher& launch, Kernel kernel, const MapsOf& maps_of) {
  using scalar_t = typename Tile::scalar_t;
  constexpr int kTileRows = Tile::kCluster * Tile::kRows;
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
                            launch.multiprocessors() / Tile::kCluster);
  params.maps = maps_of(params.stages[0]);
  // Freed when this returns, and reused after the kernels: the allocator knows the stream.
  std::optional<Tensor> workspace;
  if (params.plan.steps > 0) {
    workspace = torch::stable::new_empty(stages[0].query,
                                         {hopper_part_words(params.plan, kTileRows, Tile::kValues)},
                                         torch::headeronly::ScalarType::Float);
    params.partial = kernel_output<float>("workspace", *workspace);
  }
  launch_hopper<Tile>(params, kernel, launch);
}

}  // namespace ocnet
