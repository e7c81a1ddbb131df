// SPDX-License-Identifier: MIT
// Faults of two blocks of a cluster that fetch boxes for one another.
#pragma once

#include "common/cluster.cuh"
#include "fault_probes_copies.cuh"

namespace ocnet::probes::faults {

enum class ClusterFault { kOwnArrivals, kBlockBarrier, kEarlyExit, kOwnBarrierOnly };

constexpr int kClusterBlocks = 2;
constexpr int kPartRows = kBoxRows / kClusterBlocks;

// Each block fetches half of every box for both, and doubles every other row.
template <ClusterFault kFault>
struct ClusterRing {
  const FaultParams& params;
  uint32_t shared;
  int rank;

  OCNET_DEVICE bool planted(ClusterFault fault) const { return params.planted && fault == kFault; }

  OCNET_DEVICE void prepare() const {
    if (device::thread_index() == 0) {
      for (int step = 0; step < kRingStages; ++step) {
        const RingStage stage(shared, step);
        ptx::mbarrier_init(stage.full, 1);
        ptx::mbarrier_init(stage.empty, planted(ClusterFault::kOwnArrivals) ? 1 : kClusterBlocks);
      }
      ptx::fence_mbarrier_init();
    }
    if (planted(ClusterFault::kBlockBarrier)) {
      device::barrier();
    } else {
      device::cluster_barrier();
    }
  }

  OCNET_DEVICE void produce(int boxes) const {
    for (int step = 0; step < boxes; ++step) {
      const RingStage stage(shared, step);
      ptx::mbarrier_wait(stage.empty, stage.parity ^ 1);  // fault: cluster_empty_wait
      ptx::mbarrier_arrive_expect(stage.full, kBoxBytes);
      const int first = rank * kPartRows;
      ptx::tensor_load_multicast(  // fault: cluster_load
          stage.box + first * kBoxColumns * 4, params.data_map, stage.full,
          {0, step * kBoxRows + first}, (1 << kClusterBlocks) - 1);
    }
  }

  OCNET_DEVICE void consume(int boxes) const {
    const int lane = device::lane_index();
    const float* const floats = device::shared_memory<float>();
    for (int step = 0; step < boxes; ++step) {
      const RingStage stage(shared, step);
      ptx::mbarrier_wait(stage.full, stage.parity);
      for (int row = rank; row < kBoxRows; row += kClusterBlocks) {
        const int at = row * kBoxColumns + lane;
        params.result[step * kBoxElements + at] = 2 * floats[stage.index * kBoxElements + at];
      }
      device::sync_warp();
      release(stage, lane);
    }
  }

  OCNET_DEVICE void release(const RingStage& stage, int lane) const {
    const bool own = planted(ClusterFault::kOwnArrivals) || planted(ClusterFault::kOwnBarrierOnly);
    if (lane >= kClusterBlocks || (own && lane != rank)) return;
    ptx::mbarrier_arrive_cluster(  // fault: cluster_arrive
        ptx::cluster_address(stage.empty, lane));
  }
};

template <ClusterFault kFault>
OCNET_KERNEL(64, 1)
cluster_ring(OCNET_GRID_CONSTANT FaultParams params) {
  const ClusterRing<kFault> ring{params, ptx::shared_address(device::shared_memory<char>()),
                                 device::cluster_rank()};
  const int boxes = params.elements / kBoxElements;
  ring.prepare();
  if (device::warp_index() == 0) {
    if (device::elect_one()) ring.produce(boxes);
    device::sync_warp();
  } else {
    ring.consume(boxes);
  }
  if (!ring.planted(ClusterFault::kEarlyExit)) device::cluster_barrier();
}

template <ClusterFault kFault>
void run_cluster_ring(const ProbeCall& call) {
  FaultParams params = fault_params(call);
  params.data_map = box_map(params.data, params.elements, kPartRows, false);
  call.launch(cluster_ring<kFault>, Grid{kClusterBlocks, 64, kRingBytes, kClusterBlocks}, params);
}

}  // namespace ocnet::probes::faults
