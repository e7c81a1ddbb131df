// SPDX-License-Identifier: MIT
// Backward kernel of pixel-wise attention on tensor cores by mma.sync (sm_80 and later), and its
// launches. No torch headers.
//
// With P = exp(scale * X_I X_J^T - lse) of tokens I that a block owns and tokens J streamed past:
//   I as queries  G += P (dO_I V_J^T - delta_I)      I as keys  G += P' (V_I dO_J^T - delta_J)
//   grad_tokens_I = scale * sum over J of G X_J      grad_value_I = sum over J of P' dO_J
// P is normalised by lse_I, P' by lse_J. With shared keys I is both; the scores serve both.
// Derivation: docs/ops/oc_attention.md.
//
// Two warps share 16 owned tokens, and the outputs: the one of group A sums grad_value, the one of
// group B grad_tokens. A makes the scores and hands them to B in fp32; both turn them into weights
// themselves, so that nothing is rounded on the way. Of dO_I V_J^T each makes the sum over half of
// the channels (every other 128 bytes), which makes their work equal:
//   A  P' dO_J        1/2 dO_I V_J^T    X_I X_J^T
//   B  G X_J          1/2 dO_I V_J^T    V_I dO_J^T
// The first column is that of the step before. It frees X_J and dO_J, whose next tiles arrive
// during the second column; V_J arrives during the third.
//
// Sums have a fixed order and nothing is added by atomics: results repeat bit for bit.
#pragma once

#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "common/launch.cuh"
#include "common/mma_store.cuh"
#include "common/mma_tile.cuh"
#include "oc_attention_bwd_combine.cuh"
#include "oc_attention_bwd_tiles.h"
#include "oc_attention_bwd_weights.cuh"
#include "oc_attention_mma_bwd_stage.cuh"

namespace ocnet {

namespace bwd {

// 2^bits * exp(scale * product - lse). The difference is rounded before it is multiplied by
// log2(e): it is small where the weight is not.
OCNET_DEVICE float weight(float product, float scale, float lse, float bits = 0) {
  constexpr float kLog2E = 1.44269504f;
  return ptx::exp2_approx(std::fma(std::fma(product, scale, -lse), kLog2E, bits));
}

// What a thread knows of its block.
template <typename Math, int kWidth, int kCols>
struct Block {
  using storage_t = typename Math::storage_t;
  using Params = MmaBwdParams<storage_t>;
  using Stage = MmaBwdStage<storage_t>;
  using Span = GroupSpan<const storage_t>;
  static constexpr int kBytes = static_cast<int>(sizeof(storage_t));
  static constexpr int kPart = kPartBytes / kBytes;  // channels

  const Params& params;
  unsigned char* const shared;  // tiles
  const BwdPlace place;
  const MmaBwdGroup<storage_t>& group;
  const int pair;               // of warps; its tokens start at 16 * pair
  const bool leads;             // group A
  const bool tokens, values;    // outputs of this slice
  const bool as_query, as_key;  // roles that grad_tokens needs

  OCNET_DEVICE explicit Block(const Params& all)
      : params(all),
        shared(device::shared_memory<unsigned char>() + kGroupBytes),
        place(locate_bwd_block(all.plan, all.work, device::block_index())),
        group(load_group(all.stages[all.work.families[place.family].stage], place,
                         all.work.families[place.family], all.plan.tile.rows * 4)),
        pair(device::warp_index() % (all.plan.tile.rows / kMmaRows)),
        leads(device::warp_index() < all.plan.tile.rows / kMmaRows),
        tokens(any().grad_tokens.data != nullptr &&
               place.slice * kWidth < any().grad_tokens.channels),
        values(any().grad_value.data != nullptr &&
               place.slice * kWidth < any().grad_value.channels),
        as_query(tokens && any().own_grad.data != nullptr),
        as_key(tokens && any().own_value.data != nullptr) {}

