// SPDX-License-Identifier: MIT
// Faults of asynchronous copies: cp.async, and boxes of the copy engine through a ring of
// mbarriers.
#pragma once

#include "common/ptx/cp_async.cuh"
#include "common/ptx/descriptor.h"
#include "common/ptx/fence.cuh"
#include "common/ptx/mbarrier.cuh"
#include "common/ptx/tma.cuh"
#include "fault_probes_common.cuh"

namespace ocnet::probes::faults {

enum class CopyFault {
  kUnwaited,
  kUnshared,
  kMisaligned,
  kPastTail,
  kUncommitted,
  kUnwaitedCount,
  kOntoBarrier,
};

// 32 threads copy 4 floats each, counted at an mbarrier behind them.
constexpr int kCopyBarrier = 32 * 16;
constexpr int kCopyBytes = kCopyBarrier + 16;

template <CopyFault kFault>
OCNET_KERNEL(32, 1)
copies(FaultParams params) {
  const auto planted = [&](CopyFault fault) { return params.planted && fault == kFault; };
  float* const shared = device::shared_memory<float>();
  const int i = device::thread_index();
  const uint32_t barrier = ptx::shared_address(shared) + kCopyBarrier;
  if (i == 0) ptx::mbarrier_init(barrier, 32);
  device::barrier();
  const int shift = planted(CopyFault::kMisaligned) && i == 3 ? 1 : 0;
  const int left = 4 * (params.elements - 4 * i);
  const int valid = left < 0 ? 0 : left < 16 ? left : 16;
  ptx::copy_async<16>(  // fault: copy
      planted(CopyFault::kOntoBarrier) && i == 5 ? barrier : ptx::shared_address(shared + 4 * i),
      params.data + (left > 0 ? 4 * i - shift : 0), planted(CopyFault::kPastTail) ? 16 : valid);
  if (!planted(CopyFault::kUncommitted)) ptx::copy_async_commit();
  if (kFault == CopyFault::kUnwaitedCount) ptx::copy_async_arrive(barrier);
  device::sync_warp();  // all have been issued
  const bool counted = kFault == CopyFault::kUnwaitedCount;
  if (counted && !params.planted) ptx::mbarrier_wait(barrier, 0);
  // Every other thread waits for its group as well, which must not matter.
  const bool waits = !counted || (!params.planted && i % 2 == 0);
  if (waits && !planted(CopyFault::kUnwaited)) ptx::copy_async_wait<0>();
  if (!planted(CopyFault::kUnshared)) device::barrier();
  for (int k = i; k < params.elements; k += 32) {
    const float value = shared[k];  // fault: read_copy
    params.result[k] = 2 * value;
  }
}

// Boxes of 8 rows by 32 floats: 1024 bytes, one atom of the swizzle.
constexpr int kBoxRows = 8;
constexpr int kBoxColumns = 32;
constexpr int kBoxElements = kBoxRows * kBoxColumns;
constexpr int kBoxBytes = kBoxElements * 4;
constexpr int kRingStages = 2;
constexpr int kRingBarriers = kRingStages * kBoxBytes;
constexpr int kRingBytes = kRingBarriers + kRingStages * 16;

inline TensorMap box_map(const float* data, int elements, int rows, bool swizzle) {
  TensorMapRequest request;
  request.data = const_cast<float*>(data);
  request.element = MapElement::kFloat32;
  request.rank = 2;
  request.sizes[0] = kBoxColumns;
  request.sizes[1] = static_cast<uint64_t>(elements / kBoxColumns);
  request.stride_bytes[1] = kBoxColumns * 4;
  request.box[0] = kBoxColumns;
  request.box[1] = static_cast<uint32_t>(rows);
  request.swizzle = swizzle;
  return encode_tensor_map("fault probe", request);
}

enum class RingFault {
  kWrongPhase,
  kUnguarded,
  kEarlyRelease,
  kUnreleased,
  kTooManyBytes,
  kTooFewBytes,
  kExtraArrival,
  kUnfencedInit,
  kUnsharedInit,
  kUninitialised,
  kOverwrittenBarrier,
  kMisplaced,
  kUnswizzled,
  kUnread,
  kMapPastTail,
};

struct RingStage {
  int index;
  uint32_t parity;
  uint32_t box;
  uint32_t full;
  uint32_t empty;

