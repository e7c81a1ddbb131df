// SPDX-License-Identifier: MIT
// Probes of what threads do together: indices, shuffles, votes, barriers, atomics, clusters.
#pragma once

#include "common/atomics.cuh"
#include "common/cluster.cuh"
#include "common/device.cuh"
#include "common/ptx/address.cuh"
#include "common/ptx/dependent_launch.cuh"
#include "probe.h"

namespace ocnet::probes {

constexpr int kFewThreads = 64;  // two warps
constexpr int kBlockThreads = 128;

struct IndexParams {
  int64_t* out;  // 7 for each thread of the grid
};
OCNET_KERNEL(kFewThreads, 1) index_kernel(IndexParams params) {
  const int thread = device::thread_index();
  int64_t* const out = params.out + (device::block_index() * kFewThreads + thread) * 7;
  out[0] = thread;
  out[1] = device::block_index();
  out[2] = device::grid_blocks();
  out[3] = device::lane_index();
  out[4] = device::warp_index();
  out[5] = ptx::shared_address(device::shared_memory<char>()) % 1024;
  out[6] = ptx::opaque(0x80000000u + static_cast<uint32_t>(thread));
}
inline void run_indices(const ProbeCall& call) {
  const int64_t blocks = call.elements<int64_t>(0) / (7 * kFewThreads);
  call.launch(&index_kernel, {blocks, kFewThreads, 1024}, IndexParams{call.buffer<int64_t>(0)});
}

template <typename T>
struct ShuffleParams {
  const T* values;
  const int32_t* lanes;
  T* picked;
  T* exchanged;  // 32 masks by threads
};
template <typename T>
OCNET_KERNEL(kFewThreads, 1)
shuffle_kernel(ShuffleParams<T> params) {
  const int thread = device::thread_index();
  const T value = params.values[thread];
  params.picked[thread] = device::shuffle(value, params.lanes[thread]);
  for (int mask = 0; mask < device::kWarpThreads; ++mask) {
    params.exchanged[mask * kFewThreads + thread] = device::shuffle_xor(value, mask);
  }
}
template <typename T>
void run_shuffle(const ProbeCall& call) {
  call.launch(&shuffle_kernel<T>, {1, kFewThreads},
              ShuffleParams<T>{call.buffer<T>(0), call.buffer<int32_t>(1), call.buffer<T>(2),
                               call.buffer<T>(3)});
}

struct VoteParams {
  const uint32_t* votes;
  uint32_t* ballots;
  uint32_t* any;
  uint32_t* all;
};
OCNET_KERNEL(kFewThreads, 1) vote_kernel(VoteParams params) {
  const int thread = device::thread_index();
  const bool vote = params.votes[thread] != 0;
  params.ballots[thread] = device::ballot(vote);
  params.any[thread] = device::any(vote);
  params.all[thread] = device::all(vote);
}
inline void run_vote(const ProbeCall& call) {
  call.launch(&vote_kernel, {1, kFewThreads},
              VoteParams{call.buffer<uint32_t>(0), call.buffer<uint32_t>(1),
                         call.buffer<uint32_t>(2), call.buffer<uint32_t>(3)});
}

// Which lane is elected is the device's own affair: that it is one, and the same again, is not.
struct ElectParams {
  uint32_t* one;
  uint32_t* same;
};
OCNET_KERNEL(kFewThreads, 1) elect_kernel(ElectParams params) {
  const int thread = device::thread_index();
  const uint32_t first = device::ballot(device::elect_one());
  const uint32_t second = device::ballot(device::elect_one());
  params.one[thread] = first != 0 && (first & (first - 1)) == 0;
  params.same[thread] = first == second;
}
inline void run_elect(const ProbeCall& call) {
  call.launch(&elect_kernel, {1, kFewThreads},
              ElectParams{call.buffer<uint32_t>(0), call.buffer<uint32_t>(1)});
}

// Every round, each thread writes its word and reads the one of a thread `step` further, of the
// warp or of the block.
struct ExchangeParams {
  const uint32_t* values;  // rounds by threads
  uint32_t* out;
  int rounds;
  int step;
};
template <bool kWarpOnly>
OCNET_KERNEL(kBlockThreads, 1)
exchange_kernel(ExchangeParams params) {
  constexpr int kGroup = kWarpOnly ? device::kWarpThreads : kBlockThreads;
  const auto meet = [] {
    if constexpr (kWarpOnly) {
      device::sync_warp();
    } else {
      device::barrier();
    }
  };
  const int thread = device::thread_index();
  uint32_t* const group = device::shared_memory<uint32_t>() + thread / kGroup * kGroup;
  for (int round = 0; round < params.rounds; ++round) {
    const int at = round * kBlockThreads + thread;
    group[thread % kGroup] = params.values[at];
    meet();
    params.out[at] = group[(thread + params.step) % kGroup];
    meet();
  }
}
template <bool kWarpOnly>
void run_exchange(const ProbeCall& call) {
  const int rounds = static_cast<int>(call.elements<uint32_t>(0) / kBlockThreads);
  call.launch(&exchange_kernel<kWarpOnly>, {1, kBlockThreads, kBlockThreads * sizeof(uint32_t)},
              ExchangeParams{call.buffer<uint32_t>(0), call.buffer<uint32_t>(1), rounds,
                             static_cast<int>(call.arguments[0])});
}

// Two warps hand a tile to two others, round after round.
struct NamedBarrierParams {
  const uint32_t* values;  // rounds by 64
  uint32_t* out;
  int rounds;
  int full;
  int empty;
};
OCNET_KERNEL(kBlockThreads, 1) named_barrier_kernel(NamedBarrierParams params) {
  uint32_t* const tile = device::shared_memory<uint32_t>();
  const int thread = device::thread_index() % kFewThreads;
  if (device::thread_index() < kFewThreads) {
    for (int round = 0; round < params.rounds; ++round) {
      if (round > 0) device::named_barrier_sync(params.empty, kBlockThreads);
      tile[thread] = params.values[round * kFewThreads + thread];
      device::named_barrier_arrive(params.full, kBlockThreads);
    }
  } else {
    for (int round = 0; round < params.rounds; ++round) {
      device::named_barrier_sync(params.full, kBlockThreads);
      params.out[round * kFewThreads + thread] = tile[kFewThreads - 1 - thread];
      if (round + 1 < params.rounds) device::named_barrier_arrive(params.empty, kBlockThreads);
    }
  }
}
inline void run_named_barrier(const ProbeCall& call) {
  const int rounds = static_cast<int>(call.elements<uint32_t>(0) / kFewThreads);
  call.launch(
      &named_barrier_kernel, {1, kBlockThreads, kFewThreads * sizeof(uint32_t)},
      NamedBarrierParams{call.buffer<uint32_t>(0), call.buffer<uint32_t>(1), rounds,
                         static_cast<int>(call.arguments[0]), static_cast<int>(call.arguments[1])});
}

// Sum, maximum, a chain of exchanges, and tickets: what comes of them shows no order.
constexpr int kAtomicWords = 5;
template <typename T>
struct AtomicParams {
  const T* values;
  T* words;        // kAtomicWords for global memory, then as many for shared memory
  uint32_t* seen;  // by ticket, for both
};
template <typename T, bool kSumOnly>
OCNET_DEVICE void atomics_on(T* words, uint32_t* seen, T value) {
  device::atomic_add(&words[0], value);
  seen[static_cast<int>(device::atomic_add(&words[1], T(1)))] = 1;
  if constexpr (!kSumOnly) {
    device::atomic_max(&words[2], value);
    device::atomic_add(&words[3], device::atomic_exchange(&words[4], value));
  }
  device::barrier();
  if (device::thread_index() == 0) words[3] += words[4];
  device::barrier();
  if (device::thread_index() == 0) words[4] = 0;
}
template <typename T, bool kSumOnly>
OCNET_KERNEL(kBlockThreads, 1)
atomic_kernel(AtomicParams<T> params) {
  T* const shared = device::shared_memory<T>();
  const int thread = device::thread_index();
  if (thread < kAtomicWords) shared[thread] = params.words[kAtomicWords + thread];
  device::barrier();
  const T value = params.values[thread];
  atomics_on<T, kSumOnly>(params.words, params.seen, value);
  atomics_on<T, kSumOnly>(shared, params.seen + kBlockThreads, value);
  device::barrier();
  if (thread < kAtomicWords) params.words[kAtomicWords + thread] = shared[thread];
}
template <typename T, bool kSumOnly = false>
void run_atomics(const ProbeCall& call) {
  call.launch(&atomic_kernel<T, kSumOnly>, {1, kBlockThreads, kAtomicWords * sizeof(T)},
              AtomicParams<T>{call.buffer<T>(0), call.buffer<T>(1), call.buffer<uint32_t>(2)});
}

// Every block publishes a row; the last one to do so sums the rows.
struct FenceParams {
  const uint32_t* values;  // blocks by threads
  uint32_t* rows;
  uint32_t* arrived;
  uint32_t* sums;
};
OCNET_KERNEL(kFewThreads, 1) thread_fence_kernel(FenceParams params) {
  uint32_t* const last = device::shared_memory<uint32_t>();
  const int thread = device::thread_index();
  const int64_t at = device::block_index() * kFewThreads + thread;
  params.rows[at] = params.values[at] * 3;
  device::barrier();
  if (thread == 0) {
    device::thread_fence();
    *last = device::atomic_add(params.arrived, 1u) + 1 == device::grid_blocks();
    device::thread_fence();
  }
  device::barrier();
  if (*last == 0) return;
  uint32_t sum = 0;
  for (int64_t block = 0; block < device::grid_blocks(); ++block) {
    sum += params.rows[block * kFewThreads + thread];
  }
  params.sums[thread] = sum;
}
inline void run_thread_fence(const ProbeCall& call) {
  call.launch(&thread_fence_kernel,
              {call.elements<uint32_t>(0) / kFewThreads, kFewThreads, sizeof(uint32_t)},
              FenceParams{call.buffer<uint32_t>(0), call.buffer<uint32_t>(1),
                          call.buffer<uint32_t>(2), call.buffer<uint32_t>(3)});
}

// Each block reads a tile of the next one of its cluster, writes one to it, and counts at the
// first.
struct ClusterParams {
  const uint32_t* values;  // blocks by threads
  uint32_t* ranks;         // rank and size for each block
  uint32_t* read;
  uint32_t* received;
  uint32_t* counted;  // by block
};
OCNET_KERNEL(kFewThreads, 1) cluster_kernel(ClusterParams params) {
  uint32_t* const own = device::shared_memory<uint32_t>();
  uint32_t* const received = own + kFewThreads;
  uint32_t* const counter = received + kFewThreads;
  const int thread = device::thread_index();
  const int rank = device::cluster_rank();
  const int next = (rank + 1) % device::cluster_blocks();
  const int64_t at = device::block_index() * kFewThreads + thread;
  own[thread] = params.values[at];
  if (thread == 0) {
    *counter = 0;
    params.ranks[2 * device::block_index()] = static_cast<uint32_t>(rank);
    params.ranks[2 * device::block_index() + 1] = static_cast<uint32_t>(device::cluster_blocks());
  }
  device::cluster_barrier();
  params.read[at] = device::cluster_pointer(own, next)[kFewThreads - 1 - thread];
  device::cluster_pointer(received, next)[thread] = params.values[at] * 5;
  device::atomic_add(device::cluster_pointer(counter, 0), 1u);
  device::cluster_arrive();
  device::cluster_wait();
  params.received[at] = received[thread];
  if (thread == 0) params.counted[device::block_index()] = *counter;
}
inline void run_cluster(const ProbeCall& call) {
  call.launch(
      &cluster_kernel,
      {call.elements<uint32_t>(0) / kFewThreads, kFewThreads,
       (2 * kFewThreads + 1) * sizeof(uint32_t), static_cast<int>(call.arguments[0])},
      ClusterParams{call.buffer<uint32_t>(0), call.buffer<uint32_t>(1), call.buffer<uint32_t>(2),
                    call.buffer<uint32_t>(3), call.buffer<uint32_t>(4)});
}

// Launches that begin early, each of which reads what all blocks of the one before it wrote.
struct ChainParams {
  const uint32_t* from;
  uint32_t* to;
  int64_t count;
};
OCNET_KERNEL(kFewThreads, 1) chain_kernel(ChainParams params) {
  ptx::allow_next_launch();
  const int64_t i = device::block_index() * kFewThreads + device::thread_index();
  ptx::wait_for_earlier_launches();
  params.to[i] = 3 * params.from[params.count - 1 - i] + 1;
}
inline void run_chain(const ProbeCall& call) {
  const int64_t count = call.elements<uint32_t>(0);
  for (int64_t link = 0; link < call.arguments[0]; ++link) {
    Grid grid{count / kFewThreads, kFewThreads};
    grid.programmatic = true;
    uint32_t* const pair[] = {call.buffer<uint32_t>(0), call.buffer<uint32_t>(1)};
    call.launch(&chain_kernel, grid, ChainParams{pair[link % 2], pair[1 - link % 2], count});
  }
}

inline const Probe kThreadProbes[] = {
    {"indices", &run_indices},
    {"shuffle_uint32", &run_shuffle<uint32_t>},
    {"shuffle_uint64", &run_shuffle<uint64_t>},
    {"shuffle_float32", &run_shuffle<float>},
    {"shuffle_float64", &run_shuffle<double>},
    {"vote", &run_vote},
    {"elect_one", &run_elect},
    {"sync_warp", &run_exchange<true>},
    {"barrier", &run_exchange<false>},
    {"named_barrier", &run_named_barrier},
    {"atomics_int32", &run_atomics<int32_t>},
    {"atomics_uint32", &run_atomics<uint32_t>},
    {"atomics_uint64", &run_atomics<uint64_t>},
    {"atomics_float32", &run_atomics<float, true>},
    {"thread_fence", &run_thread_fence},
    {"cluster", &run_cluster},
    {"dependent_launch", &run_chain},
};

}  // namespace ocnet::probes
