// SPDX-License-Identifier: MIT
// Forward kernel of pixel-wise attention for Hopper (wgmma and the copy engine, sm_90a). No torch
// headers.
#pragma once

#include "common/launch.cuh"
#include "common/ptx/address.cuh"
#include "common/ptx/dependent_launch.cuh"
#include "common/ptx/registers.cuh"
#include "common/ptx/wgmma.cuh"
#include "oc_attention_combine.cuh"
#include "oc_attention_hopper_combine.cuh"
#include "oc_attention_hopper_copies.cuh"
#include "oc_attention_softmax.cuh"
#include "oc_attention_store.cuh"

namespace ocnet {

// Sums of a warpgroup as its instructions name them, and as the warps know them: d[4 n + i] is
// rows[n][i] (common/ptx/wgmma.cuh, common/mma_tile.cuh).
template <int kColumns>
OCNET_DEVICE float (&flat(float (&rows)[kColumns][4]))
    [kColumns * 4] { return reinterpret_cast<float (&)[kColumns * 4]>(rows); }

// The products of a warpgroup.
template <typename Tile>
struct HopperProducts {
  using scalar_t = typename Tile::scalar_t;
  static constexpr bool kByChannels = Tile::kSource != HopperSource::kChannelMajor;
  static constexpr ptx::Contiguous kRows =
      kByChannels ? ptx::Contiguous::kChannels : ptx::Contiguous::kTokens;
  // Seen from the product with values, whose tokens are output channels and whose channels are
  // keys.
  static constexpr ptx::Contiguous kValueRows =
      kByChannels ? ptx::Contiguous::kTokens : ptx::Contiguous::kChannels;
  static constexpr int kDepth = 16;
  static constexpr int kPerLine = Tile::kLine / kDepth;
  static constexpr uint32_t kAtom = 8 * kLineBytes;

  // Of 16 channels of a tile of `tokens` tokens.
  OCNET_DEVICE static uint64_t rows_at(uint32_t tile, int tokens, int product) {
    if constexpr (kByChannels) {
      const uint32_t line = product / kPerLine * tokens * kLineBytes;
      return ptx::tile_descriptor(tile + line + product % kPerLine * (kDepth * sizeof(scalar_t)), 0,
                                  kAtom);
    } else {
      return ptx::tile_descriptor(tile + product * kDepth * kLineBytes,
                                  Tile::kChannels * kLineBytes, kAtom);
    }
  }
  // Of 16 keys of a tile of values.
  OCNET_DEVICE static uint64_t values_at(uint32_t tile, int product) {
    if constexpr (kByChannels) {
      return ptx::tile_descriptor(tile + product * kDepth * kLineBytes, Tile::kCols * kLineBytes,
                                  kAtom);
    } else {
      const uint32_t line = product / kPerLine * Tile::kValues * kLineBytes;
      return ptx::tile_descriptor(tile + line + product % kPerLine * (kDepth * sizeof(scalar_t)), 0,
                                  kAtom);
    }
  }
  // Where the queries of a warpgroup begin.
  OCNET_DEVICE static uint32_t query_rows(uint32_t tile, int consumer) {
    return tile + consumer * (kByChannels ? kHopperWarpgroupRows * kLineBytes
                                          : Tile::kChannels * kLineBytes);
  }

  OCNET_DEVICE static void scores(float (&scores)[Tile::kCols / 8][4], uint32_t query,
                                  uint32_t keys) {
    OCNET_UNROLL
    for (int i = 0; i < Tile::kChannels / kDepth; ++i) {
      ptx::wgmma<scalar_t, Tile::kCols, kRows, kRows>(flat(scores), rows_at(query, kHopperRows, i),
                                                      rows_at(keys, Tile::kCols, i), i > 0);
    }
    ptx::wgmma_commit();
  }
  OCNET_DEVICE static void accumulate(float (&sums)[Tile::kValues / 8][4],
                                      const uint32_t (&weights)[Tile::kCols / kDepth][4],
                                      uint32_t values) {
    OCNET_UNROLL
    for (int i = 0; i < Tile::kCols / kDepth; ++i) {
      ptx::wgmma<scalar_t, Tile::kValues, kValueRows>(flat(sums), weights[i], values_at(values, i),
                                                      true);
    }
    ptx::wgmma_commit();
  }
  OCNET_DEVICE static void pack(uint32_t (&weights)[Tile::kCols / kDepth][4],
                                const float (&scores)[Tile::kCols / 8][4]) {
    OCNET_UNROLL
    for (int i = 0; i < Tile::kCols / kDepth; ++i) {
      OCNET_UNROLL
      for (int word = 0; word < 4; ++word) {
        const float (&pair)[4] = scores[2 * i + word / 2];
        weights[i][word] = ptx::pack_pair(pair[word % 2 * 2], pair[word % 2 * 2 + 1], scalar_t{});
      }
    }
  }
};

// Tells every producer that fills this buffer that this warp has read it.
template <int kBlocks>
OCNET_DEVICE void release(const HopperBuffer& buffer) {
  device::sync_warp();
  if (device::lane_index() >= kBlocks) return;
  if constexpr (kBlocks > 1) {
    ptx::mbarrier_arrive_cluster(ptx::cluster_address(buffer.empty, device::lane_index()));
  } else {
    ptx::mbarrier_arrive(buffer.empty);
  }
}

// What may be done otherwise; benchmarks/hopper measures other choices.
template <typename Tile>
struct HopperChoices {
  static constexpr int kGrowth = kLazyGrowth;
  // Whether the consumers issue their products one after the other, so that one weighs its scores
  // while the tensor cores multiply for the other (FlashAttention-3's ping-pong).
  static constexpr bool kTakesTurns = false;
};

// Consumer warpgroups: 64 rows of queries each.
template <typename Tile>
class HopperConsumer {
  using scalar_t = typename Tile::scalar_t;
  using Products = HopperProducts<Tile>;
  static constexpr int kCols = Tile::kCols;
  static constexpr int kTileRows = Tile::kCluster * kHopperRows;
  using Choices = HopperChoices<Tile>;

