// SPDX-License-Identifier: MIT
// Tiles of the Hopper backward kernel: sizes, and where everything is in shared memory. Host and
// device.
#pragma once

#include "common/groups.h"
#include "oc_attention_hopper_tile.h"

namespace ocnet {

// Rows of a block, which both of its consumer warpgroups share, and rows that stream past in a
// step. The sums of 64 rows, 256 channels of two gradients, take half of all registers: 128 do not
// fit.
constexpr int kHopperBwdRows = 64;
constexpr int kHopperBwdCols = 64;

// What the rows of a block are: with shared keys queries and keys at once.
enum class HopperRole { kBoth, kKeys };

// Channels and values are those that tiles have room for, zero past the last one.
template <typename scalar_t_, int kChannels_, int kValues_, HopperRole kRole_,
          HopperSource kSource_>
struct HopperBwdTile {
  using scalar_t = scalar_t_;
  static constexpr int kChannels = kChannels_;
  static constexpr int kValues = kValues_;
  static constexpr HopperRole kRole = kRole_;
  static constexpr bool kAsQuery = kRole == HopperRole::kBoth;
  static constexpr int kRows = kHopperBwdRows;
  static constexpr int kCols = kHopperBwdCols;
  static constexpr HopperSource kSource = kSource_;
  // Blocks that read the same streamed rows, a half each.
  static constexpr int kCluster = kSource == HopperSource::kGroups ? 1 : 2;
  static constexpr int kProducerRegisters = kSource == HopperSource::kGroups ? 56 : 40;
  static constexpr int kConsumerRegisters = kSource == HopperSource::kGroups ? 224 : 232;

  static constexpr int kLine = kLineBytes / static_cast<int>(sizeof(scalar_t));  // elements
  static constexpr int kTokenBytes = kRows * kChannels * static_cast<int>(sizeof(scalar_t));
  static constexpr int kValueBytes = kRows * kValues * static_cast<int>(sizeof(scalar_t));
  static constexpr int kNumberBytes = kRows * static_cast<int>(2 * sizeof(float));
  static constexpr int kScoreBytes = kRows * kCols * static_cast<int>(sizeof(float));

  // Of this block's rows: X, V and dO.
  static constexpr int kOwnTokens = 0;
  static constexpr int kOwnValues = kOwnTokens + kTokenBytes;
  static constexpr int kOwnGrads = kOwnValues + kValueBytes;
  static constexpr int kOwnBytes = kTokenBytes + (kAsQuery ? 2 : 1) * kValueBytes;
  // Of the rows that stream past. One buffer of each is enough for both roles, whose products free
  // one well before its next tile is needed; keys need fewer tiles, and have room for two.
  static constexpr int kStages = kAsQuery ? 1 : 2;
  static constexpr int kTokens = kOwnBytes;
  static constexpr int kGrads = kTokens + kStages * kTokenBytes;
  static constexpr int kValuesAt = kGrads + kStages * kValueBytes;
  static constexpr int kScores =
      kValuesAt + (kAsQuery ? kValueBytes : 0);  // from one consumer to the other
  static constexpr int kOwnNumbers = kScores + kScoreBytes;
  static constexpr int kNumbers = kOwnNumbers + kNumberBytes;
  static constexpr int kBarrierStart = kNumbers + kStages * kNumberBytes;
  static constexpr int kTaskStart = kBarrierStart + (2 + 2 * kStages) * 16;
  static constexpr int kSharedBytes = kTaskStart + 2 * kHopperTaskBytes;

  static_assert(kRows == kCols, "owned and streamed tiles have one size");
  static_assert(kChannels % kLine == 0 && kValues % kLine == 0, "tiles are made of whole lines");
  static_assert(kSharedBytes <= 232448, "what a block may have on sm_90");
};

}  // namespace ocnet
