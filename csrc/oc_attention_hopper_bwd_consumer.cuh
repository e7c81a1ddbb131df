// SPDX-License-Identifier: MIT
// What the backward kernels on Hopper's own instructions share: the products of a warpgroup, what a
// consumer does besides them, and the roles of a block's warpgroups. No torch headers.
#pragma once

#include <type_traits>

#include "common/launch.cuh"
#include "common/mma_store.cuh"
#include "common/ptx/address.cuh"
#include "common/ptx/arithmetic.cuh"
#include "common/ptx/registers.cuh"
#include "common/ptx/wgmma.cuh"
#include "oc_attention_bwd_weights.cuh"
#include "oc_attention_hopper_bwd_combine.cuh"
#include "oc_attention_hopper_bwd_copies.cuh"
#include "oc_attention_hopper_consumer.cuh"

namespace ocnet {

// The tokens of a task that its block owns.
template <typename T>
OCNET_DEVICE GroupMatrix<T> group_rows(const TokenMatrix<T>& maps, const HopperTask& task,
                                       const Family& family) {
  return {span_of(maps, task, family, family.owned), family.steps};
}
// Adds what is in 16 rows to a warp's sums.
template <int kColumns>
OCNET_DEVICE void add_rows(float (&sums)[kColumns][4], const GroupMatrix<float>& from,
                           int first_row) {
  const int lane = device::lane_index();
  OCNET_UNROLL
  for (int half = 0; half < 2; ++half) {
    const int row = first_row + lane / 4 + half * 8;
    if (row >= from.tokens) continue;
    const float* const numbers = from.at(row, 0);
    OCNET_UNROLL
    for (int n = 0; n < kColumns; ++n) {
      OCNET_UNROLL
      for (int i = 0; i < 2; ++i) {
        const int channel = n * 8 + lane % 4 * 2 + i;
        if (channel < from.channels) sums[n][2 * half + i] += numbers[channel];
      }
    }
  }
}

// The products of a warpgroup, of 64 rows and a tile of streamed rows. Tiles have channels side by
// side; a tile of tokens is read along its channels by one product, along its tokens by another.
template <typename Tile>
struct HopperBwdProducts {
  using scalar_t = typename Tile::scalar_t;
  static constexpr int kDepth = 16;
  static constexpr int kPerLine = Tile::kLine / kDepth;
  static constexpr uint32_t kAtom = 8 * kLineBytes;
  static constexpr ptx::Contiguous kChannels = ptx::Contiguous::kChannels;

  // Of 16 channels of a tile of so many tokens.
  OCNET_DEVICE static uint64_t rows_at(uint32_t tile, int tokens, int product) {
    const uint32_t line = product / kPerLine * tokens * kLineBytes;
    return ptx::tile_descriptor(tile + line + product % kPerLine * (kDepth * sizeof(scalar_t)), 0,
                                kAtom);
  }
  // d = a b^T over kCount channels, of 64 rows of a tile of kTokens. Commits.
  template <int kCount, int kTokens = kHopperBwdRows>
  OCNET_DEVICE static void scores(float (&d)[Tile::kCols / 8][4], uint32_t a, uint32_t b) {
    OCNET_UNROLL
    for (int i = 0; i < kCount / kDepth; ++i) {
      ptx::wgmma<scalar_t, Tile::kCols, kChannels, kChannels>(flat(d), rows_at(a, kTokens, i),
                                                              rows_at(b, Tile::kCols, i), i > 0);
    }
    ptx::wgmma_commit();
  }
  // sums += weights tile. Commits.
  template <int kColumns>
  OCNET_DEVICE static void accumulate(float (&sums)[kColumns / 8][4],
                                      const uint32_t (&weights)[Tile::kCols / kDepth][4],
                                      uint32_t tile) {
    OCNET_UNROLL
    for (int i = 0; i < Tile::kCols / kDepth; ++i) {
      const uint64_t rows =
          ptx::tile_descriptor(tile + i * kDepth * kLineBytes, Tile::kCols * kLineBytes, kAtom);
      ptx::wgmma<scalar_t, kColumns, ptx::Contiguous::kTokens>(flat(sums), weights[i], rows, true);
    }
    ptx::wgmma_commit();
  }
};

// Writes a warp's sums of a gradient, from `row` of the cluster's tile on, or to the part of them
// that the task says.
template <typename scalar_t, int kColumns>
OCNET_DEVICE void store_gradient(const HopperGradient<scalar_t>& gradient, const Family& family,
                                 const HopperTask& task, int tile_rows,
                                 const TokenMatrix<float>& part, float (&sums)[kColumns][4],
                                 int row, int part_channel) {
  if (task.part >= 0) {
    store_rows(sums, part, row, part_channel);
    return;
  }
  const int first_row = task.row_tile * tile_rows + row;
  const auto rows_of = [&](const auto& maps) { return group_rows(maps, task, family); };
  if (gradient.earlier.data != nullptr) add_rows(sums, rows_of(gradient.earlier), first_row);
  if (gradient.sums.data != nullptr) {
    store_rows(sums, rows_of(gradient.sums), first_row, 0);
  } else if (gradient.to.data != nullptr) {
    OCNET_UNROLL
    for (int n = 0; n < kColumns; ++n) {
      OCNET_UNROLL
      for (int i = 0; i < 4; ++i) sums[n][i] *= gradient.factor;
    }
    store_rows(sums, rows_of(gradient.to), first_row, 0);
  }
}

// Columns from `valid` on are no tokens.
template <int kColumns>
OCNET_DEVICE void clear_columns(float (&scores)[kColumns][4], int valid) {
  OCNET_UNROLL
  for (int n = 0; n < kColumns; ++n) {
    OCNET_UNROLL
    for (int i = 0; i < 4; ++i) {
      if (n * 8 + device::lane_index() % 4 * 2 + i % 2 >= valid) scores[n][i] = 0;
    }
  }
}

// What both consumers have: they walk over the same jobs and steps.
template <typename Tile>
struct HopperBwdConsumer {
  using scalar_t = typename Tile::scalar_t;
  using Products = HopperBwdProducts<Tile>;
  using Params = HopperBwdParams<Tile>;
  static constexpr int kCols = Tile::kCols;
  static constexpr int kTileRows = Tile::kCluster * Tile::kRows;

