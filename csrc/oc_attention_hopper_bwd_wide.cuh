// SPDX-License-Identifier: MIT
// Backward kernel of pixel-wise attention with shared keys and few channels for Hopper (wgmma and
// the copy engine, sm_90a). No torch headers.
//
// Formulas as in oc_attention_hopper_bwd.cuh. A block owns 128 rows; each of its two consumer
// warpgroups makes both gradients of 64 of them, so nothing is handed over, and a streamed row
// serves twice as many owned ones.
#pragma once

#include "oc_attention_hopper_bwd_consumer.cuh"

namespace ocnet {

template <typename Tile>
class HopperBwdWide : HopperBwdConsumer<Tile> {
  using Base = HopperBwdConsumer<Tile>;
  using scalar_t = typename Tile::scalar_t;
  using Products = HopperBwdProducts<Tile>;
  using Shift = bwd::WeightShift<scalar_t>;
  static constexpr int kCols = Tile::kCols;
  using Scores = float[kCols / 8][4];
  using Weights = uint32_t[kCols / 16][4];

 public:
  using Base::Base;

  OCNET_DEVICE void run(int worker) {
    HopperWalk walk(this->params.plan, worker);
    HopperJob job;
    while (walk.next(job)) {
      float token_sums[Tile::kChannels / 8][4];
      float value_sums[Tile::kValues / 8][4];
      sum_up(token_sums, value_sums);
      this->store(&HopperBwdStage<scalar_t>::grad_tokens, token_sums, 0);
      this->store(&HopperBwdStage<scalar_t>::grad_value, value_sums, Tile::kChannels);
      this->job_parity ^= 1;
    }
  }

 private:
  OCNET_DEVICE void sum_up(float (&token_sums)[Tile::kChannels / 8][4],
                           float (&value_sums)[Tile::kValues / 8][4]) {
    Scores scores;    // X_I X_J^T, then P'
    Scores as_query;  // dO_I V_J^T
    Weights gradients;
    clear_sums(token_sums);
    clear_sums(value_sums);
    const HopperTask& task = this->begin();
    KeyWalk tiles = task.keys;
    const int end = this->step + task.steps;
    this->load_own_numbers();

    score(scores, as_query, this->own_rows());
    ptx::wgmma_wait<0>();
    weigh(gradients, value_sums, scores, as_query, this->valid(tiles, task));
    while (++this->step < end) {
      tiles.advance();
      const HopperBuffer before = this->buffers.tokens(this->step - 1);
      ptx::hold_registers(flat(token_sums));
      ptx::wgmma_fence();
      Products::template accumulate<Tile::kChannels>(token_sums, gradients, before.data);
      score(scores, as_query, ptx::opaque(this->own_rows()));
      ptx::wgmma_wait<0>();
      ptx::hold_registers(flat(token_sums));
      release<Tile::kCluster>(before);
      weigh(gradients, value_sums, scores, as_query, this->valid(tiles, task));
    }
    release<1>(this->buffers.own());
    const HopperBuffer last = this->buffers.tokens(end - 1);
    ptx::hold_registers(flat(token_sums));
    ptx::wgmma_fence();
    Products::template accumulate<Tile::kChannels>(token_sums, gradients, last.data);
    ptx::wgmma_wait<0>();
    ptx::hold_registers(flat(token_sums));
    release<Tile::kCluster>(last);
  }

  // This warpgroup's rows of a tile of the block's.
  OCNET_DEVICE uint32_t own_rows() const {
    const int consumer = device::shuffle(device::warp_index() / 4, 0) - 1;
    return this->buffers.own().data + consumer * kHopperWarpgroupRows * kLineBytes;
  }

