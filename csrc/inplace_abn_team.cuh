// SPDX-License-Identifier: MIT
// Adding up what threads have, in a fixed order: over a warp, a team of warps, a cluster of blocks.
#pragma once

#include "common/cluster.cuh"
#include "common/device.cuh"
#include "inplace_abn_math.h"
#include "inplace_abn_plan.h"

namespace ocnet::abn {

template <typename acc_t>
OCNET_DEVICE Moments<acc_t> from_lane(const Moments<acc_t>& value, int lane) {
  return {device::shuffle(value.count, lane), device::shuffle(value.mean, lane),
          device::shuffle(value.squares, lane)};
}
template <typename acc_t>
OCNET_DEVICE Sums<acc_t> from_lane(const Sums<acc_t>& value, int lane) {
  return {device::shuffle(value.dy, lane), device::shuffle(value.centred, lane),
          device::shuffle(value.negative, lane)};
}

// Of all lanes, as the first lane adds them up: the same bits in all.
template <typename Value>
OCNET_DEVICE Value warp_total(Value value) {
  OCNET_UNROLL
  for (int mask = device::kWarpThreads / 2; mask > 0; mask /= 2) {
    value = combined(value, from_lane(value, device::lane_index() ^ mask));
  }
  return from_lane(value, 0);
}

// Threads that share a part of a channel, and where they are.
struct Team {
  int64_t channel;
  int part;    // of the channel, and rank in the cluster
  int index;   // of the team in its block
  int thread;  // in the team
};

OCNET_DEVICE Team locate_team(const SlabPlan& plan) {
  const int thread = device::thread_index();
  const auto block = static_cast<uint32_t>(device::block_index());
  const uint32_t cluster = block / static_cast<uint32_t>(plan.cluster);
  Team team;
  team.index = plan.teams == 1 ? 0 : thread / plan.team_threads;
  team.thread = thread - team.index * plan.team_threads;
  team.channel = int64_t{cluster} * plan.teams + team.index;
  team.part = static_cast<int>(block - cluster * static_cast<uint32_t>(plan.cluster));
  return team;
}

// Of all threads of a team, and of the teams of its cluster; the same bits in all of them.
// `scratch` has room for a value of each warp. Of a cluster, each block must call leave_cluster
// before it ends.
template <typename Value>
OCNET_DEVICE Value team_total(Value value, Value* scratch, const SlabPlan& plan) {
  value = warp_total(value);
  if (plan.team_threads == device::kWarpThreads && plan.cluster == 1) return value;
  const int warps = plan.team_threads / device::kWarpThreads;
  const int lane = device::lane_index();
  if (lane == 0) scratch[device::warp_index()] = value;
  if (plan.cluster == 1) {
    device::barrier();
  } else {
    device::sync_warp();  // barriers of clusters are for warps that have come together
    device::cluster_barrier();
  }
  Value total;
  for (int i = lane; i < warps * plan.cluster; i += device::kWarpThreads) {
    const int rank = i / warps;
    const Value* const theirs =
        plan.cluster == 1 ? scratch : device::cluster_pointer(scratch, rank);
    total = combined(total, theirs[i - rank * warps]);
  }
  total = warp_total(total);
  if (plan.cluster > 1) device::cluster_arrive();
  return total;
}

// Others may be reading the scratch of this block until then.
OCNET_DEVICE void leave_cluster(const SlabPlan& plan) {
  if (plan.cluster == 1) return;
  device::sync_warp();
  device::cluster_wait();
}

}  // namespace ocnet::abn
