// SPDX-License-Identifier: MIT
// Gradient of the queries, where keys are others, on Hopper (wgmma and the copy engine, sm_90a). No
// torch headers.
//
//   G = P (dO_I V_J^T - delta_I)      dQ_I = scale * sum over J of G K_J
// In the manner of the forward pass: two consumer warpgroups of 64 rows of queries each, past which
// keys and values stream.
#pragma once

#include "oc_attention_hopper_bwd_consumer.cuh"

namespace ocnet {

template <typename scalar_t_, int kChannels_, int kValues_, int kCols_, HopperSource kSource_>
struct HopperQueryTile : HopperSharing<kSource_> {
  using scalar_t = scalar_t_;
  static constexpr int kChannels = kChannels_;
  static constexpr int kValues = kValues_;
  static constexpr int kCols = kCols_;
  static constexpr int kRows = kHopperRows;
  static constexpr int kConsumers = kHopperConsumers;
  static constexpr int kStages = kHopperStages;

  static constexpr int kBytes = static_cast<int>(sizeof(scalar_t));
  static constexpr int kLine = kLineBytes / kBytes;
  static constexpr int kNumberBytes = kHopperRows * static_cast<int>(2 * sizeof(float));
  // Q, dO and their numbers.
  static constexpr int kOwnGrads = kHopperRows * kChannels * kBytes;
  static constexpr int kOwnNumbers = kOwnGrads + kHopperRows * kValues * kBytes;
  static constexpr int kQueryBytes = kOwnNumbers + kNumberBytes;
  static constexpr int kKeyBytes = kCols * kChannels * kBytes;
  static constexpr int kValueBytes = kCols * kValues * kBytes;
  static constexpr int kKeyStart = kQueryBytes;
  static constexpr int kValueStart = kKeyStart + kHopperStages * kKeyBytes;
  static constexpr int kBarrierStart = kValueStart + kHopperStages * kValueBytes;
  static constexpr int kTaskStart = kBarrierStart + (2 + 4 * kHopperStages) * 8;
  static constexpr int kSharedBytes = kTaskStart + 2 * kHopperTaskBytes;

  static_assert(kQueryBytes % 1024 == 0 && kKeyBytes % 2048 == 0 && kCols % 16 == 0,
                "every box starts with an atom of the swizzle");
  static_assert(kSharedBytes <= 232448, "what a block may have on sm_90");
};

template <typename Tile>
class EngineQueryCopies {
 public:
  static constexpr bool kByOneThread = true;

  OCNET_DEVICE explicit EngineQueryCopies(const HopperBwdParams<Tile>& params)
      : maps_(params.maps), rank_(device::cluster_rank()) {}
  OCNET_DEVICE void begin(const HopperTask& task, const Family&) {
    image_ = static_cast<int>(task.image);
  }
  OCNET_DEVICE void query(const HopperBuffer& to, int first_token) const {
    const int token = first_token + rank_ * kHopperRows;
    ptx::mbarrier_arrive_expect(to.full, Tile::kQueryBytes);
    whole<Tile::kChannels>(to.data, maps_.own_tokens, to.full, token);
    whole<Tile::kValues>(to.data + Tile::kOwnGrads, maps_.own_grads, to.full, token);
    ptx::tensor_load(to.data + Tile::kOwnNumbers, maps_.own_numbers, to.full, {2 * token, image_});
  }
  OCNET_DEVICE void keys(const HopperBuffer& to, int first_token) const {
    ptx::mbarrier_arrive_expect(to.full, Tile::kKeyBytes);
    load_half<Tile, Tile::kChannels>(to, maps_.tokens, first_token, image_, rank_);
  }
  OCNET_DEVICE void values(const HopperBuffer& to, int first_token) const {
    ptx::mbarrier_arrive_expect(to.full, Tile::kValueBytes);
    load_half<Tile, Tile::kValues>(to, maps_.values, first_token, image_, rank_);
  }
  OCNET_DEVICE void make_way() const {}
  OCNET_DEVICE void end() const {}

