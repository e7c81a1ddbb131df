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
  OCNET_DEVICE HopperBuffer tokens() const { return at(Tile::kTokens, 1); }
  OCNET_DEVICE HopperBuffer values() const { return at(Tile::kValuesAt, 2); }
  OCNET_DEVICE HopperBuffer grads() const { return at(Tile::kGrads, 3); }
  OCNET_DEVICE uint32_t own_values() const { return base + Tile::kOwnValues; }
  OCNET_DEVICE uint32_t own_grads() const { return base + Tile::kOwnGrads; }
  OCNET_DEVICE static const RowNumbers* own_numbers() { return numbers_at(Tile::kOwnNumbers); }
  OCNET_DEVICE static const RowNumbers* numbers() { return numbers_at(Tile::kNumbers); }
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
  prepare(buffers.tokens(), 2 * kWarps * Tile::kCluster);
  prepare(buffers.values(), kWarps * Tile::kCluster);
  prepare(buffers.grads(), 2 * kWarps * Tile::kCluster);
  ptx::fence_mbarrier_init();
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
    uint32_t parity = 0;
    uint32_t job_parity = 0;
    while (walk.next(job)) {
      const HopperTask task(params_.plan, params_.work, walk, job, kTileRows, Tile::kCols);
      image_ = static_cast<int>(task.image);
      KeyWalk tiles = task.keys;
      for (int i = 0; i < task.steps; ++i, parity ^= 1) {
        const int token = tiles.tile * Tile::kCols;
        fill(buffers_.values(), parity, Tile::kValueBytes);
        streamed<Tile::kValues>(buffers_.values(), params_.maps.values, token);
        if (i == 0) own(task, job_parity);
        // A tile's numbers go with its tokens.
        fill(buffers_.tokens(), parity, Tile::kTokenBytes + Tile::kNumberBytes);
        streamed<Tile::kChannels>(buffers_.tokens(), params_.maps.tokens, token);
        numbers(Tile::kNumbers, tiles.tile, buffers_.tokens().full);
        fill(buffers_.grads(), parity, Tile::kValueBytes);
        streamed<Tile::kValues>(buffers_.grads(), params_.maps.grads, token);
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
                                Tile::kTokenBytes + 2 * Tile::kValueBytes + Tile::kNumberBytes);
    const int tile = task.row_tile * Tile::kCluster + rank_;
    whole<Tile::kChannels>(buffers_.base + Tile::kOwnTokens, params_.maps.own_tokens, to.full,
                           tile);
    whole<Tile::kValues>(buffers_.own_values(), params_.maps.own_values, to.full, tile);
    whole<Tile::kValues>(buffers_.own_grads(), params_.maps.own_grads, to.full, tile);
    numbers(Tile::kOwnNumbers, tile, to.full);
  }
  template <int kChannels>
  OCNET_DEVICE void whole(uint32_t to, const TensorMap& map, uint32_t full, int tile) const {
    OCNET_UNROLL
    for (int line = 0; line < kChannels / Tile::kLine; ++line) {
      ptx::tensor_load(to + line * Tile::kRows * kLineBytes, map, full,
                       {line * Tile::kLine, tile * Tile::kRows, image_});
    }
  }
  // This block's half of a tile, for all blocks of the cluster.
  template <int kChannels>
  OCNET_DEVICE void streamed(const HopperBuffer& to, const TensorMap& map, int token) const {
    constexpr int kOwn = Tile::kCols / Tile::kCluster;
    OCNET_UNROLL
    for (int line = 0; line < kChannels / Tile::kLine; ++line) {
      ptx::tensor_load_multicast(to.data + (line * Tile::kCols + rank_ * kOwn) * kLineBytes, map,
                                 to.full, {line * Tile::kLine, token + rank_ * kOwn, image_},
                                 (1 << Tile::kCluster) - 1);
    }
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
