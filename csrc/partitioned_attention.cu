// SPDX-License-Identifier: MIT
// Attention within groups on CUDA: the lists of a call as stages, of which the kernels of
// oc_attention take all in one launch.
#include <cstdint>
#include <vector>

#include <torch/csrc/stable/tensor.h>

#include "oc_attention_hopper.h"
#include "oc_attention_hopper_bwd.h"
#include "oc_attention_host.h"
#include "partitioned_attention.h"
#include "partitioned_attention_host.h"

namespace ocnet {
namespace {

static_assert(kMostStages == kStageSlots, "a launch takes all stages of a call");

template <typename Tensors>
AttentionCall describe(const char* function, const std::vector<Tensors>& stages,
                       const std::vector<int64_t>& partition, double scale, bool tf32) {
  AttentionCall call{function, scale, tf32, {}};
  check_partition_numbers(function, partition, stages.size());
  for (size_t i = 0; i < stages.size(); ++i) {
    check_dim(function, "query", 3, stages[i].query);
    call.partitions.push_back(stage_partition(function, partition, i, stages[i].query.size(1)));
  }
  return call;
}

std::vector<ForwardTensors> forward_stages(const char* function, const TensorList& query,
                                           const TensorList& key, const TensorList& value,
                                           const TensorList& out, const TensorList& lse,
                                           const TensorList& residual) {
  const size_t count = check_forward_lists(function, query, key, value, out, lse, residual);
  std::vector<ForwardTensors> stages;
  for (size_t i = 0; i < count; ++i) {
    stages.push_back({query[i], stage_of(key, i), value[i], out[i], lse[i], stage_of(residual, i)});
  }
  return stages;
}

std::vector<BackwardTensors> backward_stages(const char* function, const TensorList& grad_out,
                                             const TensorList& query, const TensorList& key,
                                             const TensorList& value, const TensorList& out,
                                             const TensorList& lse, const TensorList& residual,
                                             const TensorList& grad_query,
                                             const TensorList& grad_key,
                                             const TensorList& grad_value) {
  const size_t count = check_backward_lists(function, grad_out, query, key, value, out, lse,
                                            residual, grad_query, grad_key, grad_value);
  std::vector<BackwardTensors> stages;
  for (size_t i = 0; i < count; ++i) {
    stages.push_back({grad_out[i], query[i], stage_of(key, i), value[i], out[i], lse[i],
                      stage_of(residual, i), stage_of(grad_query, i), stage_of(grad_key, i),
                      stage_of(grad_value, i)});
  }
  return stages;
}

}  // namespace

void partitioned_attention_fwd(TensorList query, TensorList key, TensorList value,
                               std::vector<int64_t> partition, double scale, bool tf32,
                               TensorList out, TensorList lse, TensorList residual) {
  constexpr const char* kFunction = "partitioned_attention_fwd";
  const auto stages = forward_stages(kFunction, query, key, value, out, lse, residual);
  attend(describe(kFunction, stages, partition, scale, tf32), stages);
}

void partitioned_attention_hopper_fwd(TensorList query, TensorList key, TensorList value,
                                      std::vector<int64_t> partition, double scale, TensorList out,
                                      TensorList lse, TensorList residual) {
  constexpr const char* kFunction = "partitioned_attention_hopper_fwd";
  const auto stages = forward_stages(kFunction, query, key, value, out, lse, residual);
  attend_on_hopper(describe(kFunction, stages, partition, scale, false), stages);
}

void partitioned_attention_bwd(TensorList grad_out, TensorList query, TensorList key,
                               TensorList value, TensorList out, TensorList lse,
                               TensorList residual, std::vector<int64_t> partition, double scale,
                               bool tf32, TensorList grad_query, TensorList grad_key,
                               TensorList grad_value) {
  constexpr const char* kFunction = "partitioned_attention_bwd";
  const auto stages = backward_stages(kFunction, grad_out, query, key, value, out, lse, residual,
                                      grad_query, grad_key, grad_value);
  attend_backward(describe(kFunction, stages, partition, scale, tf32), stages);
}

void partitioned_attention_hopper_bwd(TensorList grad_out, TensorList query, TensorList key,
                                      TensorList value, TensorList out, TensorList lse,
                                      TensorList residual, std::vector<int64_t> partition,
                                      double scale, TensorList grad_query, TensorList grad_key,
                                      TensorList grad_value) {
  constexpr const char* kFunction = "partitioned_attention_hopper_bwd";
  const auto stages = backward_stages(kFunction, grad_out, query, key, value, out, lse, residual,
                                      grad_query, grad_key, grad_value);
  attend_backward_on_hopper(describe(kFunction, stages, partition, scale, false), stages);
}

}  // namespace ocnet