  // For what all stages have in common.
  OCNET_DEVICE const Stage& any() const { return params.stages[0]; }

  OCNET_DEVICE SharedTile tile(int offset, int pitch) const { return {shared + offset, pitch}; }
  OCNET_DEVICE int pitch() const { return tile_pitch(any().own.channels, kBytes); }
  OCNET_DEVICE int value_pitch() const { return tile_pitch(value_channels(), kBytes); }
  OCNET_DEVICE int value_channels() const {
    return as_query ? any().own_grad.channels : any().other_grad.channels;
  }
  OCNET_DEVICE int first_col(int step) const { return step * kCols; }

  // The streamed tokens' channels that the second products read: of the slice.
  OCNET_DEVICE SharedTile wide_tile() const {
    const BwdLayout& at = params.plan.layout;
    const int offset = leads ? at.wide_grad : at.wide;
    if (!params.plan.tile.resident) return tile(offset, kWidth * kBytes);
    return tile(offset + place.slice * kWidth * kBytes, leads ? value_pitch() : pitch());
  }

  // As load_tile, a copy at a time: beside the sums there are no registers to unroll with.
  OCNET_DEVICE void load(int offset, int pitch, int rows, const Span& from, int first_token,
                         int first_channel, int channels) const {
    constexpr int kPerChunk = kChunkBytes / kBytes;
    const SharedTile to = tile(offset, pitch);
    const auto source = group.rows(from);
    const int most = padded_channels(source.channels) - first_channel;
    const int chunks = min_of(channels, most) / kPerChunk;
    // Threads that share a row: a power of two, so that finding the row takes no division.
    const int shift = chunks > 16 ? 5 : chunks > 8 ? 4 : 3;
    const int thread = device::thread_index();
    const int step = params.plan.tile.rows * 4 >> shift;
    for (int chunk = thread & ((1 << shift) - 1); chunk < chunks; chunk += 1 << shift) {
      const int channel = first_channel + chunk * kPerChunk;
      const int left = min_of((source.channels - channel) * kBytes, kChunkBytes);
      OCNET_UNROLL_BY(1)
      for (int row = thread >> shift; row < rows; row += step) {
        const int token = first_token + row;
        const int valid = token < source.tokens ? max_of(0, left) : 0;
        const storage_t* const address = valid > 0 ? source.at(token, channel) : source.data;
        ptx::copy_async<kChunkBytes>(to.address(row, chunk), address, valid);
      }
    }
  }
  OCNET_DEVICE void load_own(int offset, int pitch, const Span& from, int first_channel,
                             int channels) const {
    load(offset, pitch, params.plan.tile.rows, from, place.first_row, first_channel, channels);
  }
  OCNET_DEVICE void load_other(int offset, int pitch, const Span& from, int step, int first_channel,
                               int channels) const {
    load(offset, pitch, kCols, from, first_col(step), first_channel, channels);
  }

  // lse and delta of the streamed queries.
  OCNET_DEVICE void load_vectors(int step) const {
    const int thread = device::thread_index();
    if (any().other_grad.data == nullptr || thread >= kCols) return;
    const int token = first_col(step) + thread;
    const uint32_t to = ptx::shared_address(shared + params.plan.layout.vectors) + thread * 4;
    const auto copy = [&](uint32_t at, const GroupSpan<const float>& from) {
      const auto source = group.rows(from);
      const bool valid = token < source.tokens;
      ptx::copy_async<4>(at, valid ? source.at(token, 0) : source.data, valid ? 4 : 0);
    };
    copy(to, group.other_lse);
    if (tokens) copy(to + kCols * 4, group.other_delta);
  }

  // sums += the products over one part of both sides.
  OCNET_DEVICE void multiply_part(float (&sums)[kCols / 8][4], const SharedTile& rows,
                                  const SharedTile& cols, int channels) const {
    multiply_rows<Math, kCols>(sums, rows, pair * kMmaRows, cols, 0, channels);
  }