  const Params& params;
  const HopperBwdBuffers<Tile> buffers;
  const int thread;  // of the warpgroup
  RowNumbers own_numbers[2];
  int step = 0;
  uint32_t job_parity = 0;

  OCNET_DEVICE explicit HopperBwdConsumer(const Params& all)
      : params(all), thread(device::thread_index() % device::kWarpgroupThreads) {}

  // The first of this warp's rows in the block's tile.
  OCNET_DEVICE static int warp_row() { return (device::warp_index() - 4) * kMmaRows % Tile::kRows; }

  // Until a buffer holds what belongs to a step.
  OCNET_DEVICE void wait(const HopperBuffer& buffer, int of_step) const {
    ptx::mbarrier_wait(buffer.full, buffers.parity(of_step));
  }
  // The job that begins, once the block's own rows are here.
  OCNET_DEVICE const HopperTask& begin() const {
    ptx::mbarrier_wait(buffers.own().full, job_parity);
    return buffers.task(job_parity);
  }
  // How many columns of a tile are tokens.
  OCNET_DEVICE int valid(const KeyWalk& tiles, const HopperTask& task) const {
    const int tokens = params.work.families[task.family].streamed;
    return tiles.is_last() ? tokens - (tiles.tiles - 1) * kCols : kCols;
  }
  // The scores of the tile, or weights, as the consumers hand them over: each thread finds what it
  // wrote.
  template <typename T = bwd::Quad>
  OCNET_DEVICE T& handed(int n) const {
    auto* const all = reinterpret_cast<T*>(buffers.bytes() + Tile::kScores);
    return all[n * device::kWarpgroupThreads + thread];
  }
  // Of the two rows that a thread has sums of.
  OCNET_DEVICE void load_own_numbers() {
    const RowNumbers* const numbers = buffers.own_numbers();
    const int row = warp_row() + device::lane_index() / 4;
    OCNET_UNROLL
    for (int r = 0; r < 2; ++r) own_numbers[r] = numbers[row + 8 * r];
  }
  OCNET_DEVICE static int column(int n) { return n * 8 + device::lane_index() % 4 * 2; }

  // A gradient of the task's stage.
  template <int kColumns>
  OCNET_DEVICE void store(HopperGradient<scalar_t> HopperBwdStage<scalar_t>::* gradient,
                          float (&sums)[kColumns][4], int part_channel) const {
    const HopperTask& task = buffers.task(job_parity);
    const Family& family = params.work.families[task.family];
    const int rank = Tile::kCluster > 1 ? device::cluster_rank() : 0;
    const int row = rank * Tile::kRows + warp_row();
    const int stage = HopperBwdParams<Tile>::kByThreads ? family.stage : 0;
    store_gradient(
        params.stages[stage].*gradient, family, task, kTileRows,
        hopper_bwd_part(params.parts, kTileRows, Tile::kChannels + Tile::kValues, task.part), sums,
        row, part_channel);
  }
};

// What a block of the kernels here does: a producer brings tiles, and two consumers,
// consume(which, worker), make gradients of them.
template <typename Tile, typename Consume>
OCNET_DEVICE void run_hopper_bwd_block(const HopperBwdParams<Tile>& params,
                                       const Consume& consume) {
  using Copies = std::conditional_t<HopperBwdParams<Tile>::kByThreads, ThreadBwdCopies<Tile>,
                                    EngineBwdCopies<Tile>>;
  const int worker = static_cast<int>(device::block_index() / Tile::kCluster);
  run_warpgroups<Tile>(
      HopperBwdBuffers<Tile>(),
      [&] {
        if (!Copies::kByOneThread || device::thread_index() == 0) {
          Copies copies(params);
          produce_bwd(params, worker, copies);
        }
      },
      [&](int consumer) { consume(consumer, worker); });
}

}  // namespace ocnet
