// SPDX-License-Identifier: MIT
// Kernels of activated batch norm on planes (N, C, L) that stream: a block has a part of a channel.
// No torch headers.
//
// Kernels that come second in a call take the parts in reverse: what was read last may still be in
// the L2 cache.
#pragma once

#include "common/launch.cuh"
#include "inplace_abn_numbers.cuh"
#include "inplace_abn_params.cuh"
#include "inplace_abn_team.cuh"

namespace ocnet::abn {

// The part of a channel that a block has.
struct PlanePlace {
  int64_t channel;
  int part;
  Share share;
  int slots;
};

OCNET_DEVICE PlanePlace locate_plane(const PlaneCut& cut, int64_t block) {
  const auto index = static_cast<uint32_t>(block);
  const auto channel = index / static_cast<uint32_t>(cut.parts);
  PlanePlace place;
  place.channel = channel;
  place.part = static_cast<int>(index - channel * static_cast<uint32_t>(cut.parts));
  place.share = cut.share(place.channel, place.part);
  place.slots = cut.slots(place.share);
  return place;
}
OCNET_DEVICE PlanePlace locate_plane_in_reverse(const PlaneCut& cut) {
  return locate_plane(cut, device::grid_blocks() - 1 - device::block_index());
}

// Calls body(the slots of the next kSlots vectors of this thread), until none is left.
template <typename scalar_t, int kSlots, typename Body>
OCNET_DEVICE void for_slots(const PlaneCut& cut, const PlanePlace& place, const Body& body) {
  for (int first = device::thread_index(); first < place.slots; first += kSlots * kStreamThreads) {
    Slot slots[kSlots];
    OCNET_UNROLL
    for (int i = 0; i < kSlots; ++i) {
      const int index = first + i * kStreamThreads;
      if (index < place.slots) slots[i] = cut.template slot<kWidth<scalar_t>>(place.share, index);
    }
    body(slots);
  }
}

// The total of the block, from what its threads have; the same bits in all.
template <typename Value>
OCNET_DEVICE Value stream_total(const Value& value) {
  SlabPlan plan;
  plan.cluster = plan.teams = 1;
  plan.team_threads = kStreamThreads;
  return team_total(value, device::shared_memory<Value>(), plan);
}

// All records of a channel, merged by the first warp. Every thread gets what `finish` makes of them
// there; it must not look at which lane it is but to write.
template <typename Value, typename Records, typename Finish>
OCNET_DEVICE auto merged_records(const Records& records, int64_t c, const Finish& finish) {
  using Channel = decltype(finish(Value{}));
  Channel* const shared = device::shared_memory<Channel>();
  if (device::warp_index() == 0) {
    Value value;
    for (int64_t i = device::lane_index(); i < records.count; i += device::kWarpThreads) {
      value = combined(value, records.at(i, c));
    }
    value = warp_total(value);
    if (device::lane_index() == 0) *shared = finish(value);
  }
  device::barrier();
  return *shared;
}

// Statistics of one part of one channel.
//
// Grid: (channel, part), parts fastest; 256 threads. fp32 (fp64 for fp64 storage): the mean of each
// thread's next four vectors, deviations from it, then all merged in a fixed order.
// Shared memory: kScratchBytes.
template <typename scalar_t>
OCNET_KERNEL(kStreamThreads, together<scalar_t>(3, 4, 4))
inplace_abn_stats_planes_kernel(StatsParams<scalar_t, PlaneCut> params) {
  using acc_t = accumulator_t<scalar_t>;
  const PlanePlace place = locate_plane(params.cut, device::block_index());
  Moments<acc_t> moments;
  for_slots<scalar_t, kInFlight>(params.cut, place, [&](const Slot(&slots)[kInFlight]) {
    Vector<scalar_t> x[kInFlight];
    load_slots(x, params.x, params.readable, slots);
    add_moments(moments, x, slots);
  });
  moments = stream_total(moments);
  if (device::thread_index() == 0) {
    store_record(params.records, params.cut.channels, place.part, place.channel,
                 static_cast<acc_t>(place.share.numbers()), moments.mean, moments.squares);
  }
}

template <bool kAdds, typename scalar_t, int kSlots, typename Channels>
OCNET_DEVICE void normalise_slots(const ForwardCall<scalar_t>& call, const Slot (&slots)[kSlots],
                                  const Channels& channels) {
  Vector<scalar_t> x[kSlots], residual[kSlots];
  load_slots(x, call.x, call.readable, slots);
  if (kAdds) load_slots(residual, call.residual, call.readable, slots);
  with_activation(call.pointwise.activation,
                  [&](auto act) { normalise<decltype(act), kAdds>(x, residual, channels); });
  store_slots(call.out, slots, x);
}

// Normalises and activates one part of one channel. The block of a channel's first part writes its
// statistics.
//
// Grid: as above, in reverse; 256 threads. Shared memory: kScratchBytes.
template <typename scalar_t>
OCNET_KERNEL(kStreamThreads, together<scalar_t>(4, 4, 4))
inplace_abn_fwd_planes_kernel(ForwardParams<scalar_t, PlaneCut> params) {
  using acc_t = accumulator_t<scalar_t>;
  const PlanePlace place = locate_plane_in_reverse(params.cut);
  const int64_t c = place.channel;
  ForwardChannel<acc_t> channel;
  if (params.normalisation.training) {
    channel = merged_records<Moments<acc_t>>(
        params.normalisation.records, c, [&](const Moments<acc_t>& moments) {
          return channel_of_batch(params.pointwise, params.normalisation, c, moments,
                                  place.part == 0);
        });
  } else {
    channel = channel_of_running(params.pointwise, params.normalisation, c);
  }
  const auto channels = [&](int) { return channel; };
  if (params.residual == nullptr) {
    for_slots<scalar_t, kInFlight>(params.cut, place, [&](const Slot(&slots)[kInFlight]) {
      normalise_slots<false>(params, slots, channels);
    });
  } else {
    for_slots<scalar_t, kInFlight / 2>(params.cut, place, [&](const Slot(&slots)[kInFlight / 2]) {
      normalise_slots<true>(params, slots, channels);
    });
  }
}

// What a backward pass has of a few slots. What is not there, or not needed, is 0.
template <typename scalar_t, int kSlots>
struct BackwardVectors {
  Vector<scalar_t> z[kSlots], grad_out[kSlots], residual[kSlots];