  // The two products of owned with streamed tokens, all channels in shared memory:
  //   `half`    this warp's half of dO_I V_J^T
  //   `scores`  X_I X_J^T in group A, V_I dO_J^T in group B
  OCNET_DEVICE void multiply_resident(float (&half)[kCols / 8][4], float (&scores)[kCols / 8][4],
                                      int step) const {
    const BwdLayout& at = params.plan.layout;
    ptx::copy_async_wait<0>();
    device::barrier();  // V_J is here, and X_J and dO_J are free
    load_other(at.other, pitch(), group.other, step, 0, kLargestChannels);
    if (any().other_grad.data != nullptr) {
      load_other(at.other_grad, value_pitch(), group.other_grad, step, 0, kLargestChannels);
    }
    load_vectors(step);
    ptx::copy_async_commit();
    clear_sums(half);
    if (as_query) {
      const int channels = padded_channels(value_channels());
      for (int channel = leads ? 0 : kPart; channel < channels; channel += 2 * kPart) {
        multiply_part(half, tile(at.own_grad + channel * kBytes, value_pitch()),
                      tile(at.other_value + channel * kBytes, value_pitch()),
                      min_of(kPart, channels - channel));
      }
    }
    ptx::copy_async_wait<0>();
    device::barrier();  // X_J and dO_J are here, and V_J is free
    if (step + 1 < place.end_step) load_value(step + 1);
    clear_sums(scores);
    if (leads || as_key) {
      const int rows = leads ? at.own : at.own_value;
      const int cols = leads ? at.other : at.other_grad;
      const int bytes = leads ? pitch() : value_pitch();
      const int channels = padded_channels(leads ? any().own.channels : value_channels());
      multiply_part(scores, tile(rows, bytes), tile(cols, bytes), channels);
    }
  }

  OCNET_DEVICE void load_value(int step) const {
    if (as_query) {
      load_other(params.plan.layout.other_value, value_pitch(), group.other_value, step, 0,
                 kLargestChannels);
    }
    ptx::copy_async_commit();
  }

  OCNET_DEVICE void load_resident() const {
    const BwdLayout& at = params.plan.layout;
    load_own(at.own, pitch(), group.own, 0, kLargestChannels);
    if (as_query) load_own(at.own_grad, value_pitch(), group.own_grad, 0, kLargestChannels);
    if (as_key) load_own(at.own_value, value_pitch(), group.own_value, 0, kLargestChannels);
    load_value(place.first_step);
  }

  // One part of every tile, into one of two stages.
  OCNET_DEVICE void load_part(int step, int part) const {
    const BwdLayout& at = params.plan.layout;
    const int room = part % 2 * at.stage;
    const int channel = part * kPart;
    const auto take = [&](int own_at, int other_at, const Span& own, const Span& other) {
      if (channel >= own.channels) return;
      load_own(room + own_at, kPartBytes, own, channel, kPart);
      load_other(room + other_at, kPartBytes, other, step, channel, kPart);
    };
    take(at.own, at.other, group.own, group.other);
    if (as_query) take(at.own_grad, at.other_value, group.own_grad, group.other_value);
    if (as_key) take(at.own_value, at.other_grad, group.own_value, group.other_grad);
    ptx::copy_async_commit();
  }

