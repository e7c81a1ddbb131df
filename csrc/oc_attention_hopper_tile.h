// SPDX-License-Identifier: MIT
// Tiles of the Hopper forward kernel: sizes, and where everything is in shared memory. Host and
// device.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/host_device.h"

namespace ocnet {

constexpr int kHopperWarpgroupRows = 64;  // of queries, of each consumer
// Of 16-bit tiles: consumers, tiles of keys, and of values, under way or in use.
constexpr int kHopperConsumers = 2;
constexpr int kHopperStages = 2;
constexpr int kHopperRows = kHopperConsumers * kHopperWarpgroupRows;
constexpr int kHopperThreads = (kHopperConsumers + 1) * 128;
constexpr int kHopperTaskBytes = 64;
constexpr int kLineBytes = 128;  // of the swizzle (common/ptx/descriptor.h)

// Who brings tiles, and how maps lie in memory.
enum class HopperSource {
  kTokenMajor,    // the copy engine, channels side by side (channels_last)
  kChannelMajor,  // the copy engine, tokens side by side (NCHW)
  kGroups,        // threads, any tokens whose channels are side by side
};

// How blocks of 16-bit tiles share the work, by who brings tiles.
template <HopperSource kSource_>
struct HopperSharing {
  static constexpr HopperSource kSource = kSource_;
  // Blocks of a cluster read the same streamed rows: each fetches half of a tile, for both. At 256
  // channels one block alone would ask more of L2 than it delivers.
  static constexpr int kCluster = kSource == HopperSource::kGroups ? 1 : 2;
  // Registers of a thread. A producer that computes addresses needs more of them, and its consumers
  // have less to hold.
  static constexpr int kProducerRegisters = kSource == HopperSource::kGroups ? 56 : 40;
  static constexpr int kConsumerRegisters = kSource == HopperSource::kGroups ? 224 : 232;
};

// What tiles of all dtypes have: consumer warpgroups, room for channels and values, keys of a step,
// buffers of keys and of values. A number takes kNumberBytes.
template <int kConsumers_, int kChannels_, int kValues_, int kCols_, int kStages_, int kNumberBytes>
struct HopperLayout {
  static constexpr int kConsumers = kConsumers_;
  static constexpr int kChannels = kChannels_;
  static constexpr int kValues = kValues_;
  static constexpr int kCols = kCols_;
  static constexpr int kStages = kStages_;
  static constexpr int kRows = kConsumers * kHopperWarpgroupRows;  // queries of a block
  static constexpr int kThreads = (kConsumers + 1) * 128;

  static constexpr int kQueryBytes = kRows * kChannels * kNumberBytes;
  static constexpr int kKeyBytes = kCols * kChannels * kNumberBytes;
  static constexpr int kValueBytes = kCols * kValues * kNumberBytes;
  static constexpr int kKeyStart = kQueryBytes;
  static constexpr int kValueStart = kKeyStart + kStages * kKeyBytes;
  static constexpr int kBarrierStart = kValueStart + kStages * kValueBytes;
  static constexpr int kTaskStart = kBarrierStart + (2 + 4 * kStages) * 8;
  static constexpr int kSharedBytes = kTaskStart + 2 * kHopperTaskBytes;
  static_assert(kSharedBytes <= 232448, "what a block may have on sm_90");
};

// Channels and values are those that tiles have room for, zero past the last one.
template <typename scalar_t_, int kChannels_, int kValues_, int kCols_, HopperSource kSource_>
struct HopperTile : HopperLayout<kHopperConsumers, kChannels_, kValues_, kCols_, kHopperStages,
                                 static_cast<int>(sizeof(scalar_t_))>,
                    HopperSharing<kSource_> {
  using scalar_t = scalar_t_;
  static constexpr int kLine = kLineBytes / static_cast<int>(sizeof(scalar_t));  // elements

  static_assert(kChannels_ % kLine == 0 && kValues_ % kLine == 0, "tiles are made of whole lines");
  static_assert(HopperTile::kKeyBytes % (1024 * HopperTile::kCluster) == 0 &&
                    kCols_ % (8 * HopperTile::kCluster) == 0,
                "every box starts with an atom of the swizzle");
  static_assert(kSource_ != HopperSource::kChannelMajor || kCols_ % kLine == 0,
                "a line is made of tokens");
};

}  // namespace ocnet