  OCNET_DEVICE BackwardVectors(const BackwardCall<scalar_t>& call, bool adds,
                               const Slot (&slots)[kSlots]) {
    if (call.out != nullptr) load_slots(z, call.out, call.readable, slots);
    load_slots(grad_out, call.grad_out, call.readable, slots);
    if (adds) load_slots(residual, call.residual, call.readable, slots);
  }
  // Of a slab.
  template <typename SlabT>
  OCNET_DEVICE BackwardVectors(const SlabT& slab, bool adds, int round,
                               const Slot (&slots)[kSlots]) {
    slab.read(z, 0, round, slots);
    slab.read(grad_out, 1, round, slots);
    if (adds) slab.read(residual, 2, round, slots);
  }
};

template <bool kWhole = false, typename scalar_t, int kSlots>
OCNET_DEVICE void store_gradients(const BackwardCall<scalar_t>& call, const Slot (&slots)[kSlots],
                                  const BackwardVectors<scalar_t, kSlots>& vectors) {
  if (call.grad_x != nullptr) store_slots<kWhole>(call.grad_x, slots, vectors.z);
  if (call.grad_residual != nullptr) {
    store_slots<kWhole>(call.grad_residual, slots, vectors.grad_out);
  }
}

// Sums of one part of one channel; with frozen statistics also the gradients of the maps.
//
// Grid: (channel, part), parts fastest; 256 threads. Sums are fp32 (fp64): of each thread's next
// two vectors, then all of these, then over the block in a fixed order. Shared memory:
// kScratchBytes.
template <typename scalar_t>
OCNET_KERNEL(kStreamThreads, together<scalar_t>(4, 4, 2))
inplace_abn_bwd_reduce_planes_kernel(BackwardParams<scalar_t, PlaneCut> params) {
  using acc_t = accumulator_t<scalar_t>;
  constexpr int kPairs = kInFlight / 2;
  const PlanePlace place = locate_plane(params.cut, device::block_index());
  const BackwardChannel<acc_t> channel = channel_without_sums(params, place.channel);
  const auto channels = [&](int) { return channel; };
  const acc_t lowest = params.pointwise.lowest;
  const bool writes = params.grad_x != nullptr || params.grad_residual != nullptr;
  Sums<acc_t> sums;
  for_slots<scalar_t, kPairs>(params.cut, place, [&](const Slot(&slots)[kPairs]) {
    BackwardVectors<scalar_t, kPairs> v(params, params.residual != nullptr, slots);
    Sums<acc_t> few;
    with_activation(params.pointwise.activation, [&](auto act) {
      add_up<decltype(act)>(v.z, v.grad_out, v.residual, channels, lowest,
                            [&](int, const Sums<acc_t>& more) { few = combined(few, more); });
    });
    sums = combined(sums, few);
    if (!writes) return;
    with_activation(params.pointwise.activation, [&](auto act) {
      differentiate<decltype(act)>(v.z, v.grad_out, v.residual, true, channels, lowest);
    });
    store_gradients(params, slots, v);
  });
  sums = stream_total(sums);
  if (device::thread_index() == 0) {
    store_sums(params.records, params.cut.parts, params.cut.channels, place.part, place.channel,
               sums);
  }
}

// Gradients of the maps, of one part of one channel. The block of a channel's first part writes the
// gradients of its vectors that are wanted.
//
// Grid: as above, in reverse; 256 threads. Shared memory: kScratchBytes.
template <typename scalar_t>
OCNET_KERNEL(kStreamThreads, together<scalar_t>(4, 4, 2))
inplace_abn_bwd_apply_planes_kernel(BackwardParams<scalar_t, PlaneCut> params) {
  using acc_t = accumulator_t<scalar_t>;
  constexpr int kPairs = kInFlight / 2;
  const PlanePlace place = locate_plane_in_reverse(params.cut);
  const int64_t c = place.channel;
  const bool frozen = params.sums.data == nullptr;
  const bool adds = !frozen && params.residual != nullptr;
  BackwardChannel<acc_t> channel;
  if (frozen) {
    channel = channel_without_sums(params, c);
  } else {
    channel = merged_records<Sums<acc_t>>(params.sums, c, [&](const Sums<acc_t>& sums) {
      if (place.part == 0) {
        write_vectors(params.vectors, params.pointwise, params.cut.channels, c, sums);
      }
      return channel_with_sums(params, c, sums);
    });
  }
  for_slots<scalar_t, kPairs>(params.cut, place, [&](const Slot(&slots)[kPairs]) {
    BackwardVectors<scalar_t, kPairs> v(params, adds, slots);
    with_activation(params.pointwise.activation, [&](auto act) {
      differentiate<decltype(act)>(
          v.z, v.grad_out, v.residual, frozen, [&](int) { return channel; },
          params.pointwise.lowest);
    });
    store_gradients(params, slots, v);
  });
}

template <typename Cut>
Grid stream_grid(const Cut& cut, size_t shared_bytes) {
  return {cut.blocks(), kStreamThreads, shared_bytes};
}
template <typename scalar_t, typename Launch>
void launch_stats(const StatsParams<scalar_t, PlaneCut>& params, const Launch& launch) {
  launch(inplace_abn_stats_planes_kernel<scalar_t>, stream_grid(params.cut, kScratchBytes), params);
}
template <typename scalar_t, typename Launch>
void launch_forward(const ForwardParams<scalar_t, PlaneCut>& params, const Launch& launch) {
  launch(inplace_abn_fwd_planes_kernel<scalar_t>, stream_grid(params.cut, kScratchBytes), params);
}
template <typename scalar_t, typename Launch>
void launch_reduce(const BackwardParams<scalar_t, PlaneCut>& params, const Launch& launch) {
  launch(inplace_abn_bwd_reduce_planes_kernel<scalar_t>, stream_grid(params.cut, kScratchBytes),
         params);
}
template <typename scalar_t, typename Launch>
void launch_apply(const BackwardParams<scalar_t, PlaneCut>& params, const Launch& launch) {
  launch(inplace_abn_bwd_apply_planes_kernel<scalar_t>, stream_grid(params.cut, kScratchBytes),
         params);
}

}  // namespace ocnet::abn
