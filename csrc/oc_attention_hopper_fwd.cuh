// SPDX-License-Identifier: MIT
// Forward kernel of pixel-wise attention for Hopper (wgmma and the copy engine, sm_90a), 16-bit
// maps. No torch headers.
#pragma once

#include <type_traits>

#include "common/launch.cuh"
#include "common/ptx/address.cuh"
#include "common/ptx/wgmma.cuh"
#include "oc_attention_hopper_consumer.cuh"

namespace ocnet {

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
};

template <typename Tile>
class HopperConsumer : public HopperConsumerOf<Tile, HopperConsumer<Tile>> {
  using Base = HopperConsumerOf<Tile, HopperConsumer<Tile>>;
  using Base::kCols;
  using Base::step_;
  using typename Base::scalar_t;
  using Products = HopperProducts<Tile>;

 public:
  using Base::Base;

  // The scores of a step are computed while the values of the step before are summed up, and
  // weighed under that.
  OCNET_DEVICE void attend(SoftmaxRows& softmax, float (&sums)[Tile::kValues / 8][4]) {
    float scores[kCols / 8][4];
    uint32_t weights[kCols / 16][4];
    clear_sums(sums);
    const HopperBuffer query = this->full_query();
    KeyWalk tiles = this->task().keys;
    const int last_keys = this->last_keys();
    const auto valid_keys = [&] { return tiles.is_last() ? last_keys : kCols; };
    const int end = step_ + this->task().steps;
    const uint32_t first_row = Products::query_rows(query.data, this->consumer_);

    const HopperBuffer first = this->full_keys();
    ptx::hold_registers(flat(scores));
    ptx::wgmma_fence();
    Products::scores(scores, first_row, first.data);
    ptx::wgmma_wait<0>();
    ptx::hold_registers(flat(scores));
    release<Tile::kCluster>(first);
    this->weigh(softmax, scores, valid_keys());
    pack(softmax, weights, scores);
    while (step_ + 1 < end) {
      // Descriptors are made anew in every step: kept, they would spill.
      const uint32_t rows = ptx::opaque(first_row);
      const HopperBuffer values = this->full_values();
      ++step_;
      tiles.advance();
      const HopperBuffer keys = this->full_keys();
      this->await_turn();
      ptx::hold_registers(flat(scores));
      ptx::hold_registers(flat(sums));
      ptx::wgmma_fence();
      Products::scores(scores, rows, keys.data);
      Products::accumulate(sums, weights, values.data);
      this->pass_turn();
      ptx::wgmma_wait<1>();
      ptx::hold_registers(flat(scores));
      release<Tile::kCluster>(keys);
      const SoftmaxRows::Growth growth = this->weigh(softmax, scores, valid_keys());
      ptx::wgmma_wait<0>();
      ptx::hold_registers(flat(sums));
      release<Tile::kCluster>(values);
      pack(softmax, weights, scores);
      softmax.rescale(growth, sums);
    }
    release<1>(query);
    const HopperBuffer values = this->full_values();
    ++step_;
    ptx::hold_registers(flat(sums));
    ptx::wgmma_fence();
    Products::accumulate(sums, weights, values.data);
    ptx::wgmma_wait<0>();
    ptx::hold_registers(flat(sums));
    release<Tile::kCluster>(values);
    softmax.finish_packed();
  }

 private:
  OCNET_DEVICE static void pack(SoftmaxRows& softmax, uint32_t (&weights)[kCols / 16][4],
                                const float (&scores)[kCols / 8][4]) {
    pack_weights<scalar_t>(weights, scores);
    softmax.template count_packed<scalar_t>(weights);
  }
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
  using Copies = std::conditional_t<Tile::kSource == HopperSource::kGroups, ThreadCopies<Tile>,
                                    EngineCopies<Tile>>;
  run_hopper_block<Tile, Copies, HopperConsumer<Tile>>(params);
#endif
}

}  // namespace ocnet
