// SPDX-License-Identifier: MIT
// What the forward kernels on Hopper's own instructions share, whatever their numbers: the roles of
// a block's warpgroups, and what a consumer does besides its products. No torch headers.
#pragma once

#include "common/ptx/arithmetic.cuh"
#include "common/ptx/dependent_launch.cuh"
#include "common/ptx/registers.cuh"
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

// Scores as registers of an operand: words of 16 columns a step, pairs of columns in each.
template <typename scalar_t, int kColumns>
OCNET_DEVICE void pack_weights(uint32_t (&weights)[kColumns / 2][4],
                               const float (&scores)[kColumns][4]) {
  OCNET_UNROLL
  for (int i = 0; i < kColumns / 2; ++i) {
    OCNET_UNROLL
    for (int word = 0; word < 4; ++word) {
      const float (&four)[4] = scores[2 * i + word / 2];
      weights[i][word] = ptx::pack_pair(four[word % 2 * 2], four[word % 2 * 2 + 1], scalar_t{});
    }
  }
}

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
  // Whether two consumers issue their products one after the other, so that one weighs its scores
  // while the tensor cores multiply for the other (FlashAttention-3's ping-pong).
  static constexpr bool kTakesTurns = false;
};

// A consumer warpgroup: 64 rows of queries. `Self` has attend(softmax, sums), the sums of a job
// over its values and what they are divided by.
template <typename Tile, typename Self>
class HopperConsumerOf {
 protected:
  using scalar_t = typename Tile::scalar_t;
  static constexpr int kCols = Tile::kCols;
  static constexpr int kTileRows = Tile::kCluster * Tile::kRows;

 public:
  OCNET_DEVICE explicit HopperConsumerOf(const HopperFwdParams<scalar_t>& params)
      : params_(params), consumer_(device::shuffle(device::warp_index() / 4, 0) - 1) {}

  OCNET_DEVICE void run(int worker) {
    HopperWalk walk(params_.plan, worker);
    HopperJob job;
    if (consumer_ > 0) pass_turn();
    while (walk.next(job)) {
      SoftmaxRows softmax;
      float sums[Tile::kValues / 8][4];
      static_cast<Self&>(*this).attend(softmax, sums);
      store(softmax, sums);
      job_parity_ ^= 1;
    }
    if (consumer_ == 0) await_turn();
  }

 protected:
  using Choices = HopperChoices<Tile>;

  // Turns of two consumers, where they take them: each waits for its own, and the other gives it.
  // Both have as many steps; the first turn and the last are the first consumer's.
  OCNET_DEVICE void await_turn() const {
    if constexpr (Choices::kTakesTurns) {
      device::named_barrier_sync(1 + consumer_, Tile::kConsumers * 128);
    }
  }
  OCNET_DEVICE void pass_turn() const {
    if constexpr (Choices::kTakesTurns) {
      device::named_barrier_arrive(2 - consumer_, Tile::kConsumers * 128);
    }
  }
  // Waits for the queries of a job.
  OCNET_DEVICE HopperBuffer full_query() const {
    const HopperBuffer query = buffers_.query();
    ptx::mbarrier_wait(query.full, job_parity_);
    return query;
  }
  OCNET_DEVICE const HopperTask& task() const { return buffers_.task(job_parity_); }
  // Of the last tile.
  OCNET_DEVICE int last_keys() const {
    return params_.work.families[task().family].streamed - (task().keys.tiles - 1) * kCols;
  }
  // The keys and the values of the current step, once they have come.
  OCNET_DEVICE HopperBuffer full_keys() const {
    const RingStep ring(step_, Tile::kStages);
    const HopperBuffer keys = buffers_.keys(ring.stage);
    ptx::mbarrier_wait(keys.full, ring.parity);
    return keys;
  }
  OCNET_DEVICE HopperBuffer full_values() const {
    const RingStep ring(step_, Tile::kStages);
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

  const HopperFwdParams<scalar_t>& params_;
  const HopperBuffers<Tile> buffers_;
  const int consumer_;
  int step_ = 0;
  uint32_t job_parity_ = 0;

 private:
  OCNET_DEVICE void store(const SoftmaxRows& softmax, float (&sums)[Tile::kValues / 8][4]) const {
    const HopperTask& task = this->task();
    const int rank = Tile::kCluster > 1 ? device::cluster_rank() : 0;
    const int row = rank * Tile::kRows + (device::warp_index() - 4) * kMmaRows;  // of the tile
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
};

// Of all threads: until the blocks of a cluster are there, or the threads of a block by itself.
template <int kBlocks>
OCNET_DEVICE void meet_blocks() {
  if constexpr (kBlocks > 1) {
    device::cluster_barrier();
  } else {
    device::barrier();
  }
}

// What a block of every kernel here does: the first warpgroup calls produce(), the others
// consume(which).
template <typename Tile, typename Buffers, typename Produce, typename Consume>
OCNET_DEVICE void run_warpgroups(const Buffers& buffers, const Produce& produce,
                                 const Consume& consume) {
  if (device::thread_index() == 0) prepare_barriers(buffers);
  meet_blocks<Tile::kCluster>();
  ptx::wait_for_earlier_launches();
  ptx::allow_next_launch();  // the combination of parts has its blocks ready
  const int warpgroup = device::shuffle(device::warp_index() / 4, 0);
  if (warpgroup == 0) {
    if constexpr (Tile::kProducerRegisters > 0) ptx::lower_registers<Tile::kProducerRegisters>();
    produce();
  } else {
    if constexpr (Tile::kProducerRegisters > 0) ptx::raise_registers<Tile::kConsumerRegisters>();
    consume(warpgroup - 1);
  }
  device::sync_warp();  // the lanes that did not copy are here already
  // Until here a block's shared memory is what the others of its cluster write to.
  if constexpr (Tile::kCluster > 1) meet_blocks<Tile::kCluster>();
}

// A block whose consumers are alike. Grid: plan.workers clusters, which walk over their work
// (oc_attention_hopper_work.h).
template <typename Tile, typename Copies, typename Consumer, typename Params>
OCNET_DEVICE void run_hopper_block(const Params& params) {
  const int worker = static_cast<int>(device::block_index() / Tile::kCluster);
  run_warpgroups<Tile>(
      HopperBuffers<Tile>(),
      [&] {
        if (!Copies::kByOneThread || device::thread_index() == 0) {
          Copies copies(params);
          produce<Tile>(params, worker, copies);
        }
      },
      [&](int) { Consumer(params).run(worker); });
}

}  // namespace ocnet
