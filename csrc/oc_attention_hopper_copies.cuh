// SPDX-License-Identifier: MIT
// Shared memory of the Hopper forward kernel: its buffers, their mbarriers, and the producers that
// fill them.
#pragma once

#include "common/cluster.cuh"
#include "common/groups.h"
#include "common/ptx/cp_async.cuh"
#include "common/ptx/descriptor.h"
#include "common/ptx/fence.cuh"
#include "common/ptx/mbarrier.cuh"
#include "common/ptx/tma.cuh"
#include "oc_attention_fwd_stage.cuh"
#include "oc_attention_hopper_tile.h"
#include "oc_attention_hopper_work.h"

namespace ocnet {
struct HopperMaps {
  TensorMap query, key, value;
};

template <typename scalar_t>
struct HopperFwdParams {
  FwdStage<scalar_t> stages[kStageSlots];
  HopperMaps maps;  // of the only stage, unless threads copy
  float scale_log2;
  HopperPlan plan;
  float* partial;  // of plan's parts, see hopper_part
  WorkTable work;
};

// A buffer, and the mbarriers that tell when it is full, and when it may be filled again.
struct HopperBuffer {
  uint32_t data, full, empty;
};

template <typename Tile>
struct HopperBuffers {
  uint32_t base;

  OCNET_DEVICE HopperBuffers()
      : base(ptx::shared_address(device::shared_memory<unsigned char>())) {}
  OCNET_DEVICE HopperBuffer query() const { return at(0, 0); }
  OCNET_DEVICE HopperBuffer keys(int stage) const {
    return at(Tile::kKeyStart + stage * Tile::kKeyBytes, 1 + 2 * stage);
  }
  OCNET_DEVICE HopperBuffer values(int stage) const {
    return at(Tile::kValueStart + stage * Tile::kValueBytes, 2 + 2 * stage);
  }
  // What the producer tells consumers of a job: full and empty as its queries are. They read it
  // until they let go of the queries of the next job, so there are two.
  OCNET_DEVICE static HopperTask& task(uint32_t job_parity) {
    static_assert(sizeof(HopperTask) <= kHopperTaskBytes, "the layout has room for tasks");
    return *reinterpret_cast<HopperTask*>(device::shared_memory<unsigned char>() +
                                          Tile::kTaskStart + job_parity * kHopperTaskBytes);
  }

 private:
  OCNET_DEVICE HopperBuffer at(int start, int barriers) const {
    const uint32_t full = base + Tile::kBarrierStart + barriers * 16;
    return {base + start, full, full + 8};
  }
};

// By one thread, before the barrier that lets others use them.
template <typename Tile>
OCNET_DEVICE void prepare_barriers(const HopperBuffers<Tile>& buffers) {
  constexpr int kFillers = Tile::kSource == HopperSource::kGroups ? 4 : 1;  // warps, or a thread
  const auto prepare = [&](const HopperBuffer& buffer, int blocks) {
    ptx::mbarrier_init(buffer.full, kFillers);
    ptx::mbarrier_init(buffer.empty, Tile::kConsumers * 4 * blocks);
  };
  prepare(buffers.query(), 1);
  for (int stage = 0; stage < Tile::kStages; ++stage) {
    prepare(buffers.keys(stage), Tile::kCluster);
    prepare(buffers.values(stage), Tile::kCluster);
  }
  ptx::fence_mbarrier_init();
}

// Which use of the buffers of a ring a step is.
struct RingStep {
  int stage;
  uint32_t parity;

