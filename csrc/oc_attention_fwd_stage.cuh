// SPDX-License-Identifier: MIT
// Tensors of a stage as the forward kernels take them, and what a block keeps of them.
#pragma once

#include "common/device.cuh"
#include "common/group_spans.cuh"
#include "common/groups.h"
#include "common/math.h"
#include "common/tokens.h"

namespace ocnet {

// Matrices of whole maps.
template <typename scalar_t>
struct FwdStage {
  TokenMatrix<const scalar_t> query;         // (N, L, E)
  TokenMatrix<const scalar_t> key;           // (N, S, E)
  TokenMatrix<const scalar_t> value;         // (N, S, Ev)
  TokenMatrix<scalar_t> out;                 // (N, L, Ev)
  TokenMatrix<scalar_t> residual;            // (N, L, Ev); data is null where it is not wanted
  TokenMatrix<accumulator_t<scalar_t>> lse;  // (N, L, 1), contiguous
};

// A block's own tokens and those that stream past it, at the start of its shared memory.
template <typename scalar_t>
struct FwdGroup : Group {
  GroupSpan<const scalar_t> query, key, value;
  GroupSpan<scalar_t> out, residual;
  GroupSpan<accumulator_t<scalar_t>> lse;
};

// By all threads of a block; ends with a barrier.
template <typename scalar_t>
OCNET_DEVICE const FwdGroup<scalar_t>& load_group(const FwdStage<scalar_t>& stage,
                                                  const WorkPlace& place, const Family& family,
                                                  int threads) {
  static_assert(sizeof(FwdGroup<scalar_t>) <= kGroupBytes, "tiles lie behind it");
  auto& group = *device::shared_memory<FwdGroup<scalar_t>>();
  SpanWriter writer(place, family, threads);
  writer.put(group.query, stage.query, family.owned);
  writer.put(group.key, stage.key, family.streamed);
  writer.put(group.value, stage.value, family.streamed);
  writer.put(group.out, stage.out, family.owned);
  writer.put(group.residual, stage.residual, family.owned);
  writer.put(group.lse, stage.lse, family.owned);
  writer.finish(group);
  return group;
}

}  // namespace ocnet