 private:
  template <int kChannels>
  OCNET_DEVICE void whole(uint32_t to, const TensorMap& map, uint32_t full, int token) const {
    OCNET_UNROLL
    for (int line = 0; line < kChannels / Tile::kLine; ++line) {
      ptx::tensor_load(to + line * kHopperRows * kLineBytes, map, full,
                       {line * Tile::kLine, token, image_});
    }
  }
  const HopperBwdMaps& maps_;
  const int rank_;
  int image_ = 0;
};

template <typename Tile>
class ThreadQueryCopies : public ThreadBwdCopier<Tile> {
  static constexpr int kRows = kHopperRows;

 public:
  using ThreadBwdCopier<Tile>::ThreadBwdCopier;

  OCNET_DEVICE void query(const HopperBuffer& to, int token) {
    const auto& from = this->from();
    this->template own_rows<kRows, Tile::kChannels>(to.data, from.own_tokens, token);
    this->template own_rows<kRows, Tile::kValues>(to.data + Tile::kOwnGrads, from.own_grads, token);
    this->numbers(to.data + Tile::kOwnNumbers, kRows, this->family_->owned, token);
    this->pending_ = to.full;
  }
  OCNET_DEVICE void keys(const HopperBuffer& to, int token) {
    this->template streamed<Tile::kChannels>(to.data, this->from().tokens, token);
    this->pending_ = to.full;
  }
  OCNET_DEVICE void values(const HopperBuffer& to, int token) {
    this->template streamed<Tile::kValues>(to.data, this->from().values, token);
    this->pending_ = to.full;
  }
  OCNET_DEVICE void make_way() { this->hand_over(); }
  OCNET_DEVICE void end() { this->hand_over(); }
};

template <typename Tile>
class HopperQueries {
  using scalar_t = typename Tile::scalar_t;
  using Products = HopperBwdProducts<Tile>;
  static constexpr int kCols = Tile::kCols;
  static constexpr int kTileRows = Tile::kCluster * kHopperRows;

 public:
  OCNET_DEVICE explicit HopperQueries(const HopperBwdParams<Tile>& params)
      : params_(params), consumer_(device::shuffle(device::warp_index() / 4, 0) - 1) {}

  OCNET_DEVICE void run(int worker) {
    HopperWalk walk(params_.plan, worker);
    HopperJob job;
    while (walk.next(job)) {
      float sums[Tile::kChannels / 8][4];
      sum_up(sums);
      const HopperTask& task = buffers_.task(job_parity_);
      const Family& family = params_.work.families[task.family];
      const int rank = Tile::kCluster > 1 ? device::cluster_rank() : 0;
      const int row = rank * kHopperRows + consumer_ * kHopperWarpgroupRows +
                      device::warp_index() % 4 * kMmaRows;
      const int stage = HopperBwdParams<Tile>::kByThreads ? family.stage : 0;
      store_gradient(params_.stages[stage].grad_tokens, family, task, kTileRows,
                     hopper_bwd_part(params_.parts, kTileRows, Tile::kChannels, task.part), sums,
                     row, 0);
      job_parity_ ^= 1;
    }
  }

 private:
  OCNET_DEVICE void sum_up(float (&sums)[Tile::kChannels / 8][4]) {
    const HopperBuffer query = buffers_.query();
    float scores[kCols / 8][4];
    float products[kCols / 8][4];  // dO_I V_J^T
    uint32_t weights[kCols / 16][4];
    clear_sums(sums);
    ptx::mbarrier_wait(query.full, job_parity_);
    const HopperTask& task = buffers_.task(job_parity_);
    KeyWalk tiles = task.keys;
    const int keys_in_all = params_.work.families[task.family].streamed;
    const auto valid = [&] {
      return tiles.is_last() ? keys_in_all - (tiles.tiles - 1) * kCols : kCols;
    };
    const int end = step_ + task.steps;
    load_own_numbers();
    const uint32_t first_row = query.data + consumer_ * kHopperWarpgroupRows * kLineBytes;

    ptx::mbarrier_wait(buffers_.keys(RingStep(step_).stage).full, RingStep(step_).parity);
    ptx::mbarrier_wait(buffers_.values(RingStep(step_).stage).full, RingStep(step_).parity);
    start_products(scores, products, first_row);
    ptx::wgmma_wait<0>();
    end_products(scores, products);
    weigh(scores, products, valid());
    pack_weights<scalar_t>(weights, scores);
    while (++step_ < end) {
      const RingStep ring(step_);
      const uint32_t rows = ptx::opaque(first_row);
      tiles.advance();
      ptx::mbarrier_wait(buffers_.keys(ring.stage).full, ring.parity);
      ptx::mbarrier_wait(buffers_.values(ring.stage).full, ring.parity);
      ptx::hold_registers(flat(sums));
      start_products(scores, products, rows);
      const HopperBuffer before = buffers_.keys(RingStep(step_ - 1).stage);
      Products::template accumulate<Tile::kChannels>(sums, weights, before.data);
      ptx::wgmma_wait<1>();
      end_products(scores, products);
      weigh(scores, products, valid());
      ptx::wgmma_wait<0>();
      ptx::hold_registers(flat(sums));
      release<Tile::kCluster>(before);
      pack_weights<scalar_t>(weights, scores);
    }
    release<1>(query);
    const HopperBuffer last = buffers_.keys(RingStep(end - 1).stage);
    ptx::hold_registers(flat(sums));
    ptx::wgmma_fence();
    Products::template accumulate<Tile::kChannels>(sums, weights, last.data);
    ptx::wgmma_wait<0>();
    ptx::hold_registers(flat(sums));
    release<Tile::kCluster>(last);
  }