  OCNET_DEVICE explicit RingStep(int step, int stages = kHopperStages)
      : stage(step % stages), parity(step / stages % 2) {}
};

// What all producers do: wait for room, fill it. `Copies` has query, keys and values, and does in
// make_way what consumers need before they make room.
template <typename Tile, typename Params, typename Copies>
OCNET_DEVICE void produce(const Params& params, int worker, Copies& copies) {
  constexpr int kTileRows = Tile::kCluster * Tile::kRows;
  const HopperBuffers<Tile> buffers;
  const auto room = [&](const HopperBuffer& buffer, uint32_t parity) {
    copies.make_way();
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
      const RingStep ring(step, Tile::kStages);
      const HopperBuffer keys = buffers.keys(ring.stage);
      room(keys, ring.parity);
      copies.keys(keys, tiles.tile * Tile::kCols);
      if (i == 0) {  // after the keys: queries must wait for the last scores of a job
        const HopperBuffer query = buffers.query();
        room(query, job_parity);
        if (device::thread_index() == 0) buffers.task(job_parity) = task;
        copies.query(query, task.row_tile * kTileRows);
      }
      const HopperBuffer values = buffers.values(ring.stage);
      room(values, ring.parity);
      copies.values(values, tiles.tile * Tile::kCols);
      tiles.advance();
    }
    job_parity ^= 1;
  }
  copies.end();
}

// Copies by the copy engine, issued by one thread.
template <typename Tile>
class EngineCopies {
 public:
  static constexpr bool kByOneThread = true;

  OCNET_DEVICE explicit EngineCopies(const HopperFwdParams<typename Tile::scalar_t>& params)
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
    first_token += rank_ * kHopperRows;
    ptx::mbarrier_arrive_expect(to.full, Tile::kQueryBytes);
    if constexpr (kByChannels) {
      OCNET_UNROLL
      for (int line = 0; line < Tile::kChannels / Tile::kLine; ++line) {
        ptx::tensor_load(to.data + line * kHopperRows * kLineBytes, maps_.query, to.full,
                         {line * Tile::kLine, first_token, image_});
      }
    } else {
      OCNET_UNROLL
      for (int line = 0; line < kHopperRows / Tile::kLine; ++line) {
        ptx::tensor_load(to.data + line * Tile::kChannels * kLineBytes, maps_.query, to.full,
                         {first_token + line * Tile::kLine, 0, image_});
      }
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
  static constexpr bool kByChannels = Tile::kSource == HopperSource::kTokenMajor;

  // This block's half of a tile, for all blocks of the cluster.
  template <int kChannels>
  OCNET_DEVICE void streamed(const HopperBuffer& to, const TensorMap& map, int first_token,
                             int first_channel) const {
    constexpr uint16_t kBlocks = (1 << Tile::kCluster) - 1;
    if constexpr (kByChannels) {
      constexpr int kOwn = Tile::kCols / Tile::kCluster;
      OCNET_UNROLL
      for (int line = 0; line < kChannels / Tile::kLine; ++line) {
        ptx::tensor_load_multicast(
            to.data + (line * Tile::kCols + rank_ * kOwn) * kLineBytes, map, to.full,
            {first_channel + line * Tile::kLine, first_token + rank_ * kOwn, image_}, kBlocks);
      }
    } else {
      constexpr int kOwn = kChannels / Tile::kCluster;
      OCNET_UNROLL
      for (int line = 0; line < Tile::kCols / Tile::kLine; ++line) {
        ptx::tensor_load_multicast(
            to.data + (line * kChannels + rank_ * kOwn) * kLineBytes, map, to.full,
            {first_token + line * Tile::kLine, first_channel + rank_ * kOwn, image_}, kBlocks);
      }
    }
  }

  const HopperMaps& maps_;
  const int rank_;
  int image_ = 0;
  int first_channel_ = 0;
};

// Copies by the threads of the producer's warpgroup: starts those of kTokens rows by kChannels,
// zero where there are none, laid out as the copy engine does.
template <int kTokens, int kChannels, typename scalar_t>
OCNET_DEVICE void copy_rows(uint32_t to, const GroupMatrix<const scalar_t>& rows, int first_token,
                            int first_channel) {
  constexpr int kWidth = 16 / static_cast<int>(sizeof(scalar_t));  // elements of a copy
  constexpr int kPieces = kChannels / kWidth;                      // of a row
  constexpr int kAtOnce = device::kWarpgroupThreads / kPieces;
  const int thread = device::thread_index();
  const int piece = thread % kPieces;
  const int channel = first_channel + piece * kWidth;
  // Of what is left of a row; a row of no bytes is still read from a legal place.
  const int left = min_of(max_of(rows.channels - channel, 0), kWidth);
  const uint32_t line = to + piece / 8 * kTokens * kLineBytes + piece % 8 * 16;
  for (int row = thread / kPieces; row < kTokens; row += kAtOnce) {
    const int token = first_token + row;
    const bool valid = token < rows.tokens && left > 0;
    ptx::copy_async<16>(ptx::swizzle_128(line + row * kLineBytes),
                        rows.at(valid ? token : 0, valid ? channel : 0),
                        valid ? left * static_cast<int>(sizeof(scalar_t)) : 0);
  }
}
// Tells consumers that what the warpgroup has copied, and waited for, is theirs.
OCNET_DEVICE void hand_over_copies(uint32_t full) {
  ptx::fence_proxy_async();
  device::sync_warp();
  if (device::lane_index() == 0) ptx::mbarrier_arrive(full);
}

// Where threads that copy groups of pixels are, and the buffer that they have not handed over.
class GroupCopier {
 public:
  static constexpr bool kByOneThread = false;

