// SPDX-License-Identifier: MIT
// Backward kernel of pixel-wise attention with shared keys for Hopper (wgmma and the copy engine,
// sm_90a). No torch headers.
//
// With P = exp(scale * X_I X_J^T - lse_I) of rows I that a block owns and rows J streamed past it,
// and P' the same with lse_J (derivation: docs/ops/oc_attention.md):
//   G = P (dO_I V_J^T - delta_I) + P' (V_I dO_J^T - delta_J)
//   dX_I = scale * sum over J of G X_J      dV_I = sum over J of P' dO_J
// Five products for both gradients; nothing is added to by two blocks.
#pragma once

#include "oc_attention_hopper_bwd_consumer.cuh"

namespace ocnet {

// What may be done otherwise; benchmarks/hopper measures other choices.
template <typename Tile>
struct HopperBwdChoices {
  // Whether P' and P go from one consumer to the other, in 16 bits, instead of the scores: powers
  // are made once.
  static constexpr bool kHandsWeights = false;
  // Whether the scores of a step are issued before the sums of the step before, under which they
  // are then weighed.
  static constexpr bool kScoresFirst = false;
  // Whether V_I dO_J^T is issued before dO_I V_J^T. The buffer of tokens has to be free by then.
  static constexpr bool kKeyFirst = false;
};

// Weights of a thread's two rows and two columns in 16 bits: of P', and of P where there is one.
template <typename Tile>
struct alignas(Tile::kAsQuery ? 16 : 8) HopperBwdHanded {
  uint32_t pairs[Tile::kAsQuery ? 2 : 1][2];

  // Element `i` as a thread has them in its sums.
  OCNET_DEVICE float weight(int which, int i) const {
    using scalar_t = typename Tile::scalar_t;
    return to_accumulator(scalar_t{static_cast<uint16_t>(pairs[which][i / 2] >> i % 2 * 16)});
  }
};

// Named barriers of the 256 consumer threads: the scores of a step have been handed over, and have
// been taken.
constexpr int kScoresHanded = 1;
constexpr int kScoresTaken = 2;
constexpr int kHopperConsumerThreads = kHopperConsumers * device::kWarpgroupThreads;

// Makes the scores, hands them over, and sums the gradient of the values.
template <typename Tile>
class HopperBwdValues : HopperBwdConsumer<Tile> {
  using Base = HopperBwdConsumer<Tile>;
  using scalar_t = typename Tile::scalar_t;
  using Products = HopperBwdProducts<Tile>;
  using Shift = bwd::WeightShift<scalar_t>;
  using Choices = HopperBwdChoices<Tile>;
  static constexpr int kCols = Tile::kCols;
  // The sums of the step before still read their weights when those of this one are handed over:
  // the compiler lets its products wait for each other.
  static_assert(!(Choices::kHandsWeights && Choices::kScoresFirst), "one or the other");

 public:
  using Base::Base;

  OCNET_DEVICE void run(int worker) {
    HopperWalk walk(this->params.plan, worker);
    HopperJob job;
    while (walk.next(job)) {
      float sums[Tile::kValues / 8][4];
      sum_up(sums);
      this->store(&HopperBwdStage<scalar_t>::grad_value, sums, Tile::kChannels);
      this->job_parity ^= 1;
    }
    // No barrier is left half full.
    if (has_handed_) device::named_barrier_sync(kScoresTaken, kHopperConsumerThreads);
  }

