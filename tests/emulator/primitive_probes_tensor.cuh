// SPDX-License-Identifier: MIT
// Probes of the copy engine: boxes of tensors, loaded, multicast and stored.
#pragma once

#include "common/cluster.cuh"
#include "common/ptx/fence.cuh"
#include "common/ptx/mbarrier.cuh"
#include "common/ptx/tma.cuh"
#include "common/tensor_map_cache.h"
#include "primitive_probes_common.cuh"

namespace ocnet::probes {

constexpr int kBoxThreads = 32;
constexpr int kBoxStart = 1024;  // an mbarrier lies before it
constexpr uint32_t kUnwritten = 0xdeadbeefu;

struct BoxParams {
  TensorMap map;
  const int32_t* at;  // coordinates of each box, innermost first
  uint32_t* boxes;
  uint32_t* tensor;
  int count;
  int box_words;
  int slot_bytes;  // from one box in shared memory to the next
  int masks[2];    // of the blocks of a cluster
};

OCNET_DEVICE unsigned char* box_bytes() {
  return device::shared_memory<unsigned char>() + kBoxStart;
}
template <int kRank>
OCNET_DEVICE void coordinates_of(int (&at)[kRank], const BoxParams& params, int64_t box) {
  OCNET_UNROLL
  for (int axis = 0; axis < kRank; ++axis) at[axis] = params.at[box * kRank + axis];
}
OCNET_DEVICE void clear_box(uint32_t* words, int count) {
  for (int word = device::thread_index(); word < count; word += kBoxThreads) {
    words[word] = kUnwritten;
  }
}

// One box after the other, each into memory that holds something else.
template <int kRank>
OCNET_KERNEL(kBoxThreads, 1)
box_load_kernel(OCNET_GRID_CONSTANT BoxParams params) {
  const uint32_t mbarrier = ptx::shared_address(device::shared_memory<uint64_t>());
  uint32_t* const box = reinterpret_cast<uint32_t*>(box_bytes());
  const bool leader = device::thread_index() == 0;
  if (leader) {
    ptx::tensor_prefetch(params.map);
    ptx::mbarrier_init(mbarrier, 1);
    ptx::fence_mbarrier_init();
  }
  for (int i = 0; i < params.count; ++i) {
    clear_box(box, params.box_words);
    ptx::fence_proxy_async();
    device::barrier();
    if (leader) {
      int at[kRank];
      coordinates_of(at, params, i);
      ptx::mbarrier_arrive_expect(mbarrier, params.box_words * 4);
      ptx::tensor_load(ptx::shared_address(box), params.map, mbarrier, at);
    }
    ptx::mbarrier_wait(mbarrier, static_cast<uint32_t>(i % 2));
    copy_words(params.boxes + i * params.box_words, box, params.box_words, kBoxThreads);
    device::barrier();
  }
}

// Two blocks; each loads one box into slot `rank` of the blocks in its mask.
template <int kRank>
OCNET_KERNEL(kBoxThreads, 1)
box_multicast_kernel(OCNET_GRID_CONSTANT BoxParams params) {
  const uint32_t mbarrier = ptx::shared_address(device::shared_memory<uint64_t>());
  const int rank = device::cluster_rank();
  const bool leader = device::thread_index() == 0;
  const auto slot = [&](int box) {
    return reinterpret_cast<uint32_t*>(box_bytes() + box * params.slot_bytes);
  };
  if (leader) {
    ptx::mbarrier_init(mbarrier, 1);
    ptx::fence_mbarrier_init();
  }
  for (int box = 0; box < 2; ++box) clear_box(slot(box), params.box_words);
  ptx::fence_proxy_async();
  device::cluster_barrier();
  if (leader) {
    int boxes = 0;
    for (const int mask : params.masks) boxes += mask >> rank & 1;
    ptx::mbarrier_arrive_expect(mbarrier, boxes * params.box_words * 4);
    int at[kRank];
    coordinates_of(at, params, rank);
    ptx::tensor_load_multicast(ptx::shared_address(slot(rank)), params.map, mbarrier, at,
                               static_cast<uint16_t>(params.masks[rank]));
  }
  ptx::mbarrier_wait(mbarrier, 0);
  for (int box = 0; box < 2; ++box) {
    copy_words(params.boxes + (rank * 2 + box) * params.box_words, slot(box), params.box_words,
               kBoxThreads);
  }
  device::cluster_barrier();
}

// Two slots in turn: one is filled while the other is on its way.
template <int kRank>
OCNET_KERNEL(kBoxThreads, 1)
box_store_kernel(OCNET_GRID_CONSTANT BoxParams params) {
  const bool leader = device::thread_index() == 0;
  for (int i = 0; i < params.count; ++i) {
    uint32_t* const box = reinterpret_cast<uint32_t*>(box_bytes() + i % 2 * params.slot_bytes);
    if (leader) ptx::bulk_wait_read<1>();
    device::barrier();
    copy_words(box, params.boxes + i * params.box_words, params.box_words, kBoxThreads);
    ptx::fence_proxy_async();
    device::barrier();
    if (leader) {
      int at[kRank];
      coordinates_of(at, params, i);
      ptx::tensor_store(params.map, ptx::shared_address(box), at);
      ptx::bulk_commit();
    }
  }
  if (leader) ptx::bulk_wait<0>();
}

// Rows of a matrix, of one box each; what has been waited for can be read back by the thread that
// stored it. Everything is on its way at once: no slot is used again.
OCNET_KERNEL(kBoxThreads, 1) bulk_group_kernel(OCNET_GRID_CONSTANT BoxParams params) {
  const auto slot = [&](int row) {
    return reinterpret_cast<uint32_t*>(box_bytes() + row * params.slot_bytes);
  };
  for (int row = 0; row < 3; ++row) {
    copy_words(slot(row), params.boxes + row * params.box_words, params.box_words, kBoxThreads);
  }
  ptx::fence_proxy_async();
  device::barrier();
  if (device::thread_index() != 0) return;
  for (int row = 0; row < 3; ++row) {
    ptx::tensor_store(params.map, ptx::shared_address(slot(row)), {0, row});
    ptx::bulk_commit();
  }
  uint32_t* const read_back = params.boxes + 3 * params.box_words;
  ptx::bulk_wait<2>();
  read_back[0] = params.tensor[0];
  ptx::bulk_wait<1>();
  read_back[1] = params.tensor[params.box_words];
  ptx::bulk_wait<0>();
  read_back[2] = params.tensor[2 * params.box_words];
}

inline MapElement element_of(int64_t bytes) {
  switch (bytes) {
    case 1:
      return MapElement::kFloat8;
    case 2:
      return MapElement::kBFloat16;
    default:
      return MapElement::kFloat32;
  }
}

// Arguments: bytes of an element, 0 or 1 for the swizzle, two masks, then sizes, strides in
// bytes and box sides by axis, innermost first. Buffers: tensor, coordinates, boxes.
template <int kRank>
BoxParams box_params(const ProbeCall& call) {
  const int64_t* argument = call.arguments;
  TensorMapRequest request;
  request.data = call.buffer<void>(0);
  request.element = element_of(*argument++);
  request.rank = kRank;
  request.swizzle = *argument++ != 0;
  BoxParams params{};
  for (int& mask : params.masks) mask = static_cast<int>(*argument++);
  int words = element_bytes(request.element);
  for (int axis = 0; axis < kRank; ++axis) {
    request.sizes[axis] = static_cast<uint64_t>(argument[axis]);
    request.stride_bytes[axis] = static_cast<uint64_t>(argument[kRank + axis]);
    request.box[axis] = static_cast<uint32_t>(argument[2 * kRank + axis]);
    words *= static_cast<int>(request.box[axis]);
  }
  params.map = cached_tensor_map("box probe", request);
  params.at = call.buffer<int32_t>(1);
  params.boxes = call.buffer<uint32_t>(2);
  params.tensor = call.buffer<uint32_t>(0);
  params.count = static_cast<int>(call.elements<int32_t>(1) / kRank);
  params.box_words = words / 4;
  params.slot_bytes = (words + 1023) / 1024 * 1024;
  return params;
}
inline Grid box_grid(const BoxParams& params, int slots, int blocks) {
  return {blocks, kBoxThreads, static_cast<size_t>(kBoxStart + slots * params.slot_bytes), blocks};
}
template <int kRank>
void run_box_load(const ProbeCall& call) {
  const BoxParams params = box_params<kRank>(call);
  call.launch(&box_load_kernel<kRank>, box_grid(params, 1, 1), params);
}
template <int kRank>
void run_box_multicast(const ProbeCall& call) {
  const BoxParams params = box_params<kRank>(call);
  call.launch(&box_multicast_kernel<kRank>, box_grid(params, 2, 2), params);
}
template <int kRank>
void run_box_store(const ProbeCall& call) {
  const BoxParams params = box_params<kRank>(call);
  call.launch(&box_store_kernel<kRank>, box_grid(params, 2, 1), params);
}
inline void run_bulk_group(const ProbeCall& call) {
  const BoxParams params = box_params<2>(call);
  call.launch(&bulk_group_kernel, box_grid(params, 3, 1), params);
}

inline const Probe kTensorProbes[] = {
    {"tensor_load_1", &run_box_load<1>},
    {"tensor_load_2", &run_box_load<2>},
    {"tensor_load_3", &run_box_load<3>},
    {"tensor_load_4", &run_box_load<4>},
    {"tensor_load_multicast_2", &run_box_multicast<2>},
    {"tensor_load_multicast_3", &run_box_multicast<3>},
    {"tensor_load_multicast_4", &run_box_multicast<4>},
    {"tensor_store_2", &run_box_store<2>},
    {"tensor_store_3", &run_box_store<3>},
    {"tensor_store_4", &run_box_store<4>},
    {"bulk_groups", &run_bulk_group},
};

}  // namespace ocnet::probes
