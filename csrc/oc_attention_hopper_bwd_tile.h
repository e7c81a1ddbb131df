// SPDX-License-Identifier: MIT
// Tiles of the Hopper backward kernel: sizes, and where everything is in shared memory. Host and
// device.
#pragma once

#include "common/groups.h"
#include "oc_attention_hopper_tile.h"

namespace ocnet {

// Rows of a block whose two consumer warpgroups share them, and rows that stream past in a step.
// The sums of 64 rows, 256 channels of two gradients, take half of all registers: 128 do not fit.
constexpr int kHopperBwdRows = 64;
constexpr int kHopperBwdCols = 64;

// What the rows of a block are: with shared keys queries and keys at once.
enum class HopperRole { kBoth, kKeys };

// Where everything is in shared memory: X, V and dO of the block's rows, kStages buffers of X, V
// and dO that stream past, and kScoreBytes for what consumers tell each other. Blocks that own keys
// alone have no V stream past, and no dO of their own. Channels and values are those that tiles
// have room for, zero past the last one.
template <typename scalar_t_, int kChannels_, int kValues_, int kRows_, int kCols_, int kStages_,
          bool kAsQuery_, int kScoreBytes, HopperSource kSource_>
struct HopperBwdLayout : HopperSharing<kSource_> {
  using scalar_t = scalar_t_;
  static constexpr int kChannels = kChannels_;
  static constexpr int kValues = kValues_;
  static constexpr int kRows = kRows_;
  static constexpr int kCols = kCols_;
  static constexpr int kStages = kStages_;
  static constexpr bool kAsQuery = kAsQuery_;

  static constexpr int kBytes = static_cast<int>(sizeof(scalar_t));
  static constexpr int kLine = kLineBytes / kBytes;  // elements
  static constexpr int kNumberBytes = static_cast<int>(2 * sizeof(float));
  static constexpr int kOwnTokenBytes = kRows * kChannels * kBytes;
  static constexpr int kOwnValueBytes = kRows * kValues * kBytes;
  static constexpr int kOwnNumberBytes = kRows * kNumberBytes;
  static constexpr int kTokenBytes = kCols * kChannels * kBytes;
  static constexpr int kValueBytes = kCols * kValues * kBytes;
  static constexpr int kColNumberBytes = kCols * kNumberBytes;

  static constexpr int kOwnTokens = 0;
  static constexpr int kOwnValues = kOwnTokens + kOwnTokenBytes;
  static constexpr int kOwnGrads = kOwnValues + kOwnValueBytes;
  static constexpr int kOwnBytes = kOwnTokenBytes + (kAsQuery ? 2 : 1) * kOwnValueBytes;
  static constexpr int kTokens = kOwnBytes;
  static constexpr int kGrads = kTokens + kStages * kTokenBytes;
  static constexpr int kValuesAt = kGrads + kStages * kValueBytes;
  static constexpr int kScores = kValuesAt + (kAsQuery ? kStages * kValueBytes : 0);
  static constexpr int kOwnNumbers = kScores + kScoreBytes;
  static constexpr int kNumbers = kOwnNumbers + kOwnNumberBytes;
  static constexpr int kBarrierStart = kNumbers + kStages * kColNumberBytes;
  static constexpr int kTaskStart = kBarrierStart + (1 + 3 * kStages) * 16;
  static constexpr int kSharedBytes = kTaskStart + 2 * kHopperTaskBytes;

  static_assert(kChannels % kLine == 0 && kValues % kLine == 0, "tiles are made of whole lines");
  static constexpr int kAtoms = 1024 * HopperBwdLayout::kCluster;
  static_assert(kTokenBytes % kAtoms == 0 && kValueBytes % kAtoms == 0 && kCols % 16 == 0,
                "every box starts with an atom of the swizzle");
  static_assert(kSharedBytes <= 232448, "what a block may have on sm_90");
};

// One buffer of each tile is enough for both roles, whose products free one well before its next
// tile is needed; keys need fewer tiles, and have room for two.
template <typename scalar_t, int kChannels, int kValues, HopperRole kRole, HopperSource kSource>
struct HopperBwdTile
    : HopperBwdLayout<scalar_t, kChannels, kValues, kHopperBwdRows, kHopperBwdCols,
                      kRole == HopperRole::kBoth ? 1 : 2, kRole == HopperRole::kBoth,
                      kHopperBwdRows * kHopperBwdCols* static_cast<int>(sizeof(float)), kSource> {
  static constexpr int kValueReaders = 1;  // consumers that read V
};

// Shared keys, so few channels that a warpgroup has room for both gradients of its 64 rows: columns
// are those for which registers are left.
template <typename scalar_t, int kChannels, int kValues>
struct HopperBwdWideTile : HopperBwdLayout<scalar_t, kChannels, kValues, kHopperRows,
                                           kChannels + kValues <= 128 ? 64 : 48, kHopperStages,
                                           true, 0, HopperSource::kTokenMajor> {
  static constexpr int kValueReaders = kHopperConsumers;
};

}  // namespace ocnet