  // As multiply_resident, in the same order of sums, with both sides streamed in parts. Ends with
  // the copies of the wide tiles on their way.
  OCNET_DEVICE void multiply_parts(float (&half)[kCols / 8][4], float (&scores)[kCols / 8][4],
                                   int step) const {
    const BwdLayout& at = params.plan.layout;
    const int channels = padded_channels(any().own.channels);
    const int value_channels = as_query || as_key ? padded_channels(this->value_channels()) : 0;
    clear_sums(half);
    clear_sums(scores);
    device::barrier();  // the wide tiles, which lie in the same place, are free
    load_vectors(step);
    load_part(step, 0);
    for (int part = 0; part * kPart < max_of(channels, value_channels); ++part) {
      const int stage = part % 2 * at.stage;
      const auto left = [&](int all) { return min_of(kPart, all - part * kPart); };
      load_part(step, part + 1);  // nothing past the end
      ptx::copy_async_wait<1>();
      device::barrier();
      if (as_query && (part % 2 == 0) == leads) {
        multiply_part(half, tile(stage + at.own_grad, kPartBytes),
                      tile(stage + at.other_value, kPartBytes), left(value_channels));
      }
      if (leads || as_key) {
        multiply_part(scores, tile(stage + (leads ? at.own : at.own_value), kPartBytes),
                      tile(stage + (leads ? at.other : at.other_grad), kPartBytes),
                      left(leads ? channels : value_channels));
      }
      device::barrier();
    }
    const int first_channel = place.slice * kWidth;
    if (tokens) {
      load_other(at.wide, kWidth * kBytes, group.other, step, first_channel, kWidth);
    }
    if (values) {
      load_other(at.wide_grad, kWidth * kBytes, group.other_grad, step, first_channel, kWidth);
    }
    ptx::copy_async_commit();
  }

  // This thread's sums of one 8 x 8 group of columns, among those that its pair hands over.
  OCNET_DEVICE Quad& handed(int offset, int n) const {
    auto* const quads = reinterpret_cast<Quad*>(shared + offset) + pair * kCols * kMmaRows / 4;
    return quads[n * device::kWarpThreads + device::lane_index()];
  }
  OCNET_DEVICE void hand_over(int offset, const float (&sums)[kCols / 8][4]) const {
    OCNET_UNROLL
    for (int n = 0; n < kCols / 8; ++n) {
      handed(offset, n) = {{sums[n][0], sums[n][1], sums[n][2], sums[n][3]}};
    }
  }

  // Replaces the scores by P', which is 0 for padding.
  OCNET_DEVICE void make_value_weights(float (&weights)[kCols / 8][4],
                                       const float (&scores)[kCols / 8][4], int step) const {
    const auto* const lse = reinterpret_cast<const float*>(shared + params.plan.layout.vectors);
    const int left = group.other.tokens - first_col(step);
    OCNET_UNROLL
    for (int n = 0; n < kCols / 8; ++n) {
      OCNET_UNROLL
      for (int i = 0; i < 4; ++i) {
        const int col = n * 8 + device::lane_index() % 4 * 2 + i % 2;
        const float value = weight(scores[n][i], params.scale, lse[col],
                                   WeightShift<typename Math::storage_t>::kBits);
        weights[n][i] = col < left ? value : 0.0f;
      }
    }
  }

  // Replaces this half of dO_I V_J^T by G, which is 0 for padding.
  OCNET_DEVICE void make_token_weights(float (&half)[kCols / 8][4],
                                       const float (&products)[kCols / 8][4],
                                       const float (&row_lse)[2], const float (&row_delta)[2],
                                       int step) const {
    const BwdLayout& at = params.plan.layout;
    const auto* const lse = reinterpret_cast<const float*>(shared + at.vectors);
    const int left = group.other.tokens - first_col(step);
    OCNET_UNROLL
    for (int n = 0; n < kCols / 8; ++n) {
      const Quad scores = handed(at.scores, n);
      Quad other_half = {};
      if (as_query) other_half = handed(at.products, n);
      OCNET_UNROLL
      for (int i = 0; i < 4; ++i) {
        const int col = n * 8 + device::lane_index() % 4 * 2 + i % 2;
        float gradient = 0;
        if (as_query) {
          gradient = weight(scores.at[i], params.scale, row_lse[i / 2]) *
                     (other_half.at[i] + half[n][i] - row_delta[i / 2]);
        }
        if (as_key) {
          gradient +=
              weight(scores.at[i], params.scale, lse[col]) * (products[n][i] - lse[kCols + col]);
        }
        half[n][i] = col < left ? gradient : 0.0f;
      }
    }
  }

