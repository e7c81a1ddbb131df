// SPDX-License-Identifier: MIT
// Shared memory of the Hopper backward kernel: its buffers, their mbarriers, and the producer that
// fills them.
#pragma once

#include <type_traits>

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

// Boxes of whole tiles and their numbers; of a block's half of a tile, and the numbers of all of
// it.
struct HopperBwdMaps {
  TensorMap own_tokens, own_values, own_grads, own_numbers;
  TensorMap tokens, values, grads, numbers;
};
struct NoMaps {};

// Where the sums of a gradient go: `to` is factor * them. With more value channels than a launch
// has room for, several launches add up the gradients of queries and keys, in fp32 until the last.
template <typename scalar_t>
struct HopperGradient {
  TokenMatrix<scalar_t> to;          // (N, tokens, channels); data is null where it is not wanted
  TokenMatrix<float> earlier, sums;  // of earlier launches; where they go for a later one
  float factor;
};

// What threads copy where there are groups; query and key, value and grad_out of whole maps.
template <typename scalar_t>
struct HopperBwdOperands {
  TokenMatrix<const scalar_t> own_tokens, own_values, own_grads;
  TokenMatrix<const scalar_t> tokens, values, grads;
  const RowNumbers* numbers;  // (N, pitch) of queries, in the order of the map
  int pitch;
};

template <typename scalar_t>
struct HopperBwdStage {
  HopperGradient<scalar_t> grad_tokens, grad_value;
  HopperBwdOperands<scalar_t> operands;
};

template <typename Tile>
struct HopperBwdParams {
  static constexpr bool kByThreads = Tile::kSource == HopperSource::kGroups;
  HopperBwdStage<typename Tile::scalar_t> stages[kByThreads ? kStageSlots : 1];
  std::conditional_t<kByThreads, NoMaps, HopperBwdMaps> maps;
  float scale_log2;
  HopperPlan plan;
  float* parts;  // see hopper_bwd_part
  WorkTable work;
};

template <typename Tile>
struct HopperBwdBuffers {
  uint32_t base;

