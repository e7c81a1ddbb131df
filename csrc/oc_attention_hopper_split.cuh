// SPDX-License-Identifier: MIT
// Forward kernel of pixel-wise attention for Hopper, strict fp32: wgmma on three BFloat16 parts of
// each number (oc_attention_split.cuh). No torch headers.
#pragma once

#include "common/launch.cuh"
#include "common/mma_tile.cuh"
#include "common/ptx/address.cuh"
#include "common/ptx/wgmma.cuh"
#include "oc_attention_hopper_consumer.cuh"
#include "oc_attention_split.cuh"

namespace ocnet {

// Tiles of parts. In shared memory a line is 64 channels: for each of them come the high parts of
// all tokens, then the middle, then the low ones.
template <int kConsumers_, int kChannels_, int kValues_, int kCols_, int kStages_>
struct SplitTile : HopperLayout<kConsumers_, kChannels_, kValues_, kCols_, kStages_,
                                kSplitParts* static_cast<int>(sizeof(BFloat16))> {
  using scalar_t = float;
  static constexpr HopperSource kSource = HopperSource::kTokenMajor;
  static constexpr int kLine = kLineBytes / static_cast<int>(sizeof(BFloat16));
  // Blocks of a cluster take turns to fetch a line, for both.
  static constexpr int kCluster = kChannels_ > kLine&& kValues_ > kLine ? 2 : 1;
  // Two warpgroups can have all registers that they can name.
  static constexpr int kProducerRegisters = kConsumers_ == 1 ? 0 : 40;
  static constexpr int kConsumerRegisters = kConsumers_ == 1 ? 0 : 232;

  static_assert(kChannels_ % (kLine * kCluster) == 0 && kValues_ % (kLine * kCluster) == 0,
                "blocks fetch equal numbers of whole lines");
  static_assert(kCols_ % 16 == 0, "every part starts with an atom of the swizzle, and is a depth");
};

// Copies of parts by the copy engine, issued by one thread: a box is a line with all its parts.
template <typename Tile>
class SplitCopies {
 public:
  static constexpr bool kByOneThread = true;

  OCNET_DEVICE explicit SplitCopies(const HopperFwdParams<float>& params)
      : maps_(params.maps), rank_(Tile::kCluster > 1 ? device::cluster_rank() : 0) {
    ptx::tensor_prefetch(maps_.query);
    ptx::tensor_prefetch(maps_.key);
    ptx::tensor_prefetch(maps_.value);
  }
  OCNET_DEVICE void begin(const HopperTask& task, const Family&) {
    image_ = static_cast<int>(task.image);
    first_channel_ = task.slice * Tile::kValues;
  }
  OCNET_DEVICE void query(const HopperBuffer& to, int first_token) const {
    ptx::mbarrier_arrive_expect(to.full, Tile::kQueryBytes);
    OCNET_UNROLL
    for (int line = 0; line < Tile::kChannels / Tile::kLine; ++line) {
      ptx::tensor_load(to.data + line * kSplitParts * Tile::kRows * kLineBytes, maps_.query,
                       to.full, {line * Tile::kLine, first_token + rank_ * Tile::kRows, 0, image_});
    }
  }
  OCNET_DEVICE void keys(const HopperBuffer& to, int first_token) const {
    ptx::mbarrier_arrive_expect(to.full, Tile::kKeyBytes);
    streamed<Tile::kChannels>(to, maps_.key, first_token, 0);
  }
  OCNET_DEVICE void values(const HopperBuffer& to, int first_token) const {
    ptx::mbarrier_arrive_expect(to.full, Tile::kValueBytes);
    streamed<Tile::kValues>(to, maps_.value, first_token, first_channel_);
  }
  OCNET_DEVICE void make_way() const {}
  OCNET_DEVICE void end() const {}

 private:
  template <int kChannels>
  OCNET_DEVICE void streamed(const HopperBuffer& to, const TensorMap& map, int first_token,
                             int first_channel) const {
    OCNET_UNROLL
    for (int turn = 0; turn < kChannels / Tile::kLine / Tile::kCluster; ++turn) {
      const int line = turn * Tile::kCluster + rank_;
      const uint32_t place = to.data + line * kSplitParts * Tile::kCols * kLineBytes;
      const int at[] = {first_channel + line * Tile::kLine, first_token, 0, image_};
      if constexpr (Tile::kCluster > 1) {
        constexpr uint16_t kBlocks = (1 << Tile::kCluster) - 1;
        ptx::tensor_load_multicast(place, map, to.full, at, kBlocks);
      } else {
        ptx::tensor_load(place, map, to.full, at);
      }
    }
  }

