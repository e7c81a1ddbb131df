// SPDX-License-Identifier: MIT
// Tiles of the 8-bit forward kernel: sizes, and where everything is in shared memory. Host and
// device.
#pragma once

#include "common/math.h"
#include "common/tokens.h"
#include "oc_attention_hopper_tile.h"

namespace ocnet {

// Keys of a step, and channels of a line of the swizzle: 128 bytes of one of them.
constexpr int kFloat8Line = kLineBytes;
constexpr int kFloat8Cols = kFloat8Line;
constexpr float kFloat8Largest = 448;

constexpr int kFloat8MostChannels = 256;
constexpr int kFloat8MostValues = 512;

// Operands lie as products of 8 bits must have them, along what is summed: channels of queries and
// keys side by side, and keys of values side by side.
//
// In a group of 16, keys lie in the order in which a thread has their scores: those of lane t are
// of columns 2t, 2t + 1, 2t + 8 and 2t + 9, and a word of its weights is of columns 4t .. 4t + 3
// (common/ptx/wgmma.cuh). This key comes to this place:
OCNET_HOST_DEVICE int float8_key(int place) {
  return place / 16 * 16 + place % 16 / 4 * 2 + place % 2 + place % 4 / 2 * 8;
}

// As HopperTile. `out_t` is the dtype of the result; channels and values are what tiles have room
// for, zero past the last one.
template <typename out_t_, int kChannels_, int kValues_>
struct Float8Tile {
  using out_t = out_t_;
  static constexpr int kChannels = kChannels_;
  static constexpr int kValues = kValues_;
  static constexpr int kCols = kFloat8Cols;
  static constexpr int kRows = kHopperRows;
  static constexpr int kConsumers = kHopperConsumers;
  static constexpr int kStages = kHopperStages;
  static constexpr HopperSource kSource = HopperSource::kTokenMajor;
  static constexpr int kCluster = 2;
  static constexpr int kProducerRegisters = 40;
  static constexpr int kConsumerRegisters = 232;
  // Values of a product; see Float8Consumer.
  static constexpr int kPart = 128;

  static constexpr int kQueryBytes = kHopperRows * kChannels;
  // Keys, and behind them their scales in an atom of their own.
  static constexpr int kScaleStart = kCols * kChannels;
  static constexpr int kScaleBytes = kCols * static_cast<int>(sizeof(float));
  static constexpr int kKeyBytes = kScaleStart + 8 * kLineBytes;
  static constexpr int kValueBytes = kCols * kValues;
  static constexpr int kKeyStart = kQueryBytes;
  static constexpr int kValueStart = kKeyStart + kHopperStages * kKeyBytes;
  static constexpr int kBarrierStart = kValueStart + kHopperStages * kValueBytes;
  static constexpr int kTaskStart = kBarrierStart + (2 + 4 * kHopperStages) * 8;
  static constexpr int kSharedBytes = kTaskStart + 2 * kHopperTaskBytes;

  static_assert(kChannels % kFloat8Line == 0 && kValues % kPart == 0,
                "tiles are made of whole lines and products");
  static_assert(kScaleBytes <= 8 * kLineBytes, "scales fit behind their keys");
  static_assert(kSharedBytes <= 232448, "what a block may have on sm_90");
};

// Tiles for channels and values, tried from the top; the first that is wide enough is taken. 82,
// 114, 130 and 162 KB.
#define OCNET_FLOAT8_TILES(TILE) \
  TILE(128, 128)                 \
  TILE(128, 256)                 \
  TILE(256, 128)                 \
  TILE(256, 256)

}  // namespace ocnet