  // lse and delta of the two owned queries of this thread, 0 past the end.
  OCNET_DEVICE void load_rows(float (&row_lse)[2], float (&row_delta)[2]) const {
    const auto lse = group.rows(group.own_lse);
    const auto delta = group.rows(group.own_delta);
    OCNET_UNROLL
    for (int i = 0; i < 2; ++i) {
      const int token = first_token() + device::lane_index() / 4 + 8 * i;
      const bool valid = as_query && token < lse.tokens;
      row_lse[i] = valid ? *lse.at(token, 0) : 0.0f;
      row_delta[i] = valid ? *delta.at(token, 0) : 0.0f;
    }
  }

  OCNET_DEVICE int first_token() const { return place.first_row + pair * kMmaRows; }

  OCNET_DEVICE void store(float (&sums)[kWidth / 8][4]) const {
    const int first_channel = place.slice * kWidth;
    if (params.plan.splits > 1) {
      const int64_t image = place.image * params.plan.splits + place.split;
      TokenMatrix<float> to = params.token_sums;
      if (leads) to = params.value_sums;
      store_rows(sums, to.image(image), first_token(), first_channel);
      return;
    }
    const float factor = leads ? WeightShift<typename Math::storage_t>::kInverse : params.scale;
    OCNET_UNROLL
    for (int n = 0; n < kWidth / 8; ++n) {
      OCNET_UNROLL
      for (int i = 0; i < 4; ++i) sums[n][i] *= factor;
    }
    GroupSpan<storage_t> to = group.grad_tokens;
    if (leads) to = group.grad_value;
    store_rows(sums, group.rows(to), first_token(), first_channel);
  }