  const HopperMaps& maps_;
  const int rank_;
  int image_ = 0;
  int first_channel_ = 0;
};

// The products of a warpgroup. Tensor cores round their sums towards 0, so small products come
// before large ones, and chains end with a step: their sums are added by fp32 additions.
template <typename Tile>
struct SplitProducts {
  static constexpr int kCols = Tile::kCols;
  static constexpr int kDepth = 16;
  static constexpr int kSteps = Tile::kChannels / kDepth;
  static constexpr int kPerLine = Tile::kLine / kDepth;
  static constexpr uint32_t kAtom = 8 * kLineBytes;
  static constexpr ptx::Contiguous kRows = ptx::Contiguous::kChannels;
  enum Part { kHigh, kMiddle, kLow };

  // 16 channels of a part of a tile of `tokens` tokens. What follows them is the next part.
  OCNET_DEVICE static uint64_t rows_at(uint32_t tile, int tokens, int part, int step) {
    const uint32_t line = (step / kPerLine * kSplitParts + part) * tokens * kLineBytes;
    return ptx::tile_descriptor(
        tile + line + step % kPerLine * (kDepth * static_cast<int>(sizeof(BFloat16))), 0, kAtom);
  }
  // 16 keys of a part of a line of values.
  OCNET_DEVICE static uint64_t values_at(uint32_t tile, int line, int part, int step) {
    return ptx::tile_descriptor(
        tile + ((line * kSplitParts + part) * kCols + step * kDepth) * kLineBytes, 0, kAtom);
  }

  // With high and middle parts of the keys side by side, shared memory is read less often: `pairs`
  // are the products with the high parts, then those with the middle ones.
  OCNET_DEVICE static void scores(float (&pairs)[kCols / 4][4], float (&rest)[kCols / 8][4],
                                  uint32_t query, uint32_t keys) {
    multiply<2 * kCols>(pairs, query, kMiddle, keys, kHigh, false);
    multiply<2 * kCols>(pairs, query, kHigh, keys, kHigh, true);
    multiply<kCols>(rest, query, kLow, keys, kHigh, false);
    multiply<kCols>(rest, query, kHigh, keys, kLow, true);
    ptx::wgmma_commit();
  }

  struct Weights {
    uint32_t parts[kSplitParts][kCols / kDepth][4];
  };
  OCNET_DEVICE static void cut(Weights& weights, const float (&scores)[kCols / 8][4]) {
    OCNET_UNROLL
    for (int step = 0; step < kCols / kDepth; ++step) {
      const SplitMath::Left left = SplitMath::weight_operand<kCols>(scores, step);
      OCNET_UNROLL
      for (int i = 0; i < 4; ++i) {
        weights.parts[kHigh][step][i] = left.pairs[i].high;
        weights.parts[kMiddle][step][i] = left.pairs[i].middle;
        weights.parts[kLow][step][i] = left.pairs[i].low;
      }
    }
  }
  // 64 channels of a line.
  OCNET_DEVICE static void weighted(float (&sums)[Tile::kLine / 8][4], const Weights& weights,
                                    uint32_t values, int line) {
    constexpr Part kFactors[][2] = {{kMiddle, kMiddle}, {kLow, kHigh},    {kHigh, kLow},
                                    {kMiddle, kHigh},   {kHigh, kMiddle}, {kHigh, kHigh}};
    OCNET_UNROLL
    for (int product = 0; product < 6; ++product) {
      OCNET_UNROLL
      for (int step = 0; step < kCols / kDepth; ++step) {
        ptx::wgmma<BFloat16, Tile::kLine, ptx::Contiguous::kTokens>(
            flat(sums), weights.parts[kFactors[product][0]][step],
            values_at(values, line, kFactors[product][1], step), product + step > 0);
      }
    }
    ptx::wgmma_commit();
  }