  OCNET_DEVICE RingStage(uint32_t shared, int step) {
    index = step % kRingStages;
    parity = step / kRingStages % 2;
    box = shared + index * kBoxBytes;
    full = shared + kRingBarriers + index * 16;
    empty = full + 8;
  }
};

template <RingFault kFault>
struct FaultyRing {
  const FaultParams& params;
  uint32_t shared;

  OCNET_DEVICE bool planted(RingFault fault) const { return params.planted && fault == kFault; }

  OCNET_DEVICE void prepare() const {
    float* const floats = device::shared_memory<float>();
    if (device::thread_index() == 0) {
      for (int step = 0; step < kRingStages; ++step) {
        const RingStage stage(shared, step);
        if (!planted(RingFault::kUninitialised)) ptx::mbarrier_init(stage.full, 1);
        ptx::mbarrier_init(stage.empty, 1);
      }
      if (!planted(RingFault::kUnfencedInit)) ptx::fence_mbarrier_init();
    }
    if (!planted(RingFault::kUnsharedInit)) device::barrier();
    if (planted(RingFault::kOverwrittenBarrier) && device::thread_index() == 40) {
      floats[kRingBarriers / 4] = 0;  // fault: overwritten_barrier
    }
  }

  OCNET_DEVICE void produce(int boxes) const {
    for (int step = 0; step < boxes; ++step) {
      const RingStage stage(shared, step);
      if (!planted(RingFault::kUnguarded)) {
        ptx::mbarrier_wait(stage.empty, stage.parity ^ 1);  // fault: empty_wait
      }
      const int wrong_bytes = planted(RingFault::kTooManyBytes)  ? 16
                              : planted(RingFault::kTooFewBytes) ? -16
                                                                 : 0;
      ptx::mbarrier_arrive_expect(stage.full, kBoxBytes + wrong_bytes);  // fault: expect
      if (planted(RingFault::kExtraArrival)) {
        ptx::mbarrier_arrive(stage.full);  // fault: extra_arrival
      }
      const uint32_t box = stage.box + (planted(RingFault::kMisplaced) ? 64 : 0);
      ptx::tensor_load(  // fault: load
          box, params.data_map, stage.full, {0, step * kBoxRows});
    }
  }

  OCNET_DEVICE void consume(int boxes) const {
    const int lane = device::lane_index();
    const auto* const bytes = device::shared_memory<unsigned char>();
    for (int step = 0; step < boxes; ++step) {
      const RingStage stage(shared, step);
      const uint32_t parity = planted(RingFault::kWrongPhase) ? stage.parity ^ 1 : stage.parity;
      ptx::mbarrier_wait(stage.full, parity);  // fault: full_wait
      if (planted(RingFault::kEarlyRelease)) release(stage);
      for (int row = 0; row < kBoxRows; ++row) {
        const uint32_t plain = stage.box - shared + (row * kBoxColumns + lane) * 4;
        const uint32_t at = planted(RingFault::kUnswizzled) ? plain : ptx::swizzle_128(plain);
        const float value = *reinterpret_cast<const float*>(bytes + at);  // fault: read_box
        params.result[step * kBoxElements + row * kBoxColumns + lane] = 2 * value;
      }
      if (!planted(RingFault::kEarlyRelease)) release(stage);
    }
  }

