// SPDX-License-Identifier: MIT
// Kernels of activated batch norm on planes (N, C, L) whose channels stay in shared memory between
// the statistics or sums and their use: maps are read once. No torch headers.
//
// A thread reads back only vectors that it brought itself, so that threads meet for totals alone.
#pragma once

#include "common/launch.cuh"
#include "common/ptx/cp_async.cuh"
#include "inplace_abn_numbers.cuh"
#include "inplace_abn_params.cuh"
#include "inplace_abn_planes.cuh"
#include "inplace_abn_team.cuh"

namespace ocnet::abn {

// Slots that a thread takes at a time, and vectors that it has under way.
template <typename scalar_t>
constexpr int kForwardSlots = sizeof(scalar_t) == 2 ? 2 : 4;
constexpr int kBackwardSlots = 2;
constexpr int kUnderWay = 16;

// The vectors of a team: of each of `maps` maps, one for each slot of its share.
template <typename scalar_t, bool kWhole>
struct Slab {
  using VectorT = Vector<scalar_t>;
  const SlabPlan& plan;
  const Team& team;
  Share share;
  int slots;
  VectorT* vectors;

  OCNET_DEVICE Slab(const SlabPlan& its_plan, const Team& its_team, int maps)
      : plan(its_plan), team(its_team) {
    share = plan.cut.share(team.channel, team.part);
    slots = plan.cut.slots(share);
    vectors = device::shared_memory<VectorT>() + kScratchBytes / sizeof(VectorT) +
              team.index * plan.team_slots * maps;
  }
  OCNET_DEVICE Slot slot(int index) const {
    return plan.cut.template slot<kWidth<scalar_t>, kWhole>(share, index);
  }

  // Of the slots that a thread takes in a round, the first. The others are team_threads apart.
  template <int kSlots>
  OCNET_DEVICE int first(int round) const {
    return round * kSlots * plan.team_threads + team.thread;
  }

  OCNET_DEVICE void bring_one(const scalar_t* from, const Slot& slot, int64_t readable, int map,
                              int index) const {
    VectorT& to = vectors[map * plan.team_slots + index];
    if (reads_whole<scalar_t, kWhole>(slot, readable)) {
      ptx::copy_async<16>(ptx::shared_address(&to), from + slot.at);
    } else if (!kWhole && slot.mask != 0) {
      to = load_by_number(from, slot);
    }
  }
  // Asks for the vectors of a round; closes a group of copies, which may be empty. Maps may be
  // null.
  template <int kSlots, int kMaps>
  OCNET_DEVICE void bring(int round, const scalar_t* const (&maps)[kMaps], int64_t readable) const {
    OCNET_UNROLL
    for (int i = 0; i < kSlots; ++i) {
      const int index = first<kSlots>(round) + i * plan.team_threads;
      if (index >= slots) break;
      const Slot slot = this->slot(index);
      OCNET_UNROLL
      for (int map = 0; map < kMaps; ++map) {
        if (maps[map] != nullptr) bring_one(maps[map], slot, readable, map, index);
      }
    }
    ptx::copy_async_commit();
  }

  // Calls body(round) as its vectors arrive.
  template <int kSlots, int kMaps, typename Body>
  OCNET_DEVICE void stream_in(const scalar_t* const (&maps)[kMaps], int64_t readable,
                              const Body& body) const {
    constexpr int kAhead = kUnderWay / (kSlots * (kMaps > 1 ? 2 : 1)) - 1;
    OCNET_UNROLL_BY(1)
    for (int round = 0; round < kAhead; ++round) bring<kSlots>(round, maps, readable);
    each_round<kSlots>([&](int round) {
      bring<kSlots>(round + kAhead, maps, readable);
      ptx::copy_async_wait<kAhead>();
      body(round);
    });
  }
  template <int kSlots, typename Body>
  OCNET_DEVICE void each_round(const Body& body) const {
    OCNET_UNROLL_BY(1)
    for (int round = 0; first<kSlots>(round) - team.thread < slots; ++round) body(round);
  }

