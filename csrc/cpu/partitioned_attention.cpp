// SPDX-License-Identifier: MIT
// Attention within groups on the CPU: stage after stage, and of each the groups of one shape after
// those of another, as one batch. Everything is checked before anything is written.
#include "partitioned_attention.h"

#include "attention.h"
#include "partitioned_attention_host.h"

namespace ocnet {
namespace {

// Calls run(stage tensors, groups) for all groups of one shape.
template <typename StageTensors, typename Run>
void each_shape(const char* function, const std::vector<StageTensors>& stages,
                const std::vector<int64_t>& partition, const Run& run) {
  check_partition_numbers(function, partition, stages.size());
  std::vector<Partition> partitions;
  for (size_t stage = 0; stage < stages.size(); ++stage) {
    cpu::check(function, stages[stage]);
    const auto& query = stages[stage].query;
    partitions.push_back(stage_partition(function, partition, stage, query.size(1)));
  }
  for (size_t stage = 0; stage < stages.size(); ++stage) {
    GroupShape shapes[kMostShapes];
    const int count = partitions[stage].shapes(shapes);
    for (int shape = 0; shape < count; ++shape) {
      const cpu::Groups groups(partitions[stage], shapes[shape]);
      run(stages[stage], groups);
    }
  }
}

}  // namespace

void partitioned_attention_fwd(TensorList query, TensorList key, TensorList value,
                               std::vector<int64_t> partition, double scale, bool /*tf32*/,
                               TensorList out, TensorList lse, TensorList residual) {
  const char* const function = "partitioned_attention_fwd";
  const size_t count = check_forward_lists(function, query, key, value, out, lse, residual);
  std::vector<cpu::ForwardTensors> stages;
  for (size_t stage = 0; stage < count; ++stage) {
    stages.push_back({query[stage], stage_of(key, stage), value[stage], scale, out[stage],
                      lse[stage], stage_of(residual, stage)});
  }
  each_shape(function, stages, partition,
             [](const auto& tensors, const auto& groups) { cpu::forward(tensors, &groups); });
}

void partitioned_attention_bwd(TensorList grad_out, TensorList query, TensorList key,
                               TensorList value, TensorList out, TensorList lse,
                               TensorList residual, std::vector<int64_t> partition, double scale,
                               bool /*tf32*/, TensorList grad_query, TensorList grad_key,
                               TensorList grad_value) {
  const char* const function = "partitioned_attention_bwd";
  const size_t count = check_backward_lists(function, grad_out, query, key, value, out, lse,
                                            residual, grad_query, grad_key, grad_value);
  std::vector<cpu::BackwardTensors> stages;
  for (size_t stage = 0; stage < count; ++stage) {
    stages.push_back({grad_out[stage], query[stage], stage_of(key, stage), value[stage], out[stage],
                      lse[stage], stage_of(residual, stage), scale, stage_of(grad_query, stage),
                      stage_of(grad_key, stage), stage_of(grad_value, stage)});
  }
  each_shape(function, stages, partition,
             [](const auto& tensors, const auto& groups) { cpu::backward(tensors, &groups); });
}

}  // namespace ocnet