 private:
  OCNET_DEVICE void sum_up(float (&sums)[Tile::kValues / 8][4]) {
    const HopperBuffer own = this->buffers.own();
    float scores[kCols / 8][4];
    uint32_t weights[kCols / 16][4];
    clear_sums(sums);
    const HopperTask& task = this->begin();
    KeyWalk tiles = task.keys;
    const int end = this->step + task.steps;
    if constexpr (Choices::kHandsWeights && Tile::kAsQuery) this->load_own_numbers();

    const HopperBuffer first = this->buffers.tokens(this->step);
    this->wait(first, this->step);
    ptx::hold_registers(flat(scores));
    ptx::wgmma_fence();
    Products::template scores<Tile::kChannels>(scores, own.data, first.data);
    ptx::wgmma_wait<0>();
    ptx::hold_registers(flat(scores));
    weigh(scores, this->valid(tiles, task));
    pack_weights<scalar_t>(weights, scores);
    release<Tile::kCluster>(first);
    while (++this->step < end) {
      const uint32_t rows = ptx::opaque(own.data);
      tiles.advance();
      const HopperBuffer grads = this->buffers.grads(this->step - 1);
      const HopperBuffer tokens = this->buffers.tokens(this->step);
      this->wait(grads, this->step - 1);
      ptx::hold_registers(flat(scores));
      ptx::hold_registers(flat(sums));
      ptx::wgmma_fence();
      if constexpr (Choices::kScoresFirst) {
        this->wait(tokens, this->step);
        Products::template scores<Tile::kChannels>(scores, rows, tokens.data);
        Products::template accumulate<Tile::kValues>(sums, weights, grads.data);
        ptx::wgmma_wait<1>();
        ptx::hold_registers(flat(scores));
        weigh(scores, this->valid(tiles, task));
        ptx::wgmma_wait<0>();
        ptx::hold_registers(flat(sums));
        release<Tile::kCluster>(grads);
      } else {
        Products::template accumulate<Tile::kValues>(sums, weights, grads.data);
        this->wait(tokens, this->step);
        Products::template scores<Tile::kChannels>(scores, rows, tokens.data);
        ptx::wgmma_wait<1>();
        release<Tile::kCluster>(grads);
        ptx::wgmma_wait<0>();
        ptx::hold_registers(flat(sums));
        ptx::hold_registers(flat(scores));
        weigh(scores, this->valid(tiles, task));
      }
      pack_weights<scalar_t>(weights, scores);
      release<Tile::kCluster>(tokens);
    }
    release<1>(own);
    const HopperBuffer grads = this->buffers.grads(end - 1);
    this->wait(grads, end - 1);
    ptx::hold_registers(flat(sums));
    ptx::wgmma_fence();
    Products::template accumulate<Tile::kValues>(sums, weights, grads.data);
    ptx::wgmma_wait<0>();
    ptx::hold_registers(flat(sums));
    release<Tile::kCluster>(grads);
  }

  // Makes P' of the scores. The other consumer gets those, or weights.
  OCNET_DEVICE void weigh(float (&scores)[kCols / 8][4], int valid) {
    if constexpr (Choices::kHandsWeights) {
      uint32_t as_query[kCols / 16][4];
      if constexpr (Tile::kAsQuery) weigh_as_query(as_query, scores);
      weigh_as_key(scores, valid);
      uint32_t as_key[kCols / 16][4];
      pack_weights<scalar_t>(as_key, scores);
      hand_over([&](int n) {
        auto& to = this->template handed<HopperBwdHanded<Tile>>(n);
        OCNET_UNROLL
        for (int r = 0; r < 2; ++r) {
          to.pairs[0][r] = as_key[n / 2][n % 2 * 2 + r];
          if constexpr (Tile::kAsQuery) to.pairs[1][r] = as_query[n / 2][n % 2 * 2 + r];
        }
      });
    } else {
      hand_over([&](int n) {
        this->handed(n) = {{scores[n][0], scores[n][1], scores[n][2], scores[n][3]}};
      });
      weigh_as_key(scores, valid);
    }
  }

  // write(n), once the other consumer has taken what was there.
  template <typename Write>
  OCNET_DEVICE void hand_over(const Write& write) {
    if (has_handed_) device::named_barrier_sync(kScoresTaken, kHopperConsumerThreads);
    has_handed_ = true;
    OCNET_UNROLL
    for (int n = 0; n < kCols / 8; ++n) write(n);
    device::named_barrier_arrive(kScoresHanded, kHopperConsumerThreads);
  }

