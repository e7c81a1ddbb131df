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

// Channels and values are those that tiles have room for, zero past the last one.
template <typename scalar_t_, int kChannels_, int kValues_>
struct HopperBwdTile {
  using scalar_t = scalar_t_;
  static constexpr int kChannels = kChannels_;
  static constexpr int kValues = kValues_;
  static constexpr int kRows = kHopperBwdRows;
  static constexpr int kCols = kHopperBwdCols;
  static constexpr int kCluster = 2;  // blocks that read the same streamed rows, a half each
  static constexpr int kProducerRegisters = 40;
  static constexpr int kConsumerRegisters = 232;

  static constexpr int kLine = kLineBytes / static_cast<int>(sizeof(scalar_t));  // elements
  static constexpr int kTokenBytes = kRows * kChannels * static_cast<int>(sizeof(scalar_t));
  static constexpr int kValueBytes = kRows * kValues * static_cast<int>(sizeof(scalar_t));
  static constexpr int kNumberBytes = kRows * static_cast<int>(2 * sizeof(float));
  static constexpr int kScoreBytes = kRows * kCols * static_cast<int>(sizeof(float));

  // Of this block's rows: X, V and dO.
  static constexpr int kOwnTokens = 0;
  static constexpr int kOwnValues = kOwnTokens + kTokenBytes;
  static constexpr int kOwnGrads = kOwnValues + kValueBytes;
  // Of the rows that stream past. One buffer of each: every product frees one well before its next
  // tile is needed.
  static constexpr int kTokens = kOwnGrads + kValueBytes;
  static constexpr int kValuesAt = kTokens + kTokenBytes;
  static constexpr int kGrads = kValuesAt + kValueBytes;
  static constexpr int kScores = kGrads + kValueBytes;  // from one consumer to the other
  static constexpr int kOwnNumbers = kScores + kScoreBytes;
  static constexpr int kNumbers = kOwnNumbers + kNumberBytes;
  static constexpr int kBarrierStart = kNumbers + kNumberBytes;
  static constexpr int kTaskStart = kBarrierStart + 4 * 16;
  static constexpr int kSharedBytes = kTaskStart + 2 * kHopperTaskBytes;

  static_assert(kRows == kCols, "owned and streamed tiles have one size");
  static_assert(kChannels % kLine == 0 && kValues % kLine == 0, "tiles are made of whole lines");
  static_assert(kSharedBytes <= 232448, "what a block may have on sm_90");
};

}  // namespace ocnet