  template <int kSlots>
  OCNET_DEVICE void find(Slot (&found)[kSlots], int round) const {
    OCNET_UNROLL
    for (int i = 0; i < kSlots; ++i) {
      const int index = first<kSlots>(round) + i * plan.team_threads;
      found[i] = index < slots ? slot(index) : Slot{};
    }
  }
  // What a map has in the slots of a round; 0 where there are no numbers.
  template <int kSlots>
  OCNET_DEVICE void read(VectorT (&to)[kSlots], int map, int round,
                         const Slot (&of_round)[kSlots]) const {
    OCNET_UNROLL
    for (int i = 0; i < kSlots; ++i) {
      const int index = first<kSlots>(round) + i * plan.team_threads;
      to[i] = {};
      if (of_round[i].mask != 0) to[i] = vectors[map * plan.team_slots + index];
      if (!kWhole && !is_whole<scalar_t>(of_round[i])) to[i].keep(of_round[i].mask);
    }
  }
};

template <typename scalar_t>
struct SlabForwardParams : ForwardCall<scalar_t> {
  SlabPlan plan;
};
template <typename scalar_t>
struct SlabBackwardParams : BackwardCall<scalar_t> {
  SlabPlan plan;
};

template <bool kAdds, int kSlots, typename scalar_t, bool kWhole, typename Channels>
OCNET_DEVICE void normalise_slab(const Slab<scalar_t, kWhole>& slab,
                                 const ForwardCall<scalar_t>& call, const Channels& channels) {
  slab.template each_round<kSlots>([&](int round) {
    Slot slots[kSlots];
    Vector<scalar_t> x[kSlots], residual[kSlots];
    slab.find(slots, round);
    if (kAdds) load_slots<kWhole>(residual, call.residual, call.readable, slots);
    slab.read(x, 0, round, slots);
    with_invertible(call.pointwise.activation,
                    [&](auto act) { normalise<decltype(act), kAdds>(x, residual, channels); });
    store_slots<kWhole>(call.out, slots, x);
  });
}

// Statistics of a channel and its output, in training.
//
// Grid: channels, `teams` to a block, or `cluster` blocks to a channel; threads as planned, at most
// 512. fp32 (fp64 for fp64 storage) moments: of 16 numbers at a time, then all merged in a fixed
// order, in every block of a cluster alike.
// Shared memory: kScratchBytes, then 16 bytes for each slot of each team.
template <typename scalar_t, bool kWhole>
OCNET_KERNEL(kMostTeamThreads, together<scalar_t>(2, 2, 1))
inplace_abn_fwd_slab_kernel(SlabForwardParams<scalar_t> params) {
  using acc_t = accumulator_t<scalar_t>;
  constexpr int kSlots = kForwardSlots<scalar_t>;
  const Team team = locate_team(params.plan);
  if (team.channel >= params.plan.cut.channels) return;  // the last warps of a grid
  const Slab<scalar_t, kWhole> slab(params.plan, team, 1);
  const scalar_t* const maps[1] = {params.x};

  Moments<acc_t> moments;
  slab.template stream_in<kSlots>(maps, params.readable, [&](int round) {
    Slot slots[kSlots];
    Vector<scalar_t> x[kSlots];
    slab.find(slots, round);
    slab.read(x, 0, round, slots);
    add_moments(moments, x, slots);
  });
  moments = team_total(moments, device::shared_memory<Moments<acc_t>>(), params.plan);
  const ForwardChannel<acc_t> channel =
      channel_of_batch(params.pointwise, params.normalisation, team.channel, moments,
                       team.part == 0 && team.thread == 0);

  const auto channels = [&](int) { return channel; };
  if (params.residual == nullptr) {
    normalise_slab<false, kSlots>(slab, params, channels);
  } else {
    normalise_slab<true, kSlots>(slab, params, channels);
  }
  leave_cluster(params.plan);
}

// Sums of a channel and its gradients, in training.
//
// Grid: as above. Sums are fp32 (fp64): of each thread's next two slots, then all of these, then in
// a fixed order. Shared memory: kScratchBytes, then 16 bytes for each map and slot of each team.
template <typename scalar_t, bool kWhole>
OCNET_KERNEL(kMostTeamThreads, together<scalar_t>(2, 2, 1))
inplace_abn_bwd_slab_kernel(SlabBackwardParams<scalar_t> params) {
  using acc_t = accumulator_t<scalar_t>;
  constexpr int kSlots = kBackwardSlots;
  const Team team = locate_team(params.plan);
  if (team.channel >= params.plan.cut.channels) return;  // the last warps of a grid
  const bool adds = params.residual != nullptr;
  const Slab<scalar_t, kWhole> slab(params.plan, team, adds ? 3 : 2);
  const scalar_t* const maps[3] = {params.out, params.grad_out, params.residual};
  const acc_t lowest = params.pointwise.lowest;
  BackwardChannel<acc_t> channel = channel_without_sums(params, team.channel);
  const auto channels = [&](int) { return channel; };

  Sums<acc_t> sums;
  slab.template stream_in<kSlots>(maps, params.readable, [&](int round) {
    Slot slots[kSlots];
    slab.find(slots, round);
    const BackwardVectors<scalar_t, kSlots> v(slab, adds, round, slots);
    Sums<acc_t> few;
    with_invertible(params.pointwise.activation, [&](auto act) {
      add_up<decltype(act)>(v.z, v.grad_out, v.residual, channels, lowest,
                            [&](int, const Sums<acc_t>& more) { few = combined(few, more); });
    });
    sums = combined(sums, few);
  });
  sums = team_total(sums, device::shared_memory<Sums<acc_t>>(), params.plan);
  if (team.part == 0 && team.thread == 0) {
    write_vectors(params.vectors, params.pointwise, params.plan.cut.channels, team.channel, sums);
  }
  channel = channel_with_sums(params, team.channel, sums);

  slab.template each_round<kSlots>([&](int round) {
    Slot slots[kSlots];
    slab.find(slots, round);
    BackwardVectors<scalar_t, kSlots> v(slab, adds, round, slots);
    with_invertible(params.pointwise.activation, [&](auto act) {
      differentiate<decltype(act)>(v.z, v.grad_out, v.residual, false, channels, lowest);
    });
    store_gradients<kWhole>(params, slots, v);
  });
  leave_cluster(params.plan);
}

inline Grid slab_grid(const SlabPlan& plan) {
  return {plan.blocks, plan.teams * plan.team_threads, plan.shared_bytes, plan.cluster};
}
// `launch` is a KernelLauncher, or launches as one does, here and for the other kernels.
template <typename scalar_t, typename Launch>
void launch_slab(const SlabForwardParams<scalar_t>& params, const Launch& launch) {
  const auto kernel = params.plan.cut.whole ? inplace_abn_fwd_slab_kernel<scalar_t, true>
                                            : inplace_abn_fwd_slab_kernel<scalar_t, false>;
  launch(kernel, slab_grid(params.plan), params);
}
template <typename scalar_t, typename Launch>
void launch_slab(const SlabBackwardParams<scalar_t>& params, const Launch& launch) {
  const auto kernel = params.plan.cut.whole ? inplace_abn_bwd_slab_kernel<scalar_t, true>
                                            : inplace_abn_bwd_slab_kernel<scalar_t, false>;
  launch(kernel, slab_grid(params.plan), params);
}

}  // namespace ocnet::abn
