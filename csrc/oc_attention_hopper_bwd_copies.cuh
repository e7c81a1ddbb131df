// SPDX-License-Identifier: MIT
// Shared memory of the Hopper backward kernel: its buffers, their mbarriers, and the producer that
// fills them.
#pragma once

#include "common/cluster.cuh"
#include "common/groups.h"
#include "common/ptx/descriptor.h"
#include "common/ptx/fence.cuh"
#include "common/ptx/mbarrier.cuh"
#include "common/ptx/tma.cuh"
#include "oc_attention_delta.cuh"
#include "oc_attention_hopper_bwd_tile.h"
#include "oc_attention_hopper_copies.cuh"
#include "oc_attention_hopper_work.h"

namespace ocnet {

// Boxes of whole tiles, of a block's half of a tile, and of a tile's numbers.
struct HopperBwdMaps {
  TensorMap own_tokens, own_values, own_grads;
  TensorMap tokens, values, grads;
  TensorMap numbers;
};

template <typename scalar_t>
struct HopperBwdParams {
  TokenMatrix<scalar_t> grad_tokens;  // (N, L, E); data is null where it is not wanted
  TokenMatrix<scalar_t> grad_value;   // (N, L, Ev)
  HopperBwdMaps maps;
  float scale, scale_log2;
  HopperPlan plan;
  float* parts;  // see HopperBwdPart
  WorkTable work;
};

template <typename Tile>
struct HopperBwdBuffers {
  uint32_t base;

  OCNET_DEVICE HopperBwdBuffers()
      : base(ptx::shared_address(device::shared_memory<unsigned char>())) {}
  OCNET_DEVICE HopperBuffer own() const { return at(Tile::kOwnTokens, 0); }
  OCNET_DEVICE HopperBuffer values() const { return at(Tile::kValuesAt, 1); }
  // Of a step, which are used in turn.
  OCNET_DEVICE HopperBuffer tokens(int step) const {
    const int stage = step % Tile::kStages;
    return at(Tile::kTokens + stage * Tile::kTokenBytes, 2 + 2 * stage);
  }
  OCNET_DEVICE HopperBuffer grads(int step) const {
    const int stage = step % Tile::kStages;
    return at(Tile::kGrads + stage * Tile::kValueBytes, 3 + 2 * stage);
  }
  OCNET_DEVICE static uint32_t parity(int step) { return step / Tile::kStages % 2; }
  OCNET_DEVICE uint32_t own_values() const { return base + Tile::kOwnValues; }
  OCNET_DEVICE uint32_t own_grads() const { return base + Tile::kOwnGrads; }
  OCNET_DEVICE static const RowNumbers* own_numbers() { return numbers_at(Tile::kOwnNumbers); }
  OCNET_DEVICE static const RowNumbers* numbers(int step) {
    return numbers_at(numbers_start(step));
  }
  OCNET_DEVICE static int numbers_start(int step) {
    return Tile::kNumbers + step % Tile::kStages * Tile::kNumberBytes;
  }
  // As HopperBuffers::task; full and empty as the block's own rows are.
  OCNET_DEVICE static HopperTask& task(uint32_t job_parity) {
    return *reinterpret_cast<HopperTask*>(bytes() + Tile::kTaskStart +
                                          job_parity * kHopperTaskBytes);
  }
  OCNET_DEVICE static unsigned char* bytes() { return device::shared_memory<unsigned char>(); }

 private:
  OCNET_DEVICE HopperBuffer at(int start, int barriers) const {
    const uint32_t full = base + Tile::kBarrierStart + barriers * 16;
    return {base + start, full, full + 8};
  }
  OCNET_DEVICE static const RowNumbers* numbers_at(int start) {
    return reinterpret_cast<const RowNumbers*>(bytes() + start);
  }
};

// By one thread, before the barrier that lets others use them.
template <typename Tile>
OCNET_DEVICE void prepare_barriers(const HopperBwdBuffers<Tile>& buffers) {
  constexpr int kWarps = 4;  // of a consumer
  const auto prepare = [&](const HopperBuffer& buffer, int readers) {
    ptx::mbarrier_init(buffer.full, 1);
    ptx::mbarrier_init(buffer.empty, readers);
  };
  prepare(buffers.own(), 2 * kWarps);
  prepare(buffers.values(), kWarps * Tile::kCluster);
  for (int stage = 0; stage < Tile::kStages; ++stage) {
    prepare(buffers.tokens(stage), 2 * kWarps * Tile::kCluster);
    prepare(buffers.grads(stage), 2 * kWarps * Tile::kCluster);
  }
  ptx::fence_mbarrier_init();
}

// This block's half of a streamed tile, for all blocks of the cluster.
template <typename Tile, int kChannels>
OCNET_DEVICE void load_half(const HopperBuffer& to, const TensorMap& map, int token, int image,
                            int rank) {
  constexpr int kOwn = Tile::kCols / Tile::kCluster;
  OCNET_UNROLL
  for (int line = 0; line < kChannels / Tile::kLine; ++line) {
    ptx::tensor_load_multicast(to.data + (line * Tile::kCols + rank * kOwn) * kLineBytes, map,
                               to.full, {line * Tile::kLine, token + rank * kOwn, image},
                               (1 << Tile::kCluster) - 1);
  }
}

// The producer: one thread.
template <typename Tile>
class HopperBwdProducer {
 public:
  OCNET_DEVICE explicit HopperBwdProducer(const HopperBwdParams<typename Tile::scalar_t>& params)
      : params_(params), rank_(device::cluster_rank()) {}