  OCNET_DEVICE void begin(const HopperTask& task, const Family& family) {
    task_ = &task;
    family_ = &family;
  }

 protected:
  template <typename scalar_t>
  OCNET_DEVICE GroupMatrix<const scalar_t> rows_of(const TokenMatrix<const scalar_t>& maps,
                                                   int tokens) const {
    return {span_of(maps, *task_, *family_, tokens), family_->steps};
  }
  // Once its copies have come.
  OCNET_DEVICE void pass_on() {
    if (pending_ != 0) hand_over_copies(pending_);
    pending_ = 0;
  }

  const HopperTask* task_ = nullptr;
  const Family* family_ = nullptr;
  uint32_t pending_ = 0;  // the mbarrier of the copy before
};

// Copies by the threads of the producer's warpgroup, of any tokens whose channels lie side by side:
// groups of pixels need no gathering. A buffer is handed over one copy later, when its own has
// come.
template <typename Tile>
class ThreadCopies : public GroupCopier {
  using scalar_t = typename Tile::scalar_t;

 public:
  OCNET_DEVICE explicit ThreadCopies(const HopperFwdParams<scalar_t>& params)
      : stages_(params.stages) {}

  OCNET_DEVICE void query(const HopperBuffer& to, int first_token) {
    copy<kHopperRows, Tile::kChannels>(to, stages_[family_->stage].query, family_->owned,
                                       first_token, 0);
  }
  OCNET_DEVICE void keys(const HopperBuffer& to, int first_token) {
    copy<Tile::kCols, Tile::kChannels>(to, stages_[family_->stage].key, family_->streamed,
                                       first_token, 0);
  }
  OCNET_DEVICE void values(const HopperBuffer& to, int first_token) {
    copy<Tile::kCols, Tile::kValues>(to, stages_[family_->stage].value, family_->streamed,
                                     first_token, task_->slice * Tile::kValues);
  }
  OCNET_DEVICE void make_way() const {}
  OCNET_DEVICE void end() {
    ptx::copy_async_wait<0>();
    pass_on();
  }

 private:
  template <int kTokens, int kChannels>
  OCNET_DEVICE void copy(const HopperBuffer& to, const TokenMatrix<const scalar_t>& maps,
                         int tokens, int first_token, int first_channel) {
    copy_rows<kTokens, kChannels>(to.data, rows_of(maps, tokens), first_token, first_channel);
    ptx::copy_async_commit();
    ptx::copy_async_wait<1>();
    pass_on();
    pending_ = to.full;
  }

  const FwdStage<scalar_t>* const stages_;
};

}  // namespace ocnet