 public:
  OCNET_DEVICE explicit HopperConsumer(const HopperFwdParams<scalar_t>& params)
      : params_(params), consumer_(device::shuffle(device::warp_index() / 4, 0) - 1) {}

  OCNET_DEVICE void run(int worker) {
    HopperWalk walk(params_.plan, worker);
    HopperJob job;
    if (consumer_ > 0) pass_turn();
    while (walk.next(job)) {
      SoftmaxRows softmax;
      float sums[Tile::kValues / 8][4];
      attend(softmax, sums);
      softmax.finish_packed();
      store(softmax, sums);
      job_parity_ ^= 1;
    }
    if (consumer_ == 0) await_turn();
  }

 private:
  // Turns of the consumers, where they take them: each waits for its own, and the other gives it.
  // Both have as many steps; the first turn and the last are the first consumer's.
  OCNET_DEVICE void await_turn() const {
    if constexpr (Choices::kTakesTurns) {
      device::named_barrier_sync(1 + consumer_, kHopperConsumers * 128);
    }
  }
  OCNET_DEVICE void pass_turn() const {
    if constexpr (Choices::kTakesTurns) {
      device::named_barrier_arrive(2 - consumer_, kHopperConsumers * 128);
    }
  }

  // The scores of a step are computed while the values of the step before are summed up, and
  // weighed under that.
  OCNET_DEVICE void attend(SoftmaxRows& softmax, float (&sums)[Tile::kValues / 8][4]) {
    float scores[kCols / 8][4];
    uint32_t weights[kCols / 16][4];
    clear_sums(sums);
    const HopperBuffer query = buffers_.query();
    ptx::mbarrier_wait(query.full, job_parity_);
    const HopperTask& task = buffers_.task(job_parity_);
    KeyWalk tiles = task.keys;
    const int last_keys = params_.work.families[task.family].streamed - (tiles.tiles - 1) * kCols;
    const auto valid_keys = [&] { return tiles.is_last() ? last_keys : kCols; };
    const int end = step_ + task.steps;
    const uint32_t first_row = Products::query_rows(query.data, consumer_);

    const HopperBuffer first = full_keys();
    ptx::hold_registers(flat(scores));
    ptx::wgmma_fence();
    Products::scores(scores, first_row, first.data);
    ptx::wgmma_wait<0>();
    ptx::hold_registers(flat(scores));
    release<Tile::kCluster>(first);
    weigh(softmax, scores, valid_keys());
    pack(softmax, weights, scores);
    while (step_ + 1 < end) {
      // Descriptors are made anew in every step: kept, they would spill.
      const uint32_t rows = ptx::opaque(first_row);
      const HopperBuffer values = full_values();
      ++step_;
      tiles.advance();
      const HopperBuffer keys = full_keys();
      await_turn();
      ptx::hold_registers(flat(scores));
      ptx::hold_registers(flat(sums));
      ptx::wgmma_fence();
      Products::scores(scores, rows, keys.data);
      Products::accumulate(sums, weights, values.data);
      pass_turn();
      ptx::wgmma_wait<1>();
      ptx::hold_registers(flat(scores));
      release<Tile::kCluster>(keys);
      const SoftmaxRows::Growth growth = weigh(softmax, scores, valid_keys());
      ptx::wgmma_wait<0>();
      ptx::hold_registers(flat(sums));
      release<Tile::kCluster>(values);
      pack(softmax, weights, scores);
      softmax.rescale(growth, sums);
    }
    release<1>(query);
    const HopperBuffer values = full_values();
    ++step_;
    ptx::hold_registers(flat(sums));
    ptx::wgmma_fence();
    Products::accumulate(sums, weights, values.data);
    ptx::wgmma_wait<0>();
    ptx::hold_registers(flat(sums));
    release<Tile::kCluster>(values);
  }