  OCNET_DEVICE void run(int worker) {
    constexpr int kTileRows = Tile::kCluster * Tile::kRows;
    HopperWalk walk(params_.plan, worker);
    HopperJob job;
    int step = 0;
    uint32_t job_parity = 0;
    while (walk.next(job)) {
      const HopperTask task(params_.plan, params_.work, walk, job, kTileRows, Tile::kCols);
      image_ = static_cast<int>(task.image);
      KeyWalk tiles = task.keys;
      for (int i = 0; i < task.steps; ++i, ++step) {
        const int token = tiles.tile * Tile::kCols;
        const uint32_t parity = buffers_.parity(step);
        if constexpr (Tile::kAsQuery) {
          fill(buffers_.values(), parity, Tile::kValueBytes);
          streamed<Tile::kValues>(buffers_.values(), params_.maps.values, token);
        }
        if (i == 0) own(task, job_parity);
        // A tile's numbers go with its tokens.
        const HopperBuffer tokens = buffers_.tokens(step);
        fill(tokens, parity, Tile::kTokenBytes + Tile::kNumberBytes);
        streamed<Tile::kChannels>(tokens, params_.maps.tokens, token);
        numbers(buffers_.numbers_start(step), tiles.tile, tokens.full);
        const HopperBuffer grads = buffers_.grads(step);
        fill(grads, parity, Tile::kValueBytes);
        streamed<Tile::kValues>(grads, params_.maps.grads, token);
        tiles.advance();
      }
      job_parity ^= 1;
    }
  }

 private:
  // Waits until a buffer may be filled, and says by how much it will be.
  OCNET_DEVICE static void fill(const HopperBuffer& buffer, uint32_t parity, int bytes) {
    ptx::mbarrier_wait(buffer.empty, parity ^ 1);
    ptx::mbarrier_arrive_expect(buffer.full, bytes);
  }
  OCNET_DEVICE void own(const HopperTask& task, uint32_t job_parity) const {
    const HopperBuffer to = buffers_.own();
    ptx::mbarrier_wait(to.empty, job_parity ^ 1);
    buffers_.task(job_parity) = task;
    ptx::mbarrier_arrive_expect(to.full,
                                Tile::kOwnBytes + (Tile::kAsQuery ? Tile::kNumberBytes : 0));
    const int tile = task.row_tile * Tile::kCluster + rank_;
    whole<Tile::kChannels>(to.data, params_.maps.own_tokens, to.full, tile);
    whole<Tile::kValues>(buffers_.own_values(), params_.maps.own_values, to.full, tile);
    if constexpr (Tile::kAsQuery) {
      whole<Tile::kValues>(buffers_.own_grads(), params_.maps.own_grads, to.full, tile);
      numbers(Tile::kOwnNumbers, tile, to.full);
    }
  }
  template <int kChannels>
  OCNET_DEVICE void whole(uint32_t to, const TensorMap& map, uint32_t full, int tile) const {
    OCNET_UNROLL
    for (int line = 0; line < kChannels / Tile::kLine; ++line) {
      ptx::tensor_load(to + line * Tile::kRows * kLineBytes, map, full,
                       {line * Tile::kLine, tile * Tile::kRows, image_});
    }
  }
  template <int kChannels>
  OCNET_DEVICE void streamed(const HopperBuffer& to, const TensorMap& map, int token) const {
    load_half<Tile, kChannels>(to, map, token, image_, rank_);
  }
  OCNET_DEVICE void numbers(int start, int tile, uint32_t full) const {
    ptx::tensor_load(buffers_.base + start, params_.maps.numbers, full, {0, tile, image_});
  }

  const HopperBwdParams<typename Tile::scalar_t>& params_;
  const HopperBwdBuffers<Tile> buffers_;
  const int rank_;
  int image_ = 0;
};

}  // namespace ocnet
