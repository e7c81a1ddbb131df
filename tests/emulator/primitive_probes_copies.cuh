// SPDX-License-Identifier: MIT
// Probes of asynchronous copies by threads and of mbarriers.
#pragma once

#include "common/cluster.cuh"
#include "common/ptx/cp_async.cuh"
#include "common/ptx/fence.cuh"
#include "common/ptx/mbarrier.cuh"
#include "common/ptx/tma.cuh"
#include "primitive_probes_common.cuh"

namespace ocnet::probes {

constexpr int kCopyThreads = 64;
constexpr int kTileStart = 1024;  // mbarriers lie before it
constexpr int kCopyGroups = 3;

OCNET_DEVICE uint32_t* tile_words() {
  return reinterpret_cast<uint32_t*>(device::shared_memory<unsigned char>() + kTileStart);
}

// Thread t copies to piece t of each of kCopyGroups tiles, which start as `image`.
struct CopyParams {
  const unsigned char* source;
  const int32_t* offsets;  // groups by threads: bytes from the start of `source`
  const int32_t* valid;    // groups by threads
  const uint32_t* image;
  uint32_t* out;
};
template <int kBytes>
OCNET_DEVICE void issue_copy(const CopyParams& params, int group) {
  const int at = group * kCopyThreads + device::thread_index();
  ptx::copy_async<kBytes>(ptx::shared_address(tile_words()) + at * kBytes,
                          params.source + params.offsets[at], params.valid[at]);
}
template <int kBytes>
constexpr int kCopyWords = kCopyGroups * kCopyThreads * kBytes / 4;

// Each group is waited for on its own, and read by the thread that copied it.
template <int kBytes>
OCNET_KERNEL(kCopyThreads, 1)
copy_kernel(CopyParams params) {
  uint32_t* const tile = tile_words();
  copy_words(tile, params.image, kCopyWords<kBytes>, kCopyThreads);
  device::barrier();
  const auto read_back = [&](int group) {
    constexpr int kWords = kBytes / 4;
    const int at = (group * kCopyThreads + device::thread_index()) * kWords;
    for (int word = at; word < at + kWords; ++word) params.out[word] = tile[word];
  };
  for (int group = 0; group < kCopyGroups; ++group) {
    issue_copy<kBytes>(params, group);
    ptx::copy_async_commit();
  }
  ptx::copy_async_wait<2>();
  read_back(0);
  ptx::copy_async_wait<1>();
  read_back(1);
  ptx::copy_async_wait<0>();
  read_back(2);
}

// The copies of all threads are counted by one mbarrier, phase after phase, and read by others.
template <int kBytes>
OCNET_KERNEL(kCopyThreads, 1)
copy_arrive_kernel(CopyParams params) {
  uint32_t* const tile = tile_words();
  const uint32_t mbarrier = ptx::shared_address(device::shared_memory<uint64_t>());
  copy_words(tile, params.image, kCopyWords<kBytes>, kCopyThreads);
  if (device::thread_index() == 0) {
    ptx::mbarrier_init(mbarrier, kCopyThreads);
    ptx::fence_mbarrier_init();
  }
  device::barrier();
  constexpr int kTileWords = kCopyWords<kBytes> / kCopyGroups;
  for (int group = 0; group < kCopyGroups; ++group) {
    issue_copy<kBytes>(params, group);
    ptx::copy_async_arrive(mbarrier);
    ptx::mbarrier_wait(mbarrier, static_cast<uint32_t>(group % 2));
    for (int word = device::thread_index(); word < kTileWords; word += kCopyThreads) {
      params.out[(group + 1) * kTileWords - 1 - word] = tile[(group + 1) * kTileWords - 1 - word];
    }
  }
}
template <int kBytes>
void run_copy(const ProbeCall& call) {
  const CopyParams params{call.buffer<unsigned char>(0), call.buffer<int32_t>(1),
                          call.buffer<int32_t>(2), call.buffer<uint32_t>(3),
                          call.buffer<uint32_t>(4)};
  const Grid grid{1, kCopyThreads, kTileStart + kCopyWords<kBytes> * sizeof(uint32_t)};
  if (call.arguments[0] != 0) {
    call.launch(&copy_arrive_kernel<kBytes>, grid, params);
  } else {
    call.launch(&copy_kernel<kBytes>, grid, params);
  }
}

// One thread follows a script of (step, operand) and writes what it finds.
enum MbarrierStep : int32_t { kArrive, kArriveExpect, kExpect, kTest, kWait, kLoad };
constexpr int kPieceWords = 32;  // that one kLoad copies

struct MbarrierParams {
  TensorMap map;  // of pieces in a row
  const int32_t* script;
  int32_t* found;  // by step
  uint32_t* out;   // pieces
  int steps;
  int arrivals;
  int words;
};
OCNET_DEVICE int32_t follow(const MbarrierParams& params, uint32_t mbarrier, int step) {
  const int operand = params.script[2 * step + 1];
  switch (params.script[2 * step]) {
    case kArrive:
      ptx::mbarrier_arrive(mbarrier);
      break;
    case kArriveExpect:
      ptx::mbarrier_arrive_expect(mbarrier, operand);
      break;
    case kExpect:
      ptx::mbarrier_expect(mbarrier, operand);
      break;
    case kTest:
      return ptx::mbarrier_test(mbarrier, static_cast<uint32_t>(operand));
    case kWait:
      ptx::mbarrier_wait(mbarrier, static_cast<uint32_t>(operand));
      break;
    case kLoad:
      ptx::tensor_load(ptx::shared_address(tile_words() + operand * kPieceWords), params.map,
                       mbarrier, {operand * kPieceWords});
      break;
  }
  return 0;
}
OCNET_KERNEL(kOneWarp, 1) mbarrier_kernel(OCNET_GRID_CONSTANT MbarrierParams params) {
  const uint32_t mbarrier = ptx::shared_address(device::shared_memory<uint64_t>());
  if (device::thread_index() == 0) {
    ptx::mbarrier_init(mbarrier, params.arrivals);
    ptx::fence_mbarrier_init();
    for (int step = 0; step < params.steps; ++step) {
      params.found[step] = follow(params, mbarrier, step);
    }
    for (int word = 0; word < params.words; ++word) params.out[word] = tile_words()[word];
  }
}
inline void run_mbarrier(const ProbeCall& call) {
  const int words = words_of(call, 1);
  TensorMapRequest request;
  request.data = call.buffer<void>(1);
  request.element = MapElement::kFloat32;
  request.rank = 1;
  request.sizes[0] = static_cast<uint64_t>(words);
  request.box[0] = kPieceWords;
  MbarrierParams params{};
  params.map = encode_tensor_map("mbarrier probe", request);
  params.script = call.buffer<int32_t>(0);
  params.found = call.buffer<int32_t>(2);
  params.out = call.buffer<uint32_t>(3);
  params.steps = static_cast<int>(call.elements<int32_t>(0) / 2);
  params.arrivals = static_cast<int>(call.arguments[0]);
  params.words = words;
  call.launch(&mbarrier_kernel, {1, kOneWarp, kTileStart + words * sizeof(uint32_t)}, params);
}

// A ring of two tiles between one warp and another; each tile has a full and an empty mbarrier.
// Afterwards the bytes of the mbarriers hold words again.
struct RingParams {
  const uint32_t* values;  // rounds by lanes
  uint32_t* out;
  uint32_t* reused;  // 8
  int rounds;
};
constexpr int kRingTiles = 2;
OCNET_KERNEL(2 * kOneWarp, 1) ring_kernel(RingParams params) {
  uint64_t* const mbarriers = device::shared_memory<uint64_t>();
  const auto full = [&](int tile) { return ptx::shared_address(mbarriers + tile); };
  const auto empty = [&](int tile) { return ptx::shared_address(mbarriers + kRingTiles + tile); };
  const int lane = device::lane_index();
  if (device::thread_index() == 0) {
    for (int tile = 0; tile < kRingTiles; ++tile) {
      ptx::mbarrier_init(full(tile), kOneWarp);
      ptx::mbarrier_init(empty(tile), kOneWarp);
    }
    ptx::fence_mbarrier_init();
  }
  device::barrier();
  for (int round = 0; round < params.rounds; ++round) {
    const int tile = round % kRingTiles;
    const uint32_t parity = static_cast<uint32_t>(round / kRingTiles % 2);
    uint32_t* const words = tile_words() + tile * kOneWarp;
    if (device::warp_index() == 0) {
      ptx::mbarrier_wait(empty(tile), parity ^ 1);
      words[lane] = params.values[round * kOneWarp + lane];
      ptx::mbarrier_arrive(full(tile));
    } else {
      ptx::mbarrier_wait(full(tile), parity);
      params.out[round * kOneWarp + lane] = words[kOneWarp - 1 - lane];
      ptx::mbarrier_arrive(empty(tile));
    }
  }
  device::barrier();
  if (device::thread_index() == 0) {
    for (int i = 0; i < 2 * kRingTiles; ++i) {
      ptx::mbarrier_invalidate(ptx::shared_address(mbarriers + i));
    }
    uint32_t* const words = device::shared_memory<uint32_t>();
    for (int i = 0; i < 4 * kRingTiles; ++i) words[i] = params.values[i];
    for (int i = 0; i < 4 * kRingTiles; ++i) params.reused[i] = words[i];
  }
}
inline void run_ring(const ProbeCall& call) {
  call.launch(
      &ring_kernel, {1, 2 * kOneWarp, kTileStart + kRingTiles * kOneWarp * sizeof(uint32_t)},
      RingParams{call.buffer<uint32_t>(0), call.buffer<uint32_t>(1), call.buffer<uint32_t>(2),
                 static_cast<int>(call.elements<uint32_t>(0) / kOneWarp)});
}

// Each block of a cluster writes into the next one's shared memory and arrives at its mbarrier.
struct RemoteParams {
  const uint32_t* values;  // rounds by blocks by lanes
  uint32_t* out;
  int rounds;
};
OCNET_KERNEL(kOneWarp, 1) remote_arrive_kernel(RemoteParams params) {
  const uint32_t mbarrier = ptx::shared_address(device::shared_memory<uint64_t>());
  const int lane = device::lane_index();
  const int next = (device::cluster_rank() + 1) % device::cluster_blocks();
  if (lane == 0) {
    ptx::mbarrier_init(mbarrier, kOneWarp);
    ptx::fence_mbarrier_init();
  }
  device::cluster_barrier();
  for (int round = 0; round < params.rounds; ++round) {
    const int64_t at = (round * device::grid_blocks() + device::block_index()) * kOneWarp + lane;
    device::cluster_pointer(tile_words(), next)[lane] = params.values[at];
    ptx::mbarrier_arrive_cluster(ptx::cluster_address(mbarrier, next));
    ptx::mbarrier_wait(mbarrier, static_cast<uint32_t>(round % 2));
    params.out[at] = tile_words()[kOneWarp - 1 - lane];
    device::cluster_barrier();
  }
}
inline void run_remote_arrive(const ProbeCall& call) {
  const int64_t blocks = call.arguments[0];
  call.launch(&remote_arrive_kernel,
              {blocks, kOneWarp, kTileStart + kOneWarp * sizeof(uint32_t),
               static_cast<int>(call.arguments[1])},
              RemoteParams{call.buffer<uint32_t>(0), call.buffer<uint32_t>(1),
                           static_cast<int>(call.elements<uint32_t>(0) / (blocks * kOneWarp))});
}

inline const Probe kCopyProbes[] = {
    {"copy_async_4", &run_copy<4>},   {"copy_async_8", &run_copy<8>},
    {"copy_async_16", &run_copy<16>}, {"mbarrier", &run_mbarrier},
    {"mbarrier_ring", &run_ring},     {"mbarrier_remote", &run_remote_arrive},
};

}  // namespace ocnet::probes