  // P' in the place of the scores.
  OCNET_DEVICE void weigh_as_key(float (&scores)[kCols / 8][4], int valid) const {
    const RowNumbers* const numbers = this->buffers.numbers(this->step);
    OCNET_UNROLL
    for (int n = 0; n < kCols / 8; ++n) {
      OCNET_UNROLL
      for (int i = 0; i < 2; ++i) {
        const float lse = numbers[this->column(n) + i].lse - Shift::kBits;
        OCNET_UNROLL
        for (int r = 0; r < 2; ++r) {
          float& score = scores[n][2 * r + i];
          score = ptx::exp2_approx(std::fma(score, this->params.scale_log2, -lse));
        }
      }
    }
    if (valid < kCols) clear_columns(scores, valid);
  }
  OCNET_DEVICE void weigh_as_query(uint32_t (&weights)[kCols / 16][4],
                                   const float (&scores)[kCols / 8][4]) const {
    float powers[kCols / 8][4];
    OCNET_UNROLL
    for (int n = 0; n < kCols / 8; ++n) {
      OCNET_UNROLL
      for (int i = 0; i < 4; ++i) {
        const float lse = this->own_numbers[i / 2].lse - Shift::kBits;
        powers[n][i] = ptx::exp2_approx(std::fma(scores[n][i], this->params.scale_log2, -lse));
      }
    }
    pack_weights<scalar_t>(weights, powers);
  }

  bool has_handed_ = false;
};

// Makes the gradients of the scores, and sums that of the tokens.
template <typename Tile>
class HopperBwdTokens : HopperBwdConsumer<Tile> {
  using Base = HopperBwdConsumer<Tile>;
  using scalar_t = typename Tile::scalar_t;
  using Products = HopperBwdProducts<Tile>;
  using Choices = HopperBwdChoices<Tile>;
  static constexpr int kCols = Tile::kCols;
  static_assert(Tile::kAsQuery || !Choices::kKeyFirst, "keys have but one of the products");

 public:
  using Base::Base;

  OCNET_DEVICE void run(int worker) {
    HopperWalk walk(this->params.plan, worker);
    HopperJob job;
    while (walk.next(job)) {
      float sums[Tile::kChannels / 8][4];
      sum_up(sums);
      this->store(&HopperBwdStage<scalar_t>::grad_tokens, sums, 0);
      this->job_parity ^= 1;
    }
  }

 private:
  OCNET_DEVICE void sum_up(float (&sums)[Tile::kChannels / 8][4]) {
    float as_query[kCols / 8][4];  // dO_I V_J^T
    float as_key[kCols / 8][4];    // V_I dO_J^T
    uint32_t weights[kCols / 16][4];
    clear_sums(sums);
    const HopperTask& task = this->begin();
    KeyWalk tiles = task.keys;
    const int end = this->step + task.steps;
    if constexpr (Tile::kAsQuery) this->load_own_numbers();

    HopperBuffer tokens = this->buffers.tokens(this->step);
    const HopperBuffer values = this->buffers.values(0);  // there is but one
    const HopperBuffer first_grads = this->buffers.grads(this->step);
    if constexpr (Tile::kAsQuery) this->wait(values, this->step);
    this->wait(first_grads, this->step);
    hold(as_query, as_key);
    ptx::wgmma_fence();
    if constexpr (Tile::kAsQuery && !Choices::kKeyFirst) {
      Products::template scores<Tile::kValues>(as_query, this->buffers.own_grads(), values.data);
    }
    Products::template scores<Tile::kValues>(as_key, this->buffers.own_values(), first_grads.data);
    if constexpr (Choices::kKeyFirst) {
      Products::template scores<Tile::kValues>(as_query, this->buffers.own_grads(), values.data);
    }
    ptx::wgmma_wait<0>();
    hold(as_query, as_key);
    if constexpr (Tile::kAsQuery) release<Tile::kCluster>(values);
    release<Tile::kCluster>(first_grads);
    this->wait(tokens, this->step);  // their numbers
    weigh(weights, as_query, as_key, this->valid(tiles, task));
    while (++this->step < end) {
      const uint32_t own_values = ptx::opaque(this->buffers.own_values());
      tiles.advance();
      ptx::hold_registers(flat(sums));
      hold(as_query, as_key);
      ptx::wgmma_fence();
      Products::template accumulate<Tile::kChannels>(sums, weights, tokens.data);
      const auto start_as_query = [&] {
        this->wait(values, this->step);
        const uint32_t own_grads = own_values + (Tile::kOwnGrads - Tile::kOwnValues);
        Products::template scores<Tile::kValues>(as_query, own_grads, values.data);
      };
      if constexpr (Choices::kKeyFirst) {
        ptx::wgmma_wait<0>();
        release<Tile::kCluster>(tokens);  // the next gradients come behind the next tokens
      } else if constexpr (Tile::kAsQuery) {
        start_as_query();
        ptx::wgmma_wait<1>();
        release<Tile::kCluster>(tokens);
      }
      const HopperBuffer grads = this->buffers.grads(this->step);
      this->wait(grads, this->step);
      Products::template scores<Tile::kValues>(as_key, own_values, grads.data);
      if constexpr (Choices::kKeyFirst) start_as_query();
      ptx::wgmma_wait<0>();
      ptx::hold_registers(flat(sums));
      hold(as_query, as_key);
      if constexpr (Tile::kAsQuery) {
        release<Tile::kCluster>(values);
      } else {
        release<Tile::kCluster>(tokens);
      }
      release<Tile::kCluster>(grads);
      tokens = this->buffers.tokens(this->step);
      this->wait(tokens, this->step);
      weigh(weights, as_query, as_key, this->valid(tiles, task));
    }
    release<1>(this->buffers.own());
    ptx::hold_registers(flat(sums));
    ptx::wgmma_fence();
    Products::template accumulate<Tile::kChannels>(sums, weights, tokens.data);
    ptx::wgmma_wait<0>();
    ptx::hold_registers(flat(sums));
    release<Tile::kCluster>(tokens);
  }
  OCNET_DEVICE static void hold(float (&as_query)[kCols / 8][4], float (&as_key)[kCols / 8][4]) {
    if constexpr (Tile::kAsQuery) ptx::hold_registers(flat(as_query));
    ptx::hold_registers(flat(as_key));
  }

