// SPDX-License-Identifier: MIT
// A kernel whose result shows the order in which its threads ran, and one whose events are known.
#pragma once

#include "common/atomics.cuh"
#include "fault_probes_copies.cuh"

namespace ocnet::probes::faults {

// Every thread draws a number. Allowed, and a result that no test may rely on.
OCNET_KERNEL(64, 1) tickets(FaultParams params) {
  const int64_t i = device::block_index() * 64 + device::thread_index();
  const uint32_t ticket = device::atomic_add(params.counter, 1u);
  params.result[i] = params.planted ? static_cast<float>(ticket) : 2 * params.data[i];
}

// One thread fetches a box, the warp doubles it, and says so.
OCNET_KERNEL(32, 1) ordered_events(OCNET_GRID_CONSTANT FaultParams params) {
  const float* const box = device::shared_memory<float>();
  const uint32_t shared = ptx::shared_address(box);
  const uint32_t mbarrier = shared + kBoxBytes;
  const int lane = device::thread_index();
  if (lane == 0) {
    ptx::mbarrier_init(mbarrier, 1);
    ptx::fence_mbarrier_init();
  }
  device::barrier();
  const int first_row = static_cast<int>(device::block_index()) * kBoxRows;
  if (lane == 0) {
    ptx::mbarrier_arrive_expect(mbarrier, kBoxBytes);
    ptx::tensor_load(shared, params.data_map, mbarrier, {0, first_row});
  }
  ptx::mbarrier_wait(mbarrier, 0);
  for (int row = 0; row < kBoxRows; ++row) {
    const int at = row * kBoxColumns + lane;
    params.result[first_row * kBoxColumns + at] = 2 * box[at];
  }
  if (lane == 3) device::print("row %d doubled, %.1f first", first_row, box[3]);
  device::barrier();
}

inline void run_ordered_events(const ProbeCall& call) {
  FaultParams params = fault_params(call);
  params.data_map = box_map(params.data, params.elements, kBoxRows, false);
  call.launch(ordered_events, Grid{params.elements / kBoxElements, 32, kBoxBytes + 8}, params);
}

}  // namespace ocnet::probes::faults
