// SPDX-License-Identifier: MIT
// What a block keeps of its group in shared memory.
#pragma once

#include "device.cuh"
#include "groups.h"

namespace ocnet {

// Used by all threads of a block. Spans are written by the warps in turn.
class SpanWriter {
 public:
  OCNET_DEVICE SpanWriter(const WorkPlace& place, const Family& family, int threads)
      : place_(place), family_(family), threads_(threads) {}
  template <typename T>
  OCNET_DEVICE void put(GroupSpan<T>& span, const TokenMatrix<T>& maps, int tokens) {
    if (device::thread_index() == writer_) span = span_of(maps, place_, family_, tokens);
    writer_ = writer_ + device::kWarpThreads < threads_ ? writer_ + device::kWarpThreads : 0;
  }
  // The rest. All that was written can be read afterwards.
  OCNET_DEVICE void finish(Group& group) const {
    if (device::thread_index() == threads_ - 1) group.steps = family_.steps;
    device::barrier();
  }

 private:
  const WorkPlace& place_;
  const Family& family_;
  const int threads_;
  int writer_ = 0;
};

}  // namespace ocnet
