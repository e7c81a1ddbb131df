// SPDX-License-Identifier: MIT
// Faults of ordinary reads and writes: bounds, alignment, initialisation, and what two threads or
// blocks do to one another without a barrier.
#pragma once

#include "common/atomics.cuh"
#include "fault_probes_common.cuh"

namespace ocnet::probes::faults {

constexpr int kFaultThreads = 64;
constexpr int kFaultSharedBytes = kFaultThreads * 4;

OCNET_KERNEL(kFaultThreads, 1) read_past_tail(FaultParams params) {
  const int end = params.elements + (params.planted ? 1 : 0);
  for (int i = device::thread_index(); i < end; i += kFaultThreads) {
    const float value = params.data[i];  // fault: read_past_tail
    params.result[i] = 2 * value;
  }
}

OCNET_KERNEL(kFaultThreads, 1) write_past_tail(FaultParams params) {
  const int end = params.elements + (params.planted ? 1 : 0);
  for (int i = device::thread_index(); i < end; i += kFaultThreads) {
    const float value = i < params.elements ? params.data[i] : 0;
    params.result[i] = 2 * value;  // fault: write_past_tail
  }
}

OCNET_KERNEL(kFaultThreads, 1) read_before_start(FaultParams params) {
  const int i = device::thread_index();
  const float* const data = params.data;
  const float value = data[params.planted ? i - 1 : i];  // fault: read_before_start
  params.result[i] = 2 * value;
}

OCNET_KERNEL(kFaultThreads, 1) write_input(FaultParams params) {
  const int i = device::thread_index();
  params.result[i] = 2 * params.data[i];
  if (params.planted && i == 7) const_cast<float*>(params.data)[i] = 0;  // fault: write_input
}

OCNET_KERNEL(kFaultThreads, 1) misaligned_read(FaultParams params) {
  const int i = device::thread_index();
  const auto* const bytes = reinterpret_cast<const unsigned char*>(params.data);
  const int offset = 4 * i - (params.planted && i == 9 ? 2 : 0);
  const float value = *reinterpret_cast<const float*>(bytes + offset);  // fault: misaligned_read
  params.result[i] = 2 * value;
}

struct alignas(16) FloatQuad {
  float at[4];
};

// Vectors need the alignment of the whole.
OCNET_KERNEL(kFaultThreads, 1) misaligned_vector(FaultParams params) {
  const int i = 4 * (device::thread_index() % 16);
  const float* const from = params.data + (params.planted && i == 12 ? i + 1 : i);
  const FloatQuad quad = *reinterpret_cast<const FloatQuad*>(from);  // fault: misaligned_vector
  if (device::thread_index() >= 16) return;
  for (int k = 0; k < 4; ++k) params.result[i + k] = 2 * quad.at[k];
}

OCNET_KERNEL(kFaultThreads, 1) read_past_shared(FaultParams params) {
  float* const shared = device::shared_memory<float>();
  const int i = device::thread_index();
  shared[i] = params.data[i];
  device::barrier();
  const int from = params.planted ? i + 1 : i;
  params.result[i] = 2 * shared[from];  // fault: read_past_shared
}

// Each thread clears a stretch; the last one forgets its own.
OCNET_KERNEL(kFaultThreads, 1) uninitialised_shared(FaultParams params) {
  float* const shared = device::shared_memory<float>();
  const int i = device::thread_index();
  if (i < 4 - (params.planted ? 1 : 0)) {
    for (int k = 0; k < 16; ++k) shared[16 * i + k] = 0;
  }
  device::barrier();
  const float cleared = shared[i];  // fault: uninitialised_shared
  params.result[i] = cleared + 2 * params.data[i];
}

OCNET_KERNEL(kFaultThreads, 1) missing_barrier(FaultParams params) {
  float* const shared = device::shared_memory<float>();
  const int i = device::thread_index();
  const int other = kFaultThreads - 1 - i;
  shared[i] = 0;
  device::barrier();
  shared[i] = params.data[i];  // fault: missing_barrier
  if (!params.planted) device::barrier();
  params.result[other] = 2 * shared[other];
}

OCNET_KERNEL(kFaultThreads, 1) early_overwrite(FaultParams params) {
  float* const shared = device::shared_memory<float>();
  const int i = device::thread_index();
  const int other = kFaultThreads - 1 - i;
  shared[i] = params.data[i];
  device::barrier();
  const float value = shared[other];  // fault: early_overwrite
  if (!params.planted) device::barrier();
  shared[i] = 2 * value;
  device::barrier();
  params.result[other] = shared[i];
}

OCNET_KERNEL(32, 1) missing_warp_sync(FaultParams params) {
  float* const shared = device::shared_memory<float>();
  const int i = device::thread_index();
  const int other = 31 - i;
  shared[i] = 0;
  device::sync_warp();
  shared[i] = params.data[i];  // fault: missing_warp_sync
  if (!params.planted) device::sync_warp();
  params.result[other] = 2 * shared[other];
}

// Shuffles bring values, not what the lanes wrote.
OCNET_KERNEL(32, 1) shuffle_for_sync(FaultParams params) {
  float* const shared = device::shared_memory<float>();
  const int i = device::thread_index();
  const int other = 31 - i;
  shared[i] = params.data[i];
  if (params.planted) {
    device::shuffle(i, 0);
  } else {
    device::sync_warp();
  }
  params.result[other] = 2 * shared[other];  // fault: shuffle_for_sync
}

// Two blocks share the elements out; the halves overlap by one.
OCNET_KERNEL(kFaultThreads, 1) overlapping_blocks(FaultParams params) {
  const int half = params.elements / 2;
  const int first = device::block_index() == 0 ? 0 : half;
  const int end = first + half + (params.planted && first == 0 ? 1 : 0);
  for (int i = first + device::thread_index(); i < end; i += kFaultThreads) {
    params.result[i] = 2 * params.data[i];  // fault: overlapping_blocks
  }
}

// The last of two blocks doubles what both have copied.
OCNET_KERNEL(32, 1) missing_thread_fence(FaultParams params) {
  const int i = device::thread_index();
  uint32_t* const last = device::shared_memory<uint32_t>();
  params.result[device::block_index() * 32 + i] = params.data[device::block_index() * 32 + i];
  device::barrier();
  if (i == 0) {
    if (!params.planted) device::thread_fence();
    *last = device::atomic_add(params.counter, 1u);
    device::thread_fence();
  }
  device::barrier();
  if (*last != 1) return;
  for (int k = i; k < 64; k += 32) {
    const float value = params.result[k];  // fault: missing_thread_fence
    params.result[k] = 2 * value;
  }
}

OCNET_KERNEL(kFaultThreads, 1) counted_in_place(FaultParams params) {
  const int i = device::thread_index();
  params.result[i] = 2 * params.data[i];
  if (params.planted) {
    *params.counter += 1;  // fault: counted_in_place
  } else {
    device::atomic_add(params.counter, 1u);
  }
}

// One byte more than the device has.
inline void run_shared_limit(const ProbeCall& call) {
  FaultParams params = fault_params(call);
  const size_t bytes = call.launch.shared_limit() + (params.planted ? 1 : 0);
  params.planted = false;
  call.launch(read_past_tail, Grid{1, kFaultThreads, bytes}, params);
}

}  // namespace ocnet::probes::faults
