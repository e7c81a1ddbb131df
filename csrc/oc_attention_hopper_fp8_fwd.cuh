// SPDX-License-Identifier: MIT
// Forward kernel of pixel-wise attention for Hopper in 8 bits (e4m3). No torch headers.
#pragma once

#include "oc_attention_hopper_fp8_softmax.cuh"
#include "oc_attention_hopper_fp8_tile.h"
#include "oc_attention_hopper_fwd.cuh"

namespace ocnet {

// What oc_attention_hopper_fp8_quantize.cuh has made of the operands.
template <typename out_t>
struct Float8FwdParams {
  TokenMatrix<out_t> out;  // (N, L, Ev)
  HopperMaps maps;
  TensorMap key_scales;
  TokenMatrix<const float> query_scales;  // (N, L, 1)
  TokenMatrix<const float> value_scales;  // (N, 1, Ev)
  HopperPlan plan;
  float* partial;  // of plan's parts, see hopper_part
  WorkTable work;
};

// Copies by the copy engine, issued by one thread; of keys, their scales and values each block of a
// cluster brings half, for both.
template <typename Tile>
class Float8Copies {
 public:
  static constexpr bool kByOneThread = true;

  OCNET_DEVICE explicit Float8Copies(const Float8FwdParams<typename Tile::out_t>& params)
      : params_(params), rank_(device::cluster_rank()) {
    ptx::tensor_prefetch(params.maps.query);
    ptx::tensor_prefetch(params.maps.key);
    ptx::tensor_prefetch(params.maps.value);
    ptx::tensor_prefetch(params.key_scales);
  }
  OCNET_DEVICE void begin(const HopperTask& task, const Family&) {
    image_ = static_cast<int>(task.image);
    first_channel_ = task.slice * Tile::kValues;
  }
  OCNET_DEVICE void query(const HopperBuffer& to, int first_token) const {
    ptx::mbarrier_arrive_expect(to.full, Tile::kQueryBytes);
    OCNET_UNROLL
    for (int line = 0; line < Tile::kChannels / kFloat8Line; ++line) {
      ptx::tensor_load(to.data + line * kHopperRows * kLineBytes, params_.maps.query, to.full,
                       {line * kFloat8Line, first_token + rank_ * kHopperRows, image_});
    }
  }
  OCNET_DEVICE void keys(const HopperBuffer& to, int first_token) const {
    constexpr int kOwn = Tile::kCols / Tile::kCluster;
    ptx::mbarrier_arrive_expect(to.full, Tile::kScaleStart + Tile::kScaleBytes);
    first_token += rank_ * kOwn;
    OCNET_UNROLL
    for (int line = 0; line < Tile::kChannels / kFloat8Line; ++line) {
      ptx::tensor_load_multicast(to.data + (line * Tile::kCols + rank_ * kOwn) * kLineBytes,
                                 params_.maps.key, to.full,
                                 {line * kFloat8Line, first_token, image_}, kBlocks);
    }
    ptx::tensor_load_multicast(
        to.data + Tile::kScaleStart + rank_ * kOwn * static_cast<int>(sizeof(float)),
        params_.key_scales, to.full, {first_token, image_}, kBlocks);
  }
  OCNET_DEVICE void values(const HopperBuffer& to, int first_token) const {
    constexpr int kOwn = Tile::kValues / Tile::kCluster;
    ptx::mbarrier_arrive_expect(to.full, Tile::kValueBytes);
    ptx::tensor_load_multicast(to.data + rank_ * kOwn * kLineBytes, params_.maps.value, to.full,
                               {first_token, first_channel_ + rank_ * kOwn, image_}, kBlocks);
  }
  OCNET_DEVICE void make_way() const {}
  OCNET_DEVICE void end() const {}

 private:
  static constexpr uint16_t kBlocks = (1 << Tile::kCluster) - 1;

  const Float8FwdParams<typename Tile::out_t>& params_;
  const int rank_;
  int image_ = 0;
  int first_channel_ = 0;
};

// The products of a warpgroup, of 32 channels or 32 keys each.
template <typename Tile>
struct Float8Products {
  static constexpr int kDepth = 32;
  static constexpr int kPerLine = kFloat8Line / kDepth;

