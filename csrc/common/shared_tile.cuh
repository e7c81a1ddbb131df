// SPDX-License-Identifier: MIT
// Tiles of tokens in shared memory, laid out for the products of mma_tile.cuh, and the copies that
// fill them in the background.
#pragma once

#include "device.cuh"
#include "groups.h"
#include "host_device.h"
#include "ptx/address.cuh"
#include "ptx/cp_async.cuh"
#include "tokens.h"

namespace ocnet {

constexpr int kChunkBytes = 16;

// Tokens of a tile, `pitch` bytes apart, which is a multiple of 128. Chunk c (16 bytes) of row r
// lies in place c ^ (r % 8): chunks of eight neighbouring rows are in different banks.
struct SharedTile {
  unsigned char* data;
  int pitch;

  OCNET_DEVICE int offset(int row, int chunk) const {
    return row * pitch + ((chunk ^ (row & 7)) * kChunkBytes);
  }
  OCNET_DEVICE uint32_t address(int row, int chunk) const {
    return ptx::shared_address(data) + static_cast<uint32_t>(offset(row, chunk));
  }
};

// Bytes between rows of `channels` elements.
OCNET_HOST_DEVICE constexpr int tile_pitch(int channels, int element_bytes) {
  return (channels * element_bytes + 127) / 128 * 128;
}

// Channels that products over them run through: whole steps of 16, zero past the last.
OCNET_HOST_DEVICE constexpr int padded_channels(int channels) { return (channels + 15) / 16 * 16; }

namespace detail {

// The copies of load_tile; kWhole: nothing of the tile lies past the end of the matrix.
template <bool kWhole, typename T>
OCNET_DEVICE void copy_tile(const SharedTile& tile, int rows, const TokenMatrix<const T>& from,
                            int first_token, int first_channel, int channels, int thread,
                            int threads) {
  constexpr int kBytes = static_cast<int>(sizeof(T));
  constexpr int kPerChunk = kChunkBytes / kBytes;
  const int chunks = channels / kPerChunk;
  // Threads that share a row: a power of two, so that finding the row takes no division.
  const int shift = chunks > 16 ? 5 : chunks > 8 ? 4 : 3;
  const int first_row = thread >> shift;
  const int step = threads >> shift;
  const int64_t source_step = step * from.token_stride;
  for (int chunk = thread & ((1 << shift) - 1); chunk < chunks; chunk += 1 << shift) {
    const int channel = first_channel + chunk * kPerChunk;
    const int valid = max_of(0, min_of((from.channels - channel) * kBytes, kChunkBytes));
    const int tokens = valid > 0 ? from.tokens - first_token : 0;
    const T* source = from.at(first_token + first_row, channel);
    OCNET_UNROLL_BY_4
    for (int row = first_row; row < rows; row += step) {
      if constexpr (kWhole) {
        ptx::copy_async<kChunkBytes>(tile.address(row, chunk), source);
      } else {
        const bool inside = row < tokens;
        ptx::copy_async<kChunkBytes>(tile.address(row, chunk), inside ? source : from.data,
                                     inside ? valid : 0);
      }
      source += source_step;
    }
  }
}

// The same, where every token is looked up.
template <typename T>
OCNET_DEVICE void copy_scattered(const SharedTile& tile, int rows, const GroupMatrix<const T>& from,
                                 int first_token, int first_channel, int channels, int thread,
                                 int threads) {
  constexpr int kBytes = static_cast<int>(sizeof(T));
  constexpr int kPerChunk = kChunkBytes / kBytes;
  const int chunks = channels / kPerChunk;
  const int shift = chunks > 16 ? 5 : chunks > 8 ? 4 : 3;
  for (int chunk = thread & ((1 << shift) - 1); chunk < chunks; chunk += 1 << shift) {
    const int channel = first_channel + chunk * kPerChunk;
    const int valid = max_of(0, min_of((from.channels - channel) * kBytes, kChunkBytes));
    const int tokens = valid > 0 ? from.tokens - first_token : 0;
    OCNET_UNROLL_BY_4
    for (int row = thread >> shift; row < rows; row += threads >> shift) {
      const bool inside = row < tokens;
      ptx::copy_async<kChunkBytes>(tile.address(row, chunk),
                                   inside ? from.scattered(first_token + row, channel) : from.data,
                                   inside ? valid : 0);
    }
  }
}

}  // namespace detail

// Starts the copies of `rows` tokens and `channels` channels (a multiple of 16) into a tile; what
// lies past the end of the matrix becomes 0. Done by `threads` threads, of which this one is
// `thread`; the caller commits and waits. Rows of the matrix are 16-byte aligned, with channel
// stride 1.
template <typename T>
OCNET_DEVICE void load_tile(const SharedTile& tile, int rows, const TokenMatrix<const T>& from,
                            int first_token, int first_channel, int channels, int thread,
                            int threads) {
  // A copy that can end early takes twice the instructions.
  const bool whole = first_token + rows <= from.tokens && first_channel + channels <= from.channels;
  if (whole) {
    detail::copy_tile<true>(tile, rows, from, first_token, first_channel, channels, thread,
                            threads);
  } else {
    detail::copy_tile<false>(tile, rows, from, first_token, first_channel, channels, thread,
                             threads);
  }
}

// The same of a group.
template <typename T>
OCNET_DEVICE void load_tile(const SharedTile& tile, int rows, const GroupMatrix<const T>& from,
                            int first_token, int first_channel, int channels, int thread,
                            int threads) {
  if (from.is_run()) {
    load_tile(tile, rows, from.run(), first_token, first_channel, channels, thread, threads);
  } else {
    detail::copy_scattered(tile, rows, from, first_token, first_channel, channels, thread, threads);
  }
}

}  // namespace ocnet