  // Both products of the step, from `row` on.
  OCNET_DEVICE void start_products(float (&scores)[kCols / 8][4], float (&products)[kCols / 8][4],
                                   uint32_t row) const {
    const int stage = RingStep(step_).stage;
    ptx::hold_registers(flat(scores));
    ptx::hold_registers(flat(products));
    ptx::wgmma_fence();
    Products::template scores<Tile::kChannels, kHopperRows>(scores, row, buffers_.keys(stage).data);
    Products::template scores<Tile::kValues, kHopperRows>(products, row + Tile::kOwnGrads,
                                                          buffers_.values(stage).data);
  }
  // Once they are done.
  OCNET_DEVICE void end_products(float (&scores)[kCols / 8][4],
                                 float (&products)[kCols / 8][4]) const {
    ptx::hold_registers(flat(scores));
    ptx::hold_registers(flat(products));
    release<Tile::kCluster>(buffers_.values(RingStep(step_).stage));
  }

  OCNET_DEVICE void load_own_numbers() {
    const auto* const numbers = reinterpret_cast<const RowNumbers*>(
        device::shared_memory<unsigned char>() + Tile::kOwnNumbers);
    const int row = consumer_ * kHopperWarpgroupRows + device::warp_index() % 4 * kMmaRows +
                    device::lane_index() / 4;
    OCNET_UNROLL
    for (int r = 0; r < 2; ++r) own_[r] = numbers[row + 8 * r];
  }

  // Scores become G.
  OCNET_DEVICE void weigh(float (&scores)[kCols / 8][4], const float (&products)[kCols / 8][4],
                          int valid) const {
    OCNET_UNROLL
    for (int n = 0; n < kCols / 8; ++n) {
      OCNET_UNROLL
      for (int i = 0; i < 4; ++i) {
        const RowNumbers& own = own_[i / 2];
        const float power = std::fma(scores[n][i], params_.scale_log2, -own.lse);
        scores[n][i] = ptx::exp2_approx(power) * (products[n][i] - own.delta);
      }
    }
    if (valid < kCols) clear_columns(scores, valid);
  }

  const HopperBwdParams<Tile>& params_;
  const HopperBuffers<Tile> buffers_;
  const int consumer_;
  RowNumbers own_[2];
  int step_ = 0;
  uint32_t job_parity_ = 0;
};

// grad_query of separate keys. Grid: plan.workers clusters of blocks, which walk over their work
// (oc_attention_hopper_work.h).
template <typename Tile>
OCNET_KERNEL(kHopperThreads, 1)
oc_attention_hopper_bwd_query_kernel(OCNET_GRID_CONSTANT HopperBwdParams<Tile> params) {
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using Copies = std::conditional_t<HopperBwdParams<Tile>::kByThreads, ThreadQueryCopies<Tile>,
                                    EngineQueryCopies<Tile>>;
  run_hopper_block<Tile, Copies, HopperQueries<Tile>>(params);
#endif
}

}  // namespace ocnet