  // Rows of lines, of which a tile has `rows` above one another.
  OCNET_DEVICE static uint64_t at(uint32_t tile, int rows, int product) {
    const uint32_t line = product / kPerLine * rows * kLineBytes;
    return ptx::tile_descriptor(tile + line + product % kPerLine * kDepth, 0, 8 * kLineBytes);
  }
  OCNET_DEVICE static void scores(float (&scores)[Tile::kCols / 8][4], uint32_t query,
                                  uint32_t keys) {
    OCNET_UNROLL
    for (int i = 0; i < Tile::kChannels / kDepth; ++i) {
      ptx::wgmma<Float8, Tile::kCols, ptx::Contiguous::kChannels, ptx::Contiguous::kChannels>(
          flat(scores), at(query, kHopperRows, i), at(keys, Tile::kCols, i), i > 0);
    }
    ptx::wgmma_commit();
  }
  // The sums of a step over one part of the values.
  OCNET_DEVICE static void weighted(float (&sums)[Tile::kPart / 8][4],
                                    const uint32_t (&weights)[Tile::kCols / kDepth][4],
                                    uint32_t values) {
    OCNET_UNROLL
    for (int i = 0; i < Tile::kCols / kDepth; ++i) {
      ptx::wgmma<Float8, Tile::kPart, ptx::Contiguous::kChannels>(
          flat(sums), weights[i], at(values, Tile::kValues, i), i > 0);
    }
    ptx::wgmma_commit();
  }
  // Keys lie as float8_key says.
  OCNET_DEVICE static void pack(uint32_t (&weights)[Tile::kCols / kDepth][4],
                                const float (&scores)[Tile::kCols / 8][4]) {
    OCNET_UNROLL
    for (int i = 0; i < Tile::kCols / kDepth; ++i) {
      OCNET_UNROLL
      for (int word = 0; word < 4; ++word) {
        const int row = word % 2 * 2;
        const float (&near)[4] = scores[4 * i + word / 2 * 2];
        const float (&far)[4] = scores[4 * i + word / 2 * 2 + 1];
        weights[i][word] = ptx::pack_four(near[row], near[row + 1], far[row], far[row + 1]);
      }
    }
  }
};

// Consumer warpgroups: 64 rows of queries each.
//
// Tensor cores are known to keep about 14 bits of sums of e4m3 products, and to cut the rest, which
// the emulator does not. In a model of that (tests/ops/test_float8_sums.py) sums over values of one
// sign are off by 1e-2 for 2304 keys, and by 7e-2 for 9216, more than all else. So tensor cores sum
// up one step at a time, 128 keys, and fp32 registers the steps (as DeepSeek-V3 does, arXiv
// 2412.19437, section 3.3): 8e-4. Rescaling what was summed before comes with that for nothing.
// There are no registers for the scores of the next step beside these sums, so a warpgroup does one
// thing at a time, and the tensor cores work for the other one meanwhile. Scores are sums of one
// step in any case; theirs stay at 14 bits, in the same model no loss against the rounding of their
// factors.
template <typename Tile>
class Float8Consumer {
  using out_t = typename Tile::out_t;
  using Products = Float8Products<Tile>;
  using Sums = float[Tile::kValues / 8][4];
  static constexpr int kCols = Tile::kCols;
  static constexpr int kTileRows = Tile::kCluster * kHopperRows;

 public:
  OCNET_DEVICE explicit Float8Consumer(const Float8FwdParams<out_t>& params)
      : params_(params), consumer_(device::shuffle(device::warp_index() / 4, 0) - 1) {}

  OCNET_DEVICE void run(int worker) {
    HopperWalk walk(params_.plan, worker);
    HopperJob job;
    while (walk.next(job)) {
      Float8Softmax softmax;
      Sums sums;
      attend(softmax, sums);
      store(softmax.finish(), sums);
      job_parity_ ^= 1;
    }
  }

 private:
  OCNET_DEVICE void attend(Float8Softmax& softmax, Sums& sums) {
    clear_sums(sums);
    const HopperBuffer query = buffers_.query();
    ptx::mbarrier_wait(query.full, job_parity_);
    const HopperTask& task = buffers_.task(job_parity_);
    KeyWalk tiles = task.keys;
    const int last_keys = params_.work.families[0].streamed - (tiles.tiles - 1) * kCols;
    float row_scales[2];
    load_row_scales(row_scales, task);
    const uint32_t first_row = query.data + consumer_ * kHopperWarpgroupRows * kLineBytes;
    for (const int end = step_ + task.steps; step_ < end; ++step_) {
      // Descriptors are made anew in every step: kept, they would spill.
      const uint32_t rows = ptx::opaque(first_row);
      uint32_t weights[kCols / Products::kDepth][4];
      float factor[2];
      weigh(softmax, factor, weights, rows, row_scales, tiles.is_last() ? last_keys : kCols);
      accumulate(sums, weights, factor);
      tiles.advance();
    }
    release<1>(query);
  }