 private:
  template <int kColumns>
  OCNET_DEVICE static void multiply(float (&sums)[kColumns / 8][4], uint32_t query, Part query_part,
                                    uint32_t keys, Part key_part, bool accumulate) {
    OCNET_UNROLL
    for (int step = 0; step < kSteps; ++step) {
      ptx::wgmma<BFloat16, kColumns, kRows, kRows>(
          flat(sums), rows_at(query, Tile::kRows, query_part, step),
          rows_at(keys, kCols, key_part, step), accumulate || step > 0);
    }
  }
};

template <typename Tile>
class SplitConsumer : public HopperConsumerOf<Tile, SplitConsumer<Tile>> {
  using Base = HopperConsumerOf<Tile, SplitConsumer<Tile>>;
  using Base::kCols;
  using Base::step_;
  using Products = SplitProducts<Tile>;
  using Weights = typename Products::Weights;
  static constexpr int kLines = Tile::kValues / Tile::kLine;

 public:
  using Base::Base;

  // With one buffer each, the next keys arrive while values are summed up, and the next values
  // while scores are computed.
  OCNET_DEVICE void attend(SoftmaxRows& softmax, float (&sums)[Tile::kValues / 8][4]) {
    clear_sums(sums);
    const HopperBuffer query = this->full_query();
    const int last_keys = this->last_keys();
    KeyWalk tiles = this->task().keys;
    const uint32_t first_row = query.data + this->consumer_ * kHopperWarpgroupRows * kLineBytes;
    const int end = step_ + this->task().steps;
    while (step_ < end) {
      float scores[kCols / 8][4];
      // Descriptors are made anew in every step: kept, they would spill.
      score(scores, ptx::opaque(first_row));
      if (step_ + 1 == end) release<1>(query);
      softmax.rescale(this->weigh(softmax, scores, tiles.is_last() ? last_keys : kCols), sums);
      Weights weights;
      Products::cut(weights, scores);
      accumulate(sums, weights);
      ++step_;
      tiles.advance();
    }
    softmax.template finish<SplitMath>();
  }

 private:
  OCNET_DEVICE void score(float (&scores)[kCols / 8][4], uint32_t rows) const {
    float pairs[kCols / 4][4];
    float rest[kCols / 8][4];
    const HopperBuffer keys = this->full_keys();
    ptx::hold_registers(flat(pairs));
    ptx::hold_registers(flat(rest));
    ptx::wgmma_fence();
    Products::scores(pairs, rest, rows, keys.data);
    ptx::wgmma_wait<0>();
    ptx::hold_registers(flat(pairs));
    ptx::hold_registers(flat(rest));
    release<Tile::kCluster>(keys);
    OCNET_UNROLL
    for (int n = 0; n < kCols / 8; ++n) {
      OCNET_UNROLL
      for (int i = 0; i < 4; ++i)
        scores[n][i] = pairs[n][i] + (pairs[n + kCols / 8][i] + rest[n][i]);
    }
  }

  // While a line is multiplied, the line before it is added.
  OCNET_DEVICE void accumulate(float (&sums)[Tile::kValues / 8][4], const Weights& weights) const {
    float line[2][Tile::kLine / 8][4];
    const HopperBuffer values = this->full_values();
    const uint32_t data = ptx::opaque(values.data);
    OCNET_UNROLL
    for (int i = 0; i < kLines; ++i) {
      ptx::hold_registers(flat(line[i % 2]));
      ptx::wgmma_fence();
      Products::weighted(line[i % 2], weights, data, i);
      if (i == 0) continue;
      ptx::wgmma_wait<1>();
      add(sums, line[(i - 1) % 2], i - 1);
    }
    ptx::wgmma_wait<0>();
    release<Tile::kCluster>(values);
    add(sums, line[(kLines - 1) % 2], kLines - 1);
  }
  OCNET_DEVICE static void add(float (&sums)[Tile::kValues / 8][4],
                               float (&line)[Tile::kLine / 8][4], int index) {
    ptx::hold_registers(flat(line));
    OCNET_UNROLL
    for (int n = 0; n < Tile::kLine / 8; ++n) {
      OCNET_UNROLL
      for (int i = 0; i < 4; ++i) sums[index * (Tile::kLine / 8) + n][i] += line[n][i];
    }
  }
};

// As oc_attention_hopper_fwd_kernel, of fp32 maps: scores are six products of parts, and so are the
// sums over values. Weights are not rounded. Keys and values take three times the room of 16-bit
// ones, so most tiles have one buffer for each.
template <typename Tile>
OCNET_KERNEL(Tile::kThreads, 1)
oc_attention_hopper_split_fwd_kernel(OCNET_GRID_CONSTANT HopperFwdParams<float> params) {
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
  run_hopper_block<Tile, SplitCopies<Tile>, SplitConsumer<Tile>>(params);
#endif
}

}  // namespace ocnet
