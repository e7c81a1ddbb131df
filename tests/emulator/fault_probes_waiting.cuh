// SPDX-License-Identifier: MIT
// Faults of threads that wait for one another: collectives, named barriers, clusters, registers.
#pragma once

#include "common/atomics.cuh"
#include "common/cluster.cuh"
#include "common/ptx/dependent_launch.cuh"
#include "common/ptx/mbarrier.cuh"
#include "common/ptx/registers.cuh"
#include "fault_probes_common.cuh"

namespace ocnet::probes::faults {

OCNET_KERNEL(64, 1) skipped_barrier(FaultParams params) {
  float* const shared = device::shared_memory<float>();
  const int i = device::thread_index();
  shared[i] = params.data[i];
  if (params.planted && i == 37) return;
  device::barrier();  // fault: skipped_barrier
  params.result[i] = 2 * shared[i];
}

// A launch that may begin before what it reads was written.
OCNET_KERNEL(64, 1) early_read(FaultParams params) {
  if (!params.planted) ptx::wait_for_earlier_launches();
  const int i = device::thread_index();
  const float value = params.data[i];  // fault: early_read
  ptx::wait_for_earlier_launches();
  params.result[i] = 2 * value;
}
// One thread waits for all, and says so too late.
OCNET_KERNEL(64, 1) unshared_wait(FaultParams params) {
  const int i = device::thread_index();
  if (i == 0) ptx::wait_for_earlier_launches();
  if (!params.planted) device::barrier();
  const float value = params.data[i];  // fault: unshared_wait
  device::barrier();
  params.result[i] = 2 * value;
}
template <void (*kKernel)(FaultParams)>
void run_early(const ProbeCall& call) {
  Grid grid{1, 64};
  grid.programmatic = true;
  call.launch(kKernel, grid, fault_params(call));
}

// Half of a loop's threads go round once more.
OCNET_KERNEL(64, 1) uneven_loop(FaultParams params) {
  const int i = device::thread_index();
  const int rounds = params.planted && i >= 32 ? 3 : 2;
  float sum = 0;
  for (int round = 0; round < rounds; ++round) {
    sum += params.data[i];
    device::barrier();  // fault: uneven_loop
  }
  params.result[i] = sum;
}

OCNET_KERNEL(32, 1) skipped_shuffle(FaultParams params) {
  const int i = device::thread_index();
  float value = params.data[i];
  if (!params.planted || i != 5) {
    value += device::shuffle(value, i);  // fault: skipped_shuffle
  }
  params.result[i] = value;
}

OCNET_KERNEL(32, 1) mixed_collectives(FaultParams params) {
  const int i = device::thread_index();
  float value = params.data[i];
  if (params.planted && i == 5) {
    value += static_cast<float>(device::ballot(true));
  } else {
    value += device::shuffle(value, i);  // fault: mixed_collectives
  }
  params.result[i] = value;
}

OCNET_KERNEL(128, 1) uneven_named_barrier(FaultParams params) {
  float* const shared = device::shared_memory<float>();
  const int i = device::thread_index();
  shared[i] = params.data[i];
  const int threads = params.planted && i >= 96 ? 96 : 128;
  device::named_barrier_sync(3, threads);  // fault: uneven_named_barrier
  params.result[127 - i] = 2 * shared[127 - i];
}

// Three warps meet at a barrier for four.
OCNET_KERNEL(128, 1) missing_warp(FaultParams params) {
  const int i = device::thread_index();
  if (!params.planted || i < 96) device::named_barrier_sync(5, 128);  // fault: missing_warp
  params.result[i] = 2 * params.data[i];
}

// A warp says for the second time that it is done, and nobody asks.
OCNET_KERNEL(64, 1) half_full_barrier(FaultParams params) {
  const int i = device::thread_index();
  const float value = 2 * params.data[i];
  if (i < 32) {
    device::named_barrier_arrive(2, 64);
  } else {
    device::named_barrier_sync(2, 64);
  }
  device::barrier();
  if (params.planted && i < 32) device::named_barrier_arrive(2, 64);  // fault: half_full_barrier
  params.result[i] = value;
}

// Each block reads the other's shared memory; the one that is done may not leave.
OCNET_KERNEL(32, 1) early_exit(FaultParams params) {
  float* const shared = device::shared_memory<float>();
  const int i = device::thread_index();
  const int other = 1 - device::cluster_rank();
  shared[i] = params.data[device::cluster_rank() * 32 + i];
  device::cluster_barrier();
  const float value = device::cluster_pointer(shared, other)[i];  // fault: early_exit
  if (!params.planted) device::cluster_barrier();
  params.result[other * 32 + i] = 2 * value;
}

// A block writes into one that may not have started.
OCNET_KERNEL(32, 1) early_remote_write(FaultParams params) {
  float* const shared = device::shared_memory<float>();
  const int i = device::thread_index();
  const int other = 1 - device::cluster_rank();
  shared[i] = 0;
  if (!params.planted) device::cluster_barrier();
  const float value = params.data[other * 32 + i];
  device::cluster_pointer(shared, other)[i] = value;  // fault: early_remote_write
  device::cluster_barrier();
  params.result[device::cluster_rank() * 32 + i] = 2 * shared[i];
}

// Half a warp leaves the others behind.
OCNET_KERNEL(32, 1) skipped_cluster_barrier(FaultParams params) {
  const int i = device::thread_index();
  const bool skips = params.planted && device::cluster_rank() == 1 && i >= 16;
  if (!skips) device::cluster_barrier();  // fault: skipped_cluster_barrier
  params.result[device::block_index() * 32 + i] = 2 * params.data[device::block_index() * 32 + i];
}

// Two warps read a word, the third overwrites it after meeting only one of them.
OCNET_KERNEL(96, 1) partial_barrier(FaultParams params) {
  float* const shared = device::shared_memory<float>();
  const int i = device::thread_index();
  const int warp = device::warp_index();
  if (i == 0) *shared = 2;
  device::barrier();
  float factor = 2;
  if (warp < 2) factor = *shared;  // fault: partial_barrier
  if (warp != 0 || !params.planted) device::named_barrier_sync(1, params.planted ? 64 : 96);
  if (i == 64) *shared = 3;
  params.result[i] = factor * params.data[i];
}

// A thread asks on and on for what never comes.
OCNET_KERNEL(64, 1) endless_polling(FaultParams params) {
  const uint32_t mbarrier = ptx::shared_address(device::shared_memory<uint64_t>());
  const int i = device::thread_index();
  if (i == 0) ptx::mbarrier_init(mbarrier, 2);
  device::barrier();
  if (i == 0 || (i == 32 && !params.planted)) ptx::mbarrier_arrive(mbarrier);
  while (!ptx::mbarrier_test(mbarrier, 0)) {  // fault: endless_polling
  }
  params.result[i] = 2 * params.data[i];
}

// Threads wait for a flag that another thread of their block sets, or does not.
OCNET_KERNEL(64, 1) endless_atomics(FaultParams params) {
  const int i = device::thread_index();
  if (i == 40 && !params.planted) device::atomic_exchange(params.counter, 1u);
  while (device::atomic_add(params.counter, 0u) == 0) {  // fault: endless_atomics
  }
  params.result[i] = 2 * params.data[i];
}

OCNET_KERNEL(128, 1) illegal_registers(FaultParams params) {
  if (params.planted) {
    ptx::lower_registers<20>();  // fault: illegal_registers
  } else {
    ptx::lower_registers<24>();
  }
  const int i = device::thread_index();
  params.result[i] = 2 * params.data[i];
}

// 168 registers for each of 384 threads: raising two warpgroups to 240 takes what the third gives.
OCNET_KERNEL(384, 1) unlowered_registers(FaultParams params) {
  const int i = device::thread_index();
  if (device::warp_index() < 4) {
    if (!params.planted) ptx::lower_registers<24>();
  } else {
    ptx::raise_registers<240>();  // fault: unlowered_registers
  }
  params.result[i] = 2 * params.data[i];
}

OCNET_KERNEL(128, 1) divided_warpgroup(FaultParams params) {
  const int i = device::thread_index();
  if (!params.planted || i < 96) ptx::lower_registers<40>();  // fault: divided_warpgroup
  params.result[i] = 2 * params.data[i];
}

}  // namespace ocnet::probes::faults