  // The weights of a step, from its keys.
  OCNET_DEVICE void weigh(Float8Softmax& softmax, float (&factor)[2],
                          uint32_t (&weights)[kCols / Products::kDepth][4], uint32_t rows,
                          const float (&row_scales)[2], int valid) const {
    float scores[kCols / 8][4];
    const RingStep ring(step_);
    const HopperBuffer keys = buffers_.keys(ring.stage);
    ptx::mbarrier_wait(keys.full, ring.parity);
    ptx::hold_registers(flat(scores));
    ptx::wgmma_fence();
    Products::scores(scores, rows, keys.data);
    ptx::wgmma_wait<0>();
    ptx::hold_registers(flat(scores));
    const unsigned char* const shared = device::shared_memory<unsigned char>();
    const int scales = Tile::kKeyStart + ring.stage * Tile::kKeyBytes + Tile::kScaleStart;
    softmax.template weigh<kCols>(factor, scores, row_scales,
                                  reinterpret_cast<const float*>(shared + scales), valid);
    release<Tile::kCluster>(keys);
    Products::pack(weights, scores);
    softmax.count(weights);
  }

  // sums = factor sums + weights values.
  OCNET_DEVICE void accumulate(Sums& sums, const uint32_t (&weights)[kCols / Products::kDepth][4],
                               const float (&factor)[2]) const {
    const RingStep ring(step_);
    const HopperBuffer values = buffers_.values(ring.stage);
    ptx::mbarrier_wait(values.full, ring.parity);
    OCNET_UNROLL
    for (int part = 0; part < Tile::kValues / Tile::kPart; ++part) {
      float added[Tile::kPart / 8][4];
      ptx::hold_registers(flat(added));
      ptx::wgmma_fence();
      Products::weighted(added, weights, values.data + part * Tile::kPart * kLineBytes);
      ptx::wgmma_wait<0>();
      ptx::hold_registers(flat(added));
      OCNET_UNROLL
      for (int n = 0; n < Tile::kPart / 8; ++n) {
        OCNET_UNROLL
        for (int i = 0; i < 4; ++i) {
          float& sum = sums[part * (Tile::kPart / 8) + n][i];
          sum = std::fma(sum, factor[i / 2], added[n][i]);
        }
      }
    }
    release<Tile::kCluster>(values);
  }

  // This warp's first row in the tile of its cluster.
  OCNET_DEVICE static int own_row() {
    return device::cluster_rank() * kHopperRows + (device::warp_index() - 4) * kMmaRows;
  }
  OCNET_DEVICE void load_row_scales(float (&scales)[2], const HopperTask& task) const {
    const auto image = params_.query_scales.image(task.image);
    const int token = task.row_tile * kTileRows + own_row() + device::lane_index() / 4;
    OCNET_UNROLL
    for (int r = 0; r < 2; ++r) {
      scales[r] = token + 8 * r < image.tokens ? *image.at(token + 8 * r, 0) : 0.0f;
    }
  }

  OCNET_DEVICE void store(const SoftmaxRows& softmax, Sums& sums) const {
    const HopperTask& task = buffers_.task(job_parity_);
    const int first_channel = task.slice * Tile::kValues;
    scale_values(sums, task.image, first_channel);
    if (task.part >= 0) {
      store_partial(hopper_part(params_.partial, kTileRows, Tile::kValues, task.part), softmax,
                    sums, own_row(), 0, true);
      return;
    }
    store_results(params_.out.image(task.image), TokenMatrix<out_t>{}, TokenMatrix<float>{},
                  softmax, sums, task.row_tile * kTileRows + own_row(), first_channel, false);
  }
  OCNET_DEVICE void scale_values(Sums& sums, int64_t image, int first_channel) const {
    const auto scales = params_.value_scales.image(image);
    const int own_channel = first_channel + device::lane_index() % 4 * 2;
    OCNET_UNROLL
    for (int n = 0; n < Tile::kValues / 8; ++n) {
      OCNET_UNROLL
      for (int i = 0; i < 2; ++i) {
        const int channel = own_channel + n * 8 + i;
        const float scale = channel < scales.channels ? *scales.at(0, channel) : 0.0f;
        sums[n][i] *= scale;
        sums[n][i + 2] *= scale;
      }
    }
  }

  const Float8FwdParams<out_t>& params_;
  const HopperBuffers<Tile> buffers_;
  const int consumer_;
  int step_ = 0;
  uint32_t job_parity_ = 0;
};

// out = softmax(scale * query key^T) value of operands in 8 bits, with their scales. Blocks, warps
// and work as in oc_attention_hopper_fwd_kernel.
template <typename Tile>
OCNET_KERNEL(kHopperThreads, 1)
oc_attention_hopper_fp8_fwd_kernel(
    OCNET_GRID_CONSTANT Float8FwdParams<typename Tile::out_t> params) {
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
  run_hopper_block<Tile, Float8Copies<Tile>, Float8Consumer<Tile>>(params);
#endif
}

}  // namespace ocnet