  OCNET_DEVICE HopperBwdBuffers()
      : base(ptx::shared_address(device::shared_memory<unsigned char>())) {}
  OCNET_DEVICE HopperBuffer own() const { return at(Tile::kOwnTokens, 0); }
  // Of a step, which are used in turn.
  OCNET_DEVICE HopperBuffer tokens(int step) const {
    const int stage = step % Tile::kStages;
    return at(Tile::kTokens + stage * Tile::kTokenBytes, 1 + 3 * stage);
  }
  OCNET_DEVICE HopperBuffer grads(int step) const {
    const int stage = step % Tile::kStages;
    return at(Tile::kGrads + stage * Tile::kValueBytes, 2 + 3 * stage);
  }
  OCNET_DEVICE HopperBuffer values(int step) const {
    const int stage = step % Tile::kStages;
    return at(Tile::kValuesAt + stage * Tile::kValueBytes, 3 + 3 * stage);
  }
  OCNET_DEVICE static uint32_t parity(int step) { return step / Tile::kStages % 2; }
  OCNET_DEVICE uint32_t own_values() const { return base + Tile::kOwnValues; }
  OCNET_DEVICE uint32_t own_grads() const { return base + Tile::kOwnGrads; }
  OCNET_DEVICE static const RowNumbers* own_numbers() { return numbers_at(Tile::kOwnNumbers); }
  OCNET_DEVICE static const RowNumbers* numbers(int step) {
    return numbers_at(numbers_start(step));
  }
  OCNET_DEVICE static int numbers_start(int step) {
    return Tile::kNumbers + step % Tile::kStages * Tile::kColNumberBytes;
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
  constexpr int kWarps = 4;                                                 // of a consumer
  constexpr int kFillers = Tile::kSource == HopperSource::kGroups ? 4 : 1;  // warps, or a thread
  const auto prepare = [&](const HopperBuffer& buffer, int readers) {
    ptx::mbarrier_init(buffer.full, kFillers);
    ptx::mbarrier_init(buffer.empty, readers);
  };
  prepare(buffers.own(), 2 * kWarps);
  for (int stage = 0; stage < Tile::kStages; ++stage) {
    prepare(buffers.values(stage), Tile::kValueReaders * kWarps * Tile::kCluster);
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

// What all producers do: wait for room, fill it.
template <typename Tile, typename Copies>
OCNET_DEVICE void produce_bwd(const HopperBwdParams<Tile>& params, int worker, Copies& copies) {
  constexpr int kTileRows = Tile::kCluster * Tile::kRows;
  const HopperBwdBuffers<Tile> buffers;
  const auto room = [&](const HopperBuffer& buffer, uint32_t parity) {
    copies.hand_over();  // consumers may need it to make room
    ptx::mbarrier_wait(buffer.empty, parity ^ 1);
  };
  HopperWalk walk(params.plan, worker);
  HopperJob job;
  int step = 0;
  uint32_t job_parity = 0;
  while (walk.next(job)) {
    const HopperTask task(params.plan, params.work, walk, job, kTileRows, Tile::kCols);
    copies.begin(task, params.work.families[task.family]);
    KeyWalk tiles = task.keys;
    for (int i = 0; i < task.steps; ++i, ++step) {
      const uint32_t parity = buffers.parity(step);
      if constexpr (Tile::kAsQuery) {
        room(buffers.values(step), parity);
        copies.values(buffers.values(step), tiles.tile);
      }
      if (i == 0) {
        room(buffers.own(), job_parity);
        if (device::thread_index() == 0) buffers.task(job_parity) = task;
        copies.own(buffers, task.row_tile * Tile::kCluster);
      }
      room(buffers.tokens(step), parity);
      copies.tokens(buffers.tokens(step), buffers.numbers_start(step), tiles.tile);
      room(buffers.grads(step), parity);
      copies.grads(buffers.grads(step), tiles.tile);
      tiles.advance();
    }
    job_parity ^= 1;
  }
  copies.hand_over();
}

// Copies by the copy engine, issued by one thread.
template <typename Tile>
class EngineBwdCopies {
 public:
  static constexpr bool kByOneThread = true;

  OCNET_DEVICE explicit EngineBwdCopies(const HopperBwdParams<Tile>& params)
      : maps_(params.maps), rank_(device::cluster_rank()) {}
  OCNET_DEVICE void begin(const HopperTask& task, const Family&) {
    image_ = static_cast<int>(task.image);
  }
  OCNET_DEVICE void own(const HopperBwdBuffers<Tile>& buffers, int first_tile) const {
    const uint32_t full = buffers.own().full;
    const int tile = first_tile + rank_;
    ptx::mbarrier_arrive_expect(full,
                                Tile::kOwnBytes + (Tile::kAsQuery ? Tile::kOwnNumberBytes : 0));
    whole<Tile::kChannels>(buffers.own().data, maps_.own_tokens, full, tile);
    whole<Tile::kValues>(buffers.own_values(), maps_.own_values, full, tile);
    if constexpr (Tile::kAsQuery) {
      whole<Tile::kValues>(buffers.own_grads(), maps_.own_grads, full, tile);
      numbers(buffers.base + Tile::kOwnNumbers, maps_.own_numbers, full, tile * Tile::kRows);
    }
  }
  OCNET_DEVICE void values(const HopperBuffer& to, int tile) const {
    ptx::mbarrier_arrive_expect(to.full, Tile::kValueBytes);
    load_half<Tile, Tile::kValues>(to, maps_.values, tile * Tile::kCols, image_, rank_);
  }
  // A tile's numbers go with its tokens.
  OCNET_DEVICE void tokens(const HopperBuffer& to, int numbers_start, int tile) const {
    ptx::mbarrier_arrive_expect(to.full, Tile::kTokenBytes + Tile::kColNumberBytes);
    load_half<Tile, Tile::kChannels>(to, maps_.tokens, tile * Tile::kCols, image_, rank_);
    numbers(HopperBwdBuffers<Tile>().base + numbers_start, maps_.numbers, to.full,
            tile * Tile::kCols);
  }
  OCNET_DEVICE void grads(const HopperBuffer& to, int tile) const {
    ptx::mbarrier_arrive_expect(to.full, Tile::kValueBytes);
    load_half<Tile, Tile::kValues>(to, maps_.grads, tile * Tile::kCols, image_, rank_);
  }
  OCNET_DEVICE void hand_over() const {}

 private:
  template <int kChannels>
  OCNET_DEVICE void whole(uint32_t to, const TensorMap& map, uint32_t full, int tile) const {
    OCNET_UNROLL
    for (int line = 0; line < kChannels / Tile::kLine; ++line) {
      ptx::tensor_load(to + line * Tile::kRows * kLineBytes, map, full,
                       {line * Tile::kLine, tile * Tile::kRows, image_});
    }
  }
  OCNET_DEVICE void numbers(uint32_t to, const TensorMap& map, uint32_t full, int token) const {
    ptx::tensor_load(to, map, full, {2 * token, image_});
  }

  const HopperBwdMaps& maps_;
  const int rank_;
  int image_ = 0;
};

// Copies by the threads of the producer's warpgroup, of groups of pixels. One buffer at a time:
// consumers get it before anything waits for room.
template <typename Tile>
class ThreadBwdCopier : public GroupCopier {
  using scalar_t = typename Tile::scalar_t;

 public:
  OCNET_DEVICE explicit ThreadBwdCopier(const HopperBwdParams<Tile>& params)
      : stages_(params.stages) {}
  // Consumers get what was copied last, once it has come.
  OCNET_DEVICE void hand_over() {
    if (pending_ == 0) return;
    ptx::copy_async_commit();
    ptx::copy_async_wait<0>();
    pass_on();
  }

 protected:
  OCNET_DEVICE const HopperBwdOperands<scalar_t>& from() const {
    return stages_[family_->stage].operands;
  }
  template <int kRows, int kChannels>
  OCNET_DEVICE void own_rows(uint32_t to, const TokenMatrix<const scalar_t>& maps,
                             int first_token) const {
    copy_rows<kRows, kChannels>(to, rows_of(maps, family_->owned), first_token, 0);
  }
  template <int kChannels>
  OCNET_DEVICE void streamed(uint32_t to, const TokenMatrix<const scalar_t>& maps,
                             int first_token) const {
    copy_rows<Tile::kCols, kChannels>(to, rows_of(maps, family_->streamed), first_token, 0);
  }
  // Of `rows` tokens, at most a warpgroup's threads.
  OCNET_DEVICE void numbers(uint32_t to, int rows, int tokens, int first_token) const {
    constexpr int kBytes = static_cast<int>(sizeof(RowNumbers));
    const int thread = device::thread_index();
    if (thread >= rows) return;
    const int token = first_token + thread;
    const bool valid = token < tokens;
    const int64_t place = task_->origin + (valid ? family_->steps.map_token(token) : 0);
    ptx::copy_async<kBytes>(to + thread * kBytes,
                            from().numbers + task_->image * from().pitch + place,
                            valid ? kBytes : 0);
  }

 private:
  const HopperBwdStage<scalar_t>* const stages_;
};

template <typename Tile>
class ThreadBwdCopies : public ThreadBwdCopier<Tile> {
  static constexpr int kRows = Tile::kRows;

 public:
  using ThreadBwdCopier<Tile>::ThreadBwdCopier;

  OCNET_DEVICE void own(const HopperBwdBuffers<Tile>& buffers, int first_tile) {
    const auto& from = this->from();
    const int token = first_tile * kRows;
    this->template own_rows<kRows, Tile::kChannels>(buffers.own().data, from.own_tokens, token);
    this->template own_rows<kRows, Tile::kValues>(buffers.own_values(), from.own_values, token);
    if constexpr (Tile::kAsQuery) {
      this->template own_rows<kRows, Tile::kValues>(buffers.own_grads(), from.own_grads, token);
      this->numbers(buffers.base + Tile::kOwnNumbers, kRows, this->family_->owned, token);
    }
    this->pending_ = buffers.own().full;
  }
  OCNET_DEVICE void values(const HopperBuffer& to, int tile) {
    take<Tile::kValues>(to, this->from().values, tile);
  }
  OCNET_DEVICE void tokens(const HopperBuffer& to, int numbers_start, int tile) {
    this->numbers(HopperBwdBuffers<Tile>().base + numbers_start, Tile::kCols,
                  this->family_->streamed, tile * Tile::kCols);
    take<Tile::kChannels>(to, this->from().tokens, tile);
  }
  OCNET_DEVICE void grads(const HopperBuffer& to, int tile) {
    take<Tile::kValues>(to, this->from().grads, tile);
  }

 private:
  template <int kChannels>
  OCNET_DEVICE void take(const HopperBuffer& to,
                         const TokenMatrix<const typename Tile::scalar_t>& maps, int tile) {
    this->template streamed<kChannels>(to.data, maps, tile * Tile::kCols);
    this->pending_ = to.full;
  }
};

}  // namespace ocnet
