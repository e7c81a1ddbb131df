// SPDX-License-Identifier: MIT
// What the tensor-core backward is given: tensors of the stages, and what a block keeps of them.
#pragma once

#include "common/device.cuh"
#include "common/group_spans.cuh"
#include "common/groups.h"
#include "common/tokens.h"
#include "oc_attention_bwd_tiles.h"

namespace ocnet {

// Matrices of whole maps; those that stages have are the same in all of them. Rows of inputs are
// 16-byte aligned, with channel stride 1; outputs have any strides.
template <typename storage_t>
struct MmaBwdStage {
  TokenMatrix<const storage_t> own;    // (N, I, E)
  TokenMatrix<const storage_t> other;  // (N, J, E)
  // Owned tokens as queries; data is null where they are not, or without grad_tokens.
  TokenMatrix<const storage_t> own_grad;     // (N, I, Ev)
  TokenMatrix<const storage_t> other_value;  // (N, J, Ev)
  // Owned tokens as keys; data is null where they are not, of own_value also without grad_tokens.
  TokenMatrix<const storage_t> own_value;   // (N, I, Ev)
  TokenMatrix<const storage_t> other_grad;  // (N, J, Ev)
  TokenMatrix<const float> lse;             // (N, L, 1), contiguous
  TokenMatrix<const float> delta;           // (N, L, 1), contiguous; unused without grad_tokens
  // Outputs; data is null where a gradient is not wanted.
  TokenMatrix<storage_t> grad_tokens;  // (N, I, E)
  TokenMatrix<storage_t> grad_value;   // (N, I, Ev)
};

template <typename storage_t>
struct MmaBwdParams {
  MmaBwdStage<storage_t> stages[kStageSlots];
  float scale;
  // Where blocks share an output: what each of them summed, to be combined. Of the only stage.
  TokenMatrix<float> token_sums;  // (N * splits, I, E)
  TokenMatrix<float> value_sums;  // (N * splits, I, Ev)
  BwdPlan plan;
  WorkTable work;
};

// A block's own tokens and those that stream past it, at the start of its shared memory.
template <typename storage_t>
struct MmaBwdGroup : Group {
  GroupSpan<const storage_t> own, other, own_grad, other_value, own_value, other_grad;
  GroupSpan<const float> own_lse, own_delta, other_lse, other_delta;
  GroupSpan<storage_t> grad_tokens, grad_value;
};

// By all threads of a block; ends with a barrier.
template <typename storage_t>
OCNET_DEVICE const MmaBwdGroup<storage_t>& load_group(const MmaBwdStage<storage_t>& stage,
                                                      const WorkPlace& place, const Family& family,
                                                      int threads) {
  static_assert(sizeof(MmaBwdGroup<storage_t>) <= kGroupBytes, "tiles lie behind it");
  auto& group = *device::shared_memory<MmaBwdGroup<storage_t>>();
  SpanWriter writer(place, family, threads);
  writer.put(group.own, stage.own, family.owned);
  writer.put(group.other, stage.other, family.streamed);
  writer.put(group.own_grad, stage.own_grad, family.owned);
  writer.put(group.other_value, stage.other_value, family.streamed);
  writer.put(group.own_value, stage.own_value, family.owned);
  writer.put(group.other_grad, stage.other_grad, family.streamed);
  writer.put(group.own_lse, stage.lse, family.owned);
  writer.put(group.own_delta, stage.delta, family.owned);
  writer.put(group.other_lse, stage.lse, family.streamed);
  writer.put(group.other_delta, stage.delta, family.streamed);
  writer.put(group.grad_tokens, stage.grad_tokens, family.owned);
  writer.put(group.grad_value, stage.grad_value, family.owned);
  writer.finish(group);
  return group;
}

}  // namespace ocnet