  // Starts the products of the step whose left rows begin at `own`: X_I X_J^T and dO_I V_J^T.
  OCNET_DEVICE void score(Scores& scores, Scores& as_query, uint32_t own) const {
    const HopperBuffer tokens = this->buffers.tokens(this->step);
    const HopperBuffer values = this->buffers.values(this->step);
    this->wait(tokens, this->step);
    ptx::hold_registers(flat(scores));
    ptx::hold_registers(flat(as_query));
    ptx::wgmma_fence();
    Products::template scores<Tile::kChannels, Tile::kRows>(scores, own, tokens.data);
    this->wait(values, this->step);
    Products::template scores<Tile::kValues, Tile::kRows>(as_query, own + Tile::kOwnGrads,
                                                          values.data);
  }

  // The rest of the step, once they are done: adds to the sums of the values, and makes G.
  OCNET_DEVICE void weigh(Weights& gradients, float (&value_sums)[Tile::kValues / 8][4],
                          Scores& scores, Scores& as_query, int valid) {
    ptx::hold_registers(flat(scores));
    ptx::hold_registers(flat(as_query));
    release<Tile::kCluster>(this->buffers.values(this->step));
    Weights weights;
    weigh_scores(weights, scores, as_query);
    const HopperBuffer grads = this->buffers.grads(this->step);
    this->wait(grads, this->step);
    const uint32_t own = ptx::opaque(this->own_rows());
    Scores as_key;  // V_I dO_J^T
    ptx::hold_registers(flat(as_key));
    ptx::hold_registers(flat(value_sums));
    ptx::wgmma_fence();
    Products::template scores<Tile::kValues, Tile::kRows>(as_key, own + Tile::kOwnValues,
                                                          grads.data);
    Products::template accumulate<Tile::kValues>(value_sums, weights, grads.data);
    ptx::wgmma_wait<0>();
    ptx::hold_registers(flat(as_key));
    ptx::hold_registers(flat(value_sums));
    release<Tile::kCluster>(grads);
    add_as_key(as_query, as_key, scores, valid);
    pack_weights<scalar_t>(gradients, as_query);
  }

  // P' of the scores, and P (dO_I V_J^T - delta_I) in the place of the second product. Behind the
  // last token dO_J is 0, and P' is 1.
  OCNET_DEVICE void weigh_scores(Weights& weights, Scores& scores, Scores& as_query) const {
    const RowNumbers* const numbers = this->buffers.numbers(this->step);
    OCNET_UNROLL
    for (int n = 0; n < kCols / 8; ++n) {
      OCNET_UNROLL
      for (int i = 0; i < 4; ++i) {
        const RowNumbers& own = this->own_numbers[i / 2];
        const float lse = numbers[this->column(n) + i % 2].lse - Shift::kBits;
        float& score = scores[n][i];
        const float power = std::fma(score, this->params.scale_log2, -own.lse);
        as_query[n][i] = ptx::exp2_approx(power) * (as_query[n][i] - own.delta);
        score = ptx::exp2_approx(std::fma(score, this->params.scale_log2, -lse));
      }
    }
    pack_weights<scalar_t>(weights, scores);
  }

  // G: adds P' (V_I dO_J^T - delta_J).
  OCNET_DEVICE void add_as_key(Scores& sums, const Scores& products, const Scores& weights,
                               int valid) const {
    const RowNumbers* const numbers = this->buffers.numbers(this->step);
    OCNET_UNROLL
    for (int n = 0; n < kCols / 8; ++n) {
      OCNET_UNROLL
      for (int i = 0; i < 4; ++i) {
        const float delta = numbers[this->column(n) + i % 2].delta;
        sums[n][i] = std::fma(weights[n][i] * Shift::kInverse, products[n][i] - delta, sums[n][i]);
      }
    }
    if (valid < kCols) clear_columns(sums, valid);
  }
};

// grad_tokens and grad_value of shared keys. Grid: plan.workers clusters of blocks, which walk over
// their work (oc_attention_hopper_work.h).
template <typename Tile>
OCNET_KERNEL(kHopperThreads, 1)
oc_attention_hopper_bwd_wide_kernel(OCNET_GRID_CONSTANT HopperBwdParams<Tile> params) {
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
  run_hopper_bwd_block<Tile>(params,
                             [&](int, int worker) { HopperBwdWide<Tile>(params).run(worker); });
#endif
}

}  // namespace ocnet
