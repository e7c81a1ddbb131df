// SPDX-License-Identifier: MIT
// Tiles of the Hopper forward kernel: sizes, and where everything is in shared memory. Host and
// device.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/host_device.h"

namespace ocnet {

constexpr int kHopperRows = 128;  // queries of a block: 64 for each of two warpgroups
constexpr int kHopperWarpgroupRows = 64;
constexpr int kHopperConsumers = 2;
constexpr int kHopperThreads = (kHopperConsumers + 1) * 128;
constexpr int kHopperStages = 2;  // tiles of keys, and of values, under way or in use
constexpr int kHopperTaskBytes = 64;
constexpr int kLineBytes = 128;  // of the swizzle (common/ptx/descriptor.h)

// Who brings tiles, and how maps lie in memory.
enum class HopperSource {
  kTokenMajor,    // the copy engine, channels side by side (channels_last)
  kChannelMajor,  // the copy engine, tokens side by side (NCHW)
  kGroups,        // threads, any tokens whose channels are side by side
};

// Channels and values are those that tiles have room for, zero past the last one.
template <typename scalar_t_, int kChannels_, int kValues_, int kCols_, HopperSource kSource_>
struct HopperTile {
  using scalar_t = scalar_t_;
  static constexpr int kChannels = kChannels_;
  static constexpr int kValues = kValues_;
  static constexpr int kCols = kCols_;  // keys of a step
  static constexpr HopperSource kSource = kSource_;
  // Blocks of a cluster read the same keys and values: each fetches half of a tile, for both. At
  // 256 channels one block alone would ask more of L2 than it delivers.
  static constexpr int kCluster = kSource == HopperSource::kGroups ? 1 : 2;

  // Registers of a thread. A producer that computes addresses needs more of them, and its consumers
  // have fewer keys to hold.
  static constexpr int kProducerRegisters = kSource == HopperSource::kGroups ? 56 : 40;
  static constexpr int kConsumerRegisters = kSource == HopperSource::kGroups ? 224 : 232;

  static constexpr int kLine = kLineBytes / static_cast<int>(sizeof(scalar_t));  // elements
  static constexpr int kQueryBytes = kHopperRows * kChannels * static_cast<int>(sizeof(scalar_t));
  static constexpr int kKeyBytes = kCols * kChannels * static_cast<int>(sizeof(scalar_t));
  static constexpr int kValueBytes = kCols * kValues * static_cast<int>(sizeof(scalar_t));
  static constexpr int kKeyStart = kQueryBytes;
  static constexpr int kValueStart = kKeyStart + kHopperStages * kKeyBytes;
  static constexpr int kBarrierStart = kValueStart + kHopperStages * kValueBytes;
  static constexpr int kTaskStart = kBarrierStart + (2 + 4 * kHopperStages) * 8;
  static constexpr int kSharedBytes = kTaskStart + 2 * kHopperTaskBytes;

  static_assert(kChannels % kLine == 0 && kValues % kLine == 0, "tiles are made of whole lines");
  static_assert(kKeyBytes % (1024 * kCluster) == 0 && kCols % (8 * kCluster) == 0,
                "every box starts with an atom of the swizzle");
  static_assert(kSource != HopperSource::kChannelMajor || kCols % kLine == 0,
                "a line is made of tokens");
  static_assert(kSharedBytes <= 232448, "what a block may have on sm_90");
};

}  // namespace ocnet