  OCNET_DEVICE void release(const RingStage& stage) const {
    device::sync_warp();
    if (planted(RingFault::kUnreleased)) return;
    if (device::lane_index() == 0) ptx::mbarrier_arrive(stage.empty);
  }
};

// A producer warp and a consumer warp.
template <RingFault kFault>
OCNET_KERNEL(64, 1)
ring(OCNET_GRID_CONSTANT FaultParams params) {
  const FaultyRing<kFault> ring{params, ptx::shared_address(device::shared_memory<char>())};
  const int more = ring.planted(RingFault::kMapPastTail) ? 1 : 0;
  const int boxes = params.elements / kBoxElements + more;
  ring.prepare();
  if (device::warp_index() == 0) {
    const int unread = ring.planted(RingFault::kUnread) ? 1 : 0;
    if (device::elect_one()) ring.produce(boxes + unread);
  } else {
    ring.consume(boxes);
  }
}

template <RingFault kFault>
void run_ring(const ProbeCall& call) {
  FaultParams params = fault_params(call);
  // The map of a tensor that is longer than its memory.
  const bool longer = params.planted && kFault == RingFault::kMapPastTail;
  const int elements = params.elements + (longer ? kBoxElements : 0);
  params.data_map = box_map(params.data, elements, kBoxRows, true);
  call.launch(ring<kFault>, Grid{1, 64, kRingBytes}, params);
}

enum class StoreFault { kUnfenced, kReused, kUnwaited, kReadBack };

// Two warps fill a box, one thread stores it; the same box for all.
template <StoreFault kFault>
OCNET_KERNEL(64, 1)
stores(OCNET_GRID_CONSTANT FaultParams params) {
  const auto planted = [&](StoreFault fault) { return params.planted && fault == kFault; };
  float* const box = device::shared_memory<float>();
  const int thread = device::thread_index();
  for (int step = 0; step < params.elements / kBoxElements; ++step) {
    if (thread == 0 && !planted(StoreFault::kReused)) ptx::bulk_wait_read<0>();
    device::barrier();
    for (int i = thread; i < kBoxElements; i += 64) {
      box[i] = 2 * params.data[step * kBoxElements + i];  // fault: fill_box
    }
    if (!planted(StoreFault::kUnfenced)) ptx::fence_proxy_async();
    device::barrier();
    if (thread == 0) {
      ptx::tensor_store(  // fault: store
          params.result_map, ptx::shared_address(box), {0, step * kBoxRows});
      ptx::bulk_commit();
    }
  }
  if (thread == 0 && !planted(StoreFault::kUnwaited)) ptx::bulk_wait_read<0>();
  if (kFault == StoreFault::kReadBack && thread == 0) {
    if (!params.planted) ptx::bulk_wait<0>();
    const float stored = params.result[0];  // fault: read_back
    params.result[0] = 2 * stored - 2 * params.data[0];
  }
}

template <StoreFault kFault>
void run_stores(const ProbeCall& call) {
  FaultParams params = fault_params(call);
  params.result_map = box_map(params.result, params.elements, kBoxRows, false);
  call.launch(stores<kFault>, Grid{1, 64, kBoxBytes}, params);
}

// Only describes a tensor. Buffer: its memory. Arguments: an offset into it in bytes, columns,
// bytes from row to row, columns and rows of the box, and whether it is swizzled.
inline void run_tensor_map(const ProbeCall& call) {
  const int64_t* const arguments = call.arguments;
  TensorMapRequest request;
  request.data = call.buffer<unsigned char>(0) + arguments[0];
  request.element = MapElement::kBFloat16;
  request.rank = 2;
  request.sizes[0] = static_cast<uint64_t>(arguments[1]);
  request.sizes[1] = 4;
  request.stride_bytes[1] = static_cast<uint64_t>(arguments[2]);
  request.box[0] = static_cast<uint32_t>(arguments[3]);
  request.box[1] = static_cast<uint32_t>(arguments[4]);
  request.swizzle = arguments[5] != 0;
  encode_tensor_map("fault probe", request);
}

}  // namespace ocnet::probes::faults