  // The keys and the values of the current step, once they have come.
  OCNET_DEVICE HopperBuffer full_keys() const {
    const RingStep ring(step_);
    const HopperBuffer keys = buffers_.keys(ring.stage);
    ptx::mbarrier_wait(keys.full, ring.parity);
    return keys;
  }
  OCNET_DEVICE HopperBuffer full_values() const {
    const RingStep ring(step_);
    const HopperBuffer values = buffers_.values(ring.stage);
    ptx::mbarrier_wait(values.full, ring.parity);
    return values;
  }

  OCNET_DEVICE SoftmaxRows::Growth weigh(SoftmaxRows& softmax, float (&scores)[kCols / 8][4],
                                         int valid) const {
    const SoftmaxRows::Growth growth =
        softmax.template raise<kCols, Choices::kGrowth>(scores, params_.scale_log2, valid);
    softmax.template exponentiate<kCols>(scores, params_.scale_log2, valid);
    return growth;
  }
  OCNET_DEVICE static void pack(SoftmaxRows& softmax, uint32_t (&weights)[kCols / 16][4],
                                const float (&scores)[kCols / 8][4]) {
    Products::pack(weights, scores);
    softmax.template count_packed<scalar_t>(weights);
  }

  OCNET_DEVICE void store(const SoftmaxRows& softmax, float (&sums)[Tile::kValues / 8][4]) const {
    const HopperTask& task = buffers_.task(job_parity_);
    const int rank = Tile::kCluster > 1 ? device::cluster_rank() : 0;
    const int row = rank * kHopperRows + (device::warp_index() - 4) * kMmaRows;  // of the tile
    if (task.part >= 0) {
      store_partial(hopper_part(params_.partial, kTileRows, Tile::kValues, task.part), softmax,
                    sums, row, 0, true);
      return;
    }
    const Family& family = params_.work.families[task.family];
    const FwdStage<scalar_t>& stage = params_.stages[family.stage];
    const auto rows_of = [&](const auto& maps) { return group_matrix(maps, task, family); };
    store_results(rows_of(stage.out), rows_of(stage.residual), rows_of(stage.lse), softmax, sums,
                  task.row_tile * kTileRows + row, task.slice * Tile::kValues, task.slice == 0);
  }
  template <typename T>
  OCNET_DEVICE static GroupMatrix<T> group_matrix(const TokenMatrix<T>& maps,
                                                  const HopperTask& task, const Family& family) {
    return {span_of(maps, task, family, family.owned), family.steps};
  }

  const HopperFwdParams<scalar_t>& params_;
  const HopperBuffers<Tile> buffers_;
  const int consumer_;
  int step_ = 0;
  uint32_t job_parity_ = 0;
};

// out = softmax(scale * query key^T) value and lse, as oc_attention_mma_fwd_kernel, on Hopper's own
// instructions (FlashAttention-3, arXiv 2407.08608; without its ping-pong barriers).
//
// A producer warpgroup brings tiles of keys and values through two buffers each, two consumer
// warpgroups of 64 rows multiply them: scores from shared memory, sums over values with weights
// from registers. Grid: plan.workers clusters, which walk over their work
// (oc_attention_hopper_work.h). Scores, weights and sums are fp32; weights are rounded to the dtype
// of the maps.
template <typename Tile>
OCNET_KERNEL(kHopperThreads, 1)
oc_attention_hopper_fwd_kernel(
    OCNET_GRID_CONSTANT HopperFwdParams<typename Tile::scalar_t> params) {
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
  const int worker = static_cast<int>(device::block_index() / Tile::kCluster);
  if (device::thread_index() == 0) prepare_barriers(HopperBuffers<Tile>());
  const auto meet = [] {
    if constexpr (Tile::kCluster > 1) {
      device::cluster_barrier();
    } else {
      device::barrier();
    }
  };
  meet();
  ptx::allow_next_launch();  // the combination of parts has its blocks ready
  if (device::warp_index() < 4) {
    ptx::lower_registers<Tile::kProducerRegisters>();
    if constexpr (Tile::kSource == HopperSource::kGroups) {
      ThreadCopies<Tile> copies(params.stages);
      produce<Tile>(params, worker, copies);
    } else if (device::thread_index() == 0) {
      EngineCopies<Tile> copies(params.maps);
      produce<Tile>(params, worker, copies);
    }
  } else {
    ptx::raise_registers<Tile::kConsumerRegisters>();
    HopperConsumer<Tile>(params).run(worker);
  }
  device::sync_warp();  // the lanes that did not copy are here already
  // Until here a block's shared memory is what the others of its cluster write to.
  if constexpr (Tile::kCluster > 1) meet();
#endif
}

}  // namespace ocnet
