// SPDX-License-Identifier: MIT
// Kernels of activated batch norm that add up what parts of a map have left. No torch headers.
#pragma once

#include "common/launch.cuh"
#include "inplace_abn_params.cuh"
#include "inplace_abn_rows.cuh"

namespace ocnet::abn {

// Neighbouring channels of a block: what is read of a record at a time.
constexpr int kMergeChannels = 8;
constexpr int kMergeLanes = kStreamThreads / kMergeChannels;

// Of all records of the channels of a block, in a fixed order: lanes take every 32nd, then are
// folded. Calls finish(channel, value) once for each.
template <typename Value, typename Records, typename Finish>
OCNET_DEVICE void merge_channels(const Records& records, const Finish& finish) {
  Value* const shared = device::shared_memory<Value>();
  const int thread = device::thread_index();
  const int lane = thread / kMergeChannels;
  const int64_t c = device::block_index() * kMergeChannels + thread % kMergeChannels;
  Value value;
  if (c < records.channels) {
    OCNET_UNROLL_BY_4
    for (int64_t i = lane; i < records.count; i += kMergeLanes) {
      value = combined(value, records.at(i, c));
    }
  }
  fold_lanes(
      kMergeLanes, kMergeChannels, lane, [&] { shared[thread] = value; },
      [&](int other) { value = combined(value, shared[other]); });
  if (lane == 0 && c < records.channels) finish(c, value);
}

template <typename acc_t>
struct MergeParams {
  Records<acc_t> records;
  acc_t* merged;  // (2 C + 1)
};

// One record of statistics from many.
//
// Grid: 8 channels each; 256 threads. fp32 (fp64). Shared memory: 3 * 256 accumulators.
template <typename acc_t>
OCNET_KERNEL(kStreamThreads, 4)
inplace_abn_merge_kernel(MergeParams<acc_t> params) {
  merge_channels<Moments<acc_t>>(params.records, [&](int64_t c, const Moments<acc_t>& moments) {
    store_record(params.merged, params.records.channels, 0, c, moments.count, moments.mean,
                 moments.squares);
  });
}

template <typename acc_t>
struct FinishParams {
  SumRecords<acc_t> records;
  Pointwise<acc_t> pointwise;
  VectorGradients<acc_t> vectors;
};

// Sums of channels from those of parts, and the gradients of vectors.
//
// Grid: as above; 256 threads. Shared memory: 3 * 256 accumulators.
template <typename acc_t>
OCNET_KERNEL(kStreamThreads, 4)
inplace_abn_finish_kernel(FinishParams<acc_t> params) {
  merge_channels<Sums<acc_t>>(params.records, [&](int64_t c, const Sums<acc_t>& sums) {
    write_vectors(params.vectors, params.pointwise, params.records.channels, c, sums);
  });
}

template <typename acc_t>
Grid merge_grid(int64_t channels) {
  return {ceil_div(channels, kMergeChannels), kStreamThreads,
          kSums * kStreamThreads * sizeof(acc_t)};
}
template <typename acc_t, typename Launch>
void launch_merge(const MergeParams<acc_t>& params, const Launch& launch) {
  launch(inplace_abn_merge_kernel<acc_t>, merge_grid<acc_t>(params.records.channels), params);
}
template <typename acc_t, typename Launch>
void launch_finish(const FinishParams<acc_t>& params, const Launch& launch) {
  launch(inplace_abn_finish_kernel<acc_t>, merge_grid<acc_t>(params.records.channels), params);
}

}  // namespace ocnet::abn