  // The weight of element i as a key or (1) as a query, of what the other consumer hands over.
  OCNET_DEVICE auto weights_of(int n) const {
    if constexpr (Choices::kHandsWeights) {
      using Shift = bwd::WeightShift<scalar_t>;
      return [handed = this->template handed<HopperBwdHanded<Tile>>(n)](int which, int i,
                                                                        const RowNumbers&) {
        return handed.weight(which, i) * Shift::kInverse;
      };
    } else {
      return [scores = this->handed(n), scale = this->params.scale_log2](int, int i,
                                                                         const RowNumbers& of) {
        return ptx::exp2_approx(std::fma(scores.at[i], scale, -of.lse));
      };
    }
  }

  // G of both products, or of one, and of what the other consumer hands over.
  OCNET_DEVICE void weigh(uint32_t (&weights)[kCols / 16][4], const float (&as_query)[kCols / 8][4],
                          float (&as_key)[kCols / 8][4], int valid) {
    const RowNumbers* const numbers = this->buffers.numbers(this->step);
    device::named_barrier_sync(kScoresHanded, kHopperConsumerThreads);
    OCNET_UNROLL
    for (int n = 0; n < kCols / 8; ++n) {
      const auto weight = weights_of(n);
      OCNET_UNROLL
      for (int i = 0; i < 4; ++i) {
        const RowNumbers& column = numbers[this->column(n) + i % 2];
        float sum = weight(0, i, column) * (as_key[n][i] - column.delta);
        if constexpr (Tile::kAsQuery) {
          const RowNumbers& row = this->own_numbers[i / 2];
          sum += weight(1, i, row) * (as_query[n][i] - row.delta);
        }
        as_key[n][i] = sum;
      }
    }
    device::named_barrier_arrive(kScoresTaken, kHopperConsumerThreads);
    if (valid < kCols) clear_columns(as_key, valid);
    pack_weights<scalar_t>(weights, as_key);
  }
};

// grad_tokens and grad_value of shared keys. A producer warpgroup brings tiles, of which each
// consumer warpgroup makes one of the gradients of the block's 64 rows:
//   values  P' dO_J (of the step before)    X_I X_J^T
//   tokens  G X_J (of the step before)      dO_I V_J^T      V_I dO_J^T
// Grid: plan.workers clusters of blocks, which walk over their work (oc_attention_hopper_work.h).
template <typename Tile>
OCNET_KERNEL(kHopperThreads, 1)
oc_attention_hopper_bwd_kernel(OCNET_GRID_CONSTANT HopperBwdParams<Tile> params) {
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
  run_hopper_bwd_block<Tile>(params, [&](int consumer, int worker) {
    if (consumer == 0) {
      HopperBwdValues<Tile>(params).run(worker);
    } else {
      HopperBwdTokens<Tile>(params).run(worker);
    }
  });
#endif
}

}  // namespace ocnet