  static constexpr int kLargestChannels = 512;
};

}  // namespace bwd

// Gradients of `rows` owned tokens, kWidth channels of each.
//
// Grid: (group, share of the streamed tokens, tile of owned tokens, slice of output channels),
// slice fastest; rows * 4 threads. Products are those of Math, sums are fp32. Shared memory:
// BwdLayout.
template <typename Math, int kWidth, int kCols>
OCNET_KERNEL(256, 1)
oc_attention_mma_bwd_kernel(OCNET_GRID_CONSTANT MmaBwdParams<typename Math::storage_t> params) {
  const bwd::Block<Math, kWidth, kCols> block(params);
  const BwdLayout& at = params.plan.layout;
  const bool resident = params.plan.tile.resident;
  const bool sums_something = block.leads ? block.values : block.tokens;
  const int pairs = params.plan.tile.rows / kMmaRows;

  float sums[kWidth / 8][4];
  float half[kCols / 8][4];
  float scores[kCols / 8][4];
  float row_lse[2];
  float row_delta[2];
  clear_sums(sums);
  block.load_rows(row_lse, row_delta);
  if (resident) block.load_resident();
  for (int step = block.place.first_step;; ++step) {
    if (step > block.place.first_step && sums_something) {
      const int output =
          block.leads ? block.any().grad_value.channels : block.any().grad_tokens.channels;
      accumulate_tokens<Math, kCols, kWidth>(sums, half, block.wide_tile(),
                                             padded_channels(output) - block.place.slice * kWidth);
    }
    if (step == block.place.end_step) break;

    if (resident) {
      block.multiply_resident(half, scores, step);
    } else {
      block.multiply_parts(half, scores, step);
    }
    if (block.tokens) {
      if (block.leads) {
        if (block.as_query) block.hand_over(at.products, half);
        block.hand_over(at.scores, scores);
        device::named_barrier_arrive(1 + block.pair, 2 * device::kWarpThreads);
      } else {
        device::named_barrier_sync(1 + block.pair, 2 * device::kWarpThreads);
        block.make_token_weights(half, scores, row_lse, row_delta, step);
      }
    }
    if (block.leads && block.values) block.make_value_weights(half, scores, step);
    if (!resident) {
      ptx::copy_async_wait<0>();
      device::barrier();
    }
  }
  if (sums_something) block.store(sums);
}

namespace bwd {

// A contiguous matrix in a workspace; moves on past it.
inline TokenMatrix<float> take_sums(float*& workspace, int64_t images, int tokens, int channels) {
  TokenMatrix<float> sums;
  sums.data = workspace;
  sums.image_stride = int64_t{tokens} * channels;
  sums.token_stride = channels;
  sums.channel_stride = 1;
  sums.tokens = tokens;
  sums.channels = channels;
  workspace += images * sums.image_stride;
  return sums;
}

// The kernel of a tile: those that kBwdTiles names.
template <typename Math, typename Params, typename Launch>
void launch_tile(const Params& params, const Launch& launch) {
  const BwdTile& tile = params.plan.tile;
  const Grid grid{params.plan.blocks, tile.rows * 4,
                  static_cast<size_t>(params.plan.layout.bytes + kGroupBytes)};
  if (tile.width == 128) {
    launch(oc_attention_mma_bwd_kernel<Math, 128, 32>, grid, params);
    return;
  }
  if constexpr (sizeof(typename Math::storage_t) == 2) {
    if (tile.cols == 32) {
      launch(oc_attention_mma_bwd_kernel<Math, 256, 32>, grid, params);
      return;
    }
  }
  launch(oc_attention_mma_bwd_kernel<Math, 256, 16>, grid, params);
}

}  // namespace bwd

// Launches one pass. `params` has all but the sums, the plan and the cut of the work; may_split:
// see plan_bwd. workspace(count) returns room for fp32 numbers that lives until the stream is past
// the launches.
template <typename Math, typename Workspace, typename Launch>
void launch_oc_attention_mma_bwd(const char* function,
                                 MmaBwdParams<typename Math::storage_t> params, bool may_split,
                                 const Workspace& workspace, const Launch& launch) {
  const MmaBwdStage<typename Math::storage_t>& stage = params.stages[0];
  BwdWork kind = {};
  kind.element_bytes = static_cast<int>(sizeof(typename Math::storage_t));
  kind.channels = stage.own.channels;
  kind.value_channels = max_of(stage.own_grad.channels, stage.other_grad.channels);
  kind.as_query = stage.own_grad.data != nullptr;
  kind.as_key = stage.other_grad.data != nullptr;
  kind.tokens = stage.grad_tokens.data != nullptr;
  const bool value = stage.grad_value.data != nullptr;
  const BwdTile* const tile = find_bwd_tile(kind, launch.shared_limit() - kGroupBytes);
  if (tile == nullptr) {
    throw std::runtime_error(std::string(function) + ": no tile fits in " +
                             std::to_string(launch.shared_limit()) + " bytes of shared memory");
  }
  params.plan = plan_bwd(*tile, kind, value, may_split, launch.multiprocessors(), params.work);
  const int splits = params.plan.splits;
  const int64_t images = params.work.families[0].images;
  if (splits > 1) {
    const int64_t shares = images * splits;
    const int outputs = (kind.tokens ? kind.channels : 0) + (value ? kind.value_channels : 0);
    float* room = workspace(shares * stage.own.tokens * outputs);
    if (kind.tokens) {
      params.token_sums = bwd::take_sums(room, shares, stage.own.tokens, kind.channels);
    }
    if (value) {
      params.value_sums = bwd::take_sums(room, shares, stage.own.tokens, kind.value_channels);
    }
  }
  bwd::launch_tile<Math>(params, launch);
  if (splits > 1) {
    combine_shares(params.token_sums, stage.grad_tokens, images, splits, params.scale, launch);
    combine_shares(params.value_sums, stage.grad_value, images, splits,
                   bwd::WeightShift<typename Math::storage_t>::kInverse, launch);
  }
}

}  // namespace ocnet
