// SPDX-License-Identifier: MIT
// Index arithmetic of token matrices and of the grid. Host and device; every offset has 64 bits.
#pragma once

#include <cstddef>
#include <cstdint>

#include "host_device.h"

namespace ocnet {

OCNET_HOST_DEVICE int64_t ceil_div(int64_t value, int64_t divisor) {
  return (value + divisor - 1) / divisor;
}

OCNET_HOST_DEVICE int min_of(int a, int b) { return a < b ? a : b; }
OCNET_HOST_DEVICE int max_of(int a, int b) { return a > b ? a : b; }

// (images, tokens, channels) with any strides, counted in elements. NCHW maps have token_stride 1,
// channels_last maps have channel_stride 1.
template <typename T>
struct TokenMatrix {
  T* data = nullptr;
  int64_t image_stride = 0;
  int64_t token_stride = 0;
  int64_t channel_stride = 0;
  int tokens = 0;
  int channels = 0;

  OCNET_HOST_DEVICE TokenMatrix image(int64_t index) const {
    TokenMatrix one = *this;
    one.data += index * image_stride;
    return one;
  }

  OCNET_HOST_DEVICE T* at(int64_t token, int64_t channel) const {
    return data + token * token_stride + channel * channel_stride;
  }
};

// How the work of a launch is cut into blocks. A block owns a tile of rows of one image and a slice
// of the output channels: as many chunks of them as its shared memory has accumulators for.
struct BlockPlan {
  int64_t blocks = 0;
  int64_t row_tiles = 0;
  int chunks = 0;
  int chunks_per_block = 0;
  int slices = 0;
  size_t shared_bytes = 0;
};

// What one block of the plan works on.
struct BlockPlace {
  int64_t image = 0;
  int first_row = 0;
  int slice = 0;
};

// `fixed_bytes` of shared memory are needed by every block and `chunk_bytes` more by each chunk.
// Slices are as few as `shared_limit` allows, and even.
inline BlockPlan plan_blocks(int64_t images, int64_t rows, int64_t rows_per_tile, int chunks,
                             size_t fixed_bytes, size_t chunk_bytes, size_t shared_limit) {
  BlockPlan plan;
  const size_t room = shared_limit > fixed_bytes ? (shared_limit - fixed_bytes) / chunk_bytes : 0;
  if (room == 0 || chunks == 0) return plan;
  const int64_t fitting = room < static_cast<size_t>(chunks) ? static_cast<int64_t>(room) : chunks;
  plan.row_tiles = ceil_div(rows, rows_per_tile);
  plan.chunks = chunks;
  plan.slices = static_cast<int>(ceil_div(chunks, fitting));
  plan.chunks_per_block = static_cast<int>(ceil_div(chunks, plan.slices));
  plan.blocks = images * plan.row_tiles * plan.slices;
  plan.shared_bytes = fixed_bytes + plan.chunks_per_block * chunk_bytes;
  return plan;
}

// Slices of a tile are neighbours, then tiles of an image: blocks that run together share inputs.
OCNET_HOST_DEVICE BlockPlace locate_block(const BlockPlan& plan, int64_t block, int rows_per_tile) {
  const int64_t tile = block / plan.slices;
  BlockPlace place;
  place.slice = static_cast<int>(block % plan.slices);
  place.image = tile / plan.row_tiles;
  place.first_row = static_cast<int>(tile % plan.row_tiles) * rows_per_tile;
  return place;
}

}  // namespace ocnet
