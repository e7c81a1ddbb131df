// SPDX-License-Identifier: MIT
// Kernels with one fault each, and the same without it: what the emulator must catch.
#pragma once

#include "fault_probes_cluster.cuh"
#include "fault_probes_copies.cuh"
#include "fault_probes_memory.cuh"
#include "fault_probes_order.cuh"
#include "fault_probes_products.cuh"
#include "fault_probes_waiting.cuh"

namespace ocnet::probes::faults {

template <CopyFault kFault>
constexpr auto kRunCopies = &run_fault<copies<kFault>, 32, kCopyBytes>;
template <ProductFault kFault>
constexpr auto kRunSquare = &run_fault<square_product<kFault>, 128, kSquareRoom>;

inline const Probe kFaultProbes[] = {
    {"read_past_tail", &run_fault<read_past_tail, 64>},
    {"write_past_tail", &run_fault<write_past_tail, 64>},
    {"read_before_start", &run_fault<read_before_start, 64>},
    {"write_input", &run_fault<write_input, 64>},
    {"misaligned_read", &run_fault<misaligned_read, 64>},
    {"misaligned_vector", &run_fault<misaligned_vector, 64>},
    {"read_past_shared", &run_fault<read_past_shared, 64, kFaultSharedBytes>},
    {"uninitialised_shared", &run_fault<uninitialised_shared, 64, kFaultSharedBytes>},
    {"missing_barrier", &run_fault<missing_barrier, 64, kFaultSharedBytes>},
    {"early_overwrite", &run_fault<early_overwrite, 64, kFaultSharedBytes>},
    {"missing_warp_sync", &run_fault<missing_warp_sync, 32, 128>},
    {"shuffle_for_sync", &run_fault<shuffle_for_sync, 32, 128>},
    {"overlapping_blocks", &run_fault<overlapping_blocks, 64, 0, 2>},
    {"missing_thread_fence", &run_fault<missing_thread_fence, 32, 4, 2>},
    {"counted_in_place", &run_fault<counted_in_place, 64>},
    {"shared_limit", &run_shared_limit},

    {"skipped_barrier", &run_fault<skipped_barrier, 64, kFaultSharedBytes>},
    {"early_read", &run_early<early_read>},
    {"unshared_wait", &run_early<unshared_wait>},
    {"uneven_loop", &run_fault<uneven_loop, 64>},
    {"skipped_shuffle", &run_fault<skipped_shuffle, 32>},
    {"mixed_collectives", &run_fault<mixed_collectives, 32>},
    {"uneven_named_barrier", &run_fault<uneven_named_barrier, 128, 512>},
    {"missing_warp", &run_fault<missing_warp, 128>},
    {"half_full_barrier", &run_fault<half_full_barrier, 64>},
    {"early_exit", &run_fault<early_exit, 32, 128, 2, 2>},
    {"early_remote_write", &run_fault<early_remote_write, 32, 128, 2, 2>},
    {"skipped_cluster_barrier", &run_fault<skipped_cluster_barrier, 32, 0, 2, 2>},
    {"partial_barrier", &run_fault<partial_barrier, 96, 4>},
    {"endless_polling", &run_fault<endless_polling, 64, 8>},
    {"endless_atomics", &run_fault<endless_atomics, 64>},
    {"illegal_registers", &run_fault<illegal_registers, 128>},
    {"unlowered_registers", &run_fault<unlowered_registers, 384>},
    {"divided_warpgroup", &run_fault<divided_warpgroup, 128>},

    {"unwaited_copy", kRunCopies<CopyFault::kUnwaited>},
    {"unshared_copy", kRunCopies<CopyFault::kUnshared>},
    {"misaligned_copy", kRunCopies<CopyFault::kMisaligned>},
    {"copy_past_tail", kRunCopies<CopyFault::kPastTail>},
    {"uncommitted_copy", kRunCopies<CopyFault::kUncommitted>},
    {"unwaited_count", kRunCopies<CopyFault::kUnwaitedCount>},
    {"copy_onto_barrier", kRunCopies<CopyFault::kOntoBarrier>},
    {"wrong_phase", &run_ring<RingFault::kWrongPhase>},
    {"unguarded_stage", &run_ring<RingFault::kUnguarded>},
    {"early_release", &run_ring<RingFault::kEarlyRelease>},
    {"unreleased_stage", &run_ring<RingFault::kUnreleased>},
    {"too_many_bytes", &run_ring<RingFault::kTooManyBytes>},
    {"too_few_bytes", &run_ring<RingFault::kTooFewBytes>},
    {"extra_arrival", &run_ring<RingFault::kExtraArrival>},
    {"unfenced_mbarrier", &run_ring<RingFault::kUnfencedInit>},
    {"unshared_mbarrier", &run_ring<RingFault::kUnsharedInit>},
    {"uninitialised_mbarrier", &run_ring<RingFault::kUninitialised>},
    {"overwritten_barrier", &run_ring<RingFault::kOverwrittenBarrier>},
    {"misplaced_box", &run_ring<RingFault::kMisplaced>},
    {"unswizzled_box", &run_ring<RingFault::kUnswizzled>},
    {"unread_box", &run_ring<RingFault::kUnread>},
    {"map_past_tail", &run_ring<RingFault::kMapPastTail>},
    {"unfenced_box", &run_stores<StoreFault::kUnfenced>},
    {"reused_box", &run_stores<StoreFault::kReused>},
    {"unwaited_box", &run_stores<StoreFault::kUnwaited>},
    {"read_back", &run_stores<StoreFault::kReadBack>},
    {"own_arrivals", &run_cluster_ring<ClusterFault::kOwnArrivals>},
    {"own_barrier_only", &run_cluster_ring<ClusterFault::kOwnBarrierOnly>},
    {"block_barrier", &run_cluster_ring<ClusterFault::kBlockBarrier>},
    {"early_cluster_exit", &run_cluster_ring<ClusterFault::kEarlyExit>},
    {"tensor_map", &run_tensor_map},

    {"unwaited_product", kRunSquare<ProductFault::kUnwaited>},
    {"uncommitted_product", kRunSquare<ProductFault::kUncommitted>},
    {"unfenced_sums", kRunSquare<ProductFault::kUnfencedSums>},
    {"early_fence", kRunSquare<ProductFault::kEarlyFence>},
    {"unset_sums", kRunSquare<ProductFault::kUnsetSums>},
    {"unfenced_tile", kRunSquare<ProductFault::kUnfencedTile>},
    {"unshared_tile", kRunSquare<ProductFault::kUnsharedTile>},
    {"rewritten_tile", kRunSquare<ProductFault::kRewrittenTile>},
    {"shifted_tile", kRunSquare<ProductFault::kShiftedTile>},
    {"unswizzled_tile", kRunSquare<ProductFault::kUnswizzledTile>},
    {"tile_past_shared", kRunSquare<ProductFault::kPastShared>},
    {"divergent_descriptors", kRunSquare<ProductFault::kDivergent>},
    {"late_operand", &run_fault<register_product<ProductFault::kLateOperand>, 128, kSquareRoom>},
    {"rewritten_operand",
     &run_fault<register_product<ProductFault::kRewrittenOperand>, 128, kSquareRoom>},

    {"tickets", &run_fault<tickets, 64, 0, 4>},
    {"ordered_events", &run_ordered_events},
};

}  // namespace ocnet::probes::faults

namespace ocnet::probes {

using faults::kFaultProbes;

}  // namespace ocnet::probes
