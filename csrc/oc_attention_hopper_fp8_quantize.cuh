// SPDX-License-Identifier: MIT
// The operands of the 8-bit forward kernel, from 16-bit token matrices of any strides. No torch
// headers.
//
// Queries and keys have a scale for each token, values one for each channel of an image: what makes
// the largest of its numbers 448, or 1 where all are zero. Numbers are divided by their scale and
// rounded to e4m3. A scale passes over NaN, which stays itself; an infinity makes its scale
// infinite and itself NaN.
#pragma once

#include "common/launch.cuh"
#include "common/ptx/arithmetic.cuh"
#include "common/tokens.h"
#include "oc_attention_hopper_fp8_tile.h"

namespace ocnet {

constexpr int kQuantizeThreads = 256;
constexpr int kQuantizeWarps = kQuantizeThreads / device::kWarpThreads;
// A block brings a piece of a map to shared memory, along the axis that is contiguous, and reads it
// along the one that it needs. Rows of an odd number of words: the other axis has no bank
// conflicts.
constexpr int kPadding = 2;
constexpr int kTokensPiece = 32;  // by all channels
constexpr int kValuesPiece = 64;  // channels, by the keys of a step

OCNET_DEVICE float float8_scale(float largest) {
  return largest == 0 ? 1.0f : largest / kFloat8Largest;
}

// What is outside of the map is 0. Ends with a barrier.
template <typename scalar_t>
OCNET_DEVICE void load_piece(scalar_t* piece, const TokenMatrix<const scalar_t>& image,
                             int first_token, int tokens, int first_channel, int channels) {
  const bool by_channels = image.channel_stride < image.token_stride;
  const int rows = by_channels ? tokens : channels;
  const int columns = by_channels ? channels : tokens;
  for (int row = device::warp_index(); row < rows; row += kQuantizeWarps) {
    for (int column = device::lane_index(); column < columns; column += device::kWarpThreads) {
      const int token = by_channels ? row : column;
      const int channel = by_channels ? column : row;
      const bool valid =
          first_token + token < image.tokens && first_channel + channel < image.channels;
      piece[token * (channels + kPadding) + channel] =
          valid ? *image.at(first_token + token, first_channel + channel) : scalar_t{};
    }
  }
  device::barrier();
}

template <typename scalar_t>
struct QuantizeTokensParams {
  TokenMatrix<const scalar_t> from;
  TokenMatrix<Float8> to;  // rows of whole lines
  // (N, tokens, 1), as they multiply columns of scores, `key_factor` among them, and rows; data is
  // null where it is not wanted.
  TokenMatrix<float> key_scales, query_scales;
  float key_factor;
};

// Grid: images x pieces of kTokensPiece tokens; a warp takes one token after the other.
template <typename scalar_t>
OCNET_KERNEL(kQuantizeThreads, 4)
oc_attention_fp8_tokens_kernel(OCNET_GRID_CONSTANT QuantizeTokensParams<scalar_t> params) {
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
  constexpr int kMostLines = kFloat8MostChannels / kFloat8Line;
  auto* const piece = device::shared_memory<scalar_t>();
  const int pieces = static_cast<int>(ceil_div(params.from.tokens, kTokensPiece));
  const auto block = static_cast<int>(device::block_index());
  const int image = block / pieces;
  const int first_token = (block - image * pieces) * kTokensPiece;
  const int channels = params.to.channels;
  load_piece(piece, params.from.image(image), first_token, kTokensPiece, 0, channels);
  const auto to = params.to.image(image);
  for (int row = device::warp_index(); row < kTokensPiece; row += kQuantizeWarps) {
    const int token = first_token + row;
    if (token >= to.tokens) break;
    const int own = device::lane_index() * 4;
    float numbers[kMostLines][4] = {};
    float largest = 0;
    OCNET_UNROLL
    for (int line = 0; line < kMostLines; ++line) {
      if (line * kFloat8Line >= channels) break;
      OCNET_UNROLL
      for (int i = 0; i < 4; ++i) {
        numbers[line][i] =
            to_accumulator(piece[row * (channels + kPadding) + line * kFloat8Line + own + i]);
        largest = ocnet::maximum(largest, std::fabs(numbers[line][i]));
      }
    }
    for (int lanes = 1; lanes < device::kWarpThreads; lanes *= 2) {
      largest = ocnet::maximum(largest, device::shuffle_xor(largest, lanes));
    }
    const float scale = float8_scale(largest);
    OCNET_UNROLL
    for (int line = 0; line < kMostLines; ++line) {
      if (line * kFloat8Line >= channels) break;
      const float (&x)[4] = numbers[line];
      *reinterpret_cast<uint32_t*>(to.at(token, line * kFloat8Line + own)) =
          ptx::pack_four(x[0] / scale, x[1] / scale, x[2] / scale, x[3] / scale);
    }
    if (device::lane_index() != 0) continue;
    if (params.query_scales.data != nullptr) {
      *params.query_scales.image(image).at(token, 0) = scale;
    }
    if (params.key_scales.data != nullptr) {
      *params.key_scales.image(image).at(token, 0) = scale * params.key_factor;
    }
  }
#endif
}

template <typename scalar_t>
struct QuantizeValuesParams {
  TokenMatrix<const scalar_t> from;  // (N, S, Ev)
  TokenMatrix<float> maxima;         // (N, chunks, Ev)
  TokenMatrix<Float8> to;            // (N, Ev, S): channels as rows, of whole tiles of keys
  TokenMatrix<float> scales;         // (N, 1, Ev)
};

// Where a block of the kernels of values works.
struct ValuesPlace {
  int image, part, first_channel;

  OCNET_DEVICE ValuesPlace(int parts, int channels) {
    const auto block = static_cast<int>(device::block_index());
    const int pieces = static_cast<int>(ceil_div(channels, kValuesPiece));
    image = block / (parts * pieces);
    part = block / pieces % parts;
    first_channel = block % pieces * kValuesPiece;
  }
};

constexpr int kMostChunks = 32;  // of keys, whose maxima every block of the second kernel reads

// The largest numbers of each channel in chunks of keys: every so many tiles of keys are a chunk.
// Grid: images x chunks x pieces of channels.
template <typename scalar_t>
OCNET_KERNEL(kQuantizeThreads, 4)
oc_attention_fp8_maxima_kernel(OCNET_GRID_CONSTANT QuantizeValuesParams<scalar_t> params) {
  const int chunks = params.maxima.tokens;
  const ValuesPlace place(chunks, params.from.channels);
  auto* const piece = device::shared_memory<scalar_t>();
  const int channel = device::thread_index() % kValuesPiece;
  const int first_row = device::thread_index() / kValuesPiece;
  constexpr int kRowsAtOnce = kQuantizeThreads / kValuesPiece;
  const auto from = params.from.image(place.image);
  const int tiles = static_cast<int>(ceil_div(from.tokens, kFloat8Cols));
  float largest = 0;
  for (int tile = place.part; tile < tiles; tile += chunks) {
    load_piece(piece, from, tile * kFloat8Cols, kFloat8Cols, place.first_channel, kValuesPiece);
    for (int row = first_row; row < kFloat8Cols; row += kRowsAtOnce) {
      const float number = to_accumulator(piece[row * (kValuesPiece + kPadding) + channel]);
      largest = ocnet::maximum(largest, std::fabs(number));
    }
    device::barrier();
  }
  auto* const found = device::shared_memory<float>();
  found[device::thread_index()] = largest;
  device::barrier();
  if (first_row != 0 || place.first_channel + channel >= from.channels) return;
  for (int i = 1; i < kRowsAtOnce; ++i) {
    largest = ocnet::maximum(largest, found[i * kValuesPiece + channel]);
  }
  *params.maxima.image(place.image).at(place.part, place.first_channel + channel) = largest;
}

// Values in 8 bits, and their scales. Grid: images x tiles of keys x pieces of channels.
template <typename scalar_t>
OCNET_KERNEL(kQuantizeThreads, 4)
oc_attention_fp8_values_kernel(OCNET_GRID_CONSTANT QuantizeValuesParams<scalar_t> params) {
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
  const int tiles = static_cast<int>(ceil_div(params.from.tokens, kFloat8Cols));
  const ValuesPlace place(tiles, params.from.channels);
  auto* const scales = device::shared_memory<float>();
  auto* const piece = reinterpret_cast<scalar_t*>(scales + kValuesPiece);
  const int own_channel = place.first_channel + device::thread_index();
  if (device::thread_index() < kValuesPiece) {
    float largest = 0;
    if (own_channel < params.from.channels) {
      const auto maxima = params.maxima.image(place.image);
      for (int chunk = 0; chunk < maxima.tokens; ++chunk) {
        largest = ocnet::maximum(largest, *maxima.at(chunk, own_channel));
      }
      if (place.part == 0) {
        *params.scales.image(place.image).at(0, own_channel) = float8_scale(largest);
      }
    }
    scales[device::thread_index()] = float8_scale(largest);
  }
  load_piece(piece, params.from.image(place.image), place.part * kFloat8Cols, kFloat8Cols,
             place.first_channel, kValuesPiece);
  const auto to = params.to.image(place.image);
  const int first_place = device::lane_index() * 4;
  for (int i = device::warp_index(); i < kValuesPiece; i += kQuantizeWarps) {
    if (place.first_channel + i >= to.tokens) break;
    float numbers[4];
    OCNET_UNROLL
    for (int k = 0; k < 4; ++k) {
      const int key = float8_key(first_place + k);
      numbers[k] = to_accumulator(piece[key * (kValuesPiece + kPadding) + i]) / scales[i];
    }
    *reinterpret_cast<uint32_t*>(
        to.at(place.first_channel + i, place.part * kFloat8Cols + first_place)) =
        ptx::pack_four(numbers[0], numbers[1], numbers[2], numbers[3]);
  }
#endif
}

template <typename scalar_t, typename Launch>
void launch_quantize_tokens(const QuantizeTokensParams<scalar_t>& params, int64_t images,
                            const Launch& launch) {
  const size_t bytes = kTokensPiece * (params.to.channels + kPadding) * sizeof(scalar_t);
  launch(
      oc_attention_fp8_tokens_kernel<scalar_t>,
      Grid{images * ceil_div(params.from.tokens, kTokensPiece), kQuantizeThreads, bytes, 1, false},
      params);
}

template <typename scalar_t, typename Launch>
void launch_quantize_values(const QuantizeValuesParams<scalar_t>& params, int64_t images,
                            const Launch& launch) {
  const int64_t pieces = ceil_div(params.from.channels, kValuesPiece);
  const int64_t tiles = ceil_div(params.from.tokens, kFloat8Cols);
  const size_t bytes =
      kFloat8Cols * (kValuesPiece + kPadding) * sizeof(scalar_t) + kValuesPiece * sizeof(float);
  launch(oc_attention_fp8_maxima_kernel<scalar_t>,
         Grid{images * params.maxima.tokens * pieces, kQuantizeThreads, bytes, 1, false}, params);
  launch(oc_attention_fp8_values_kernel<scalar_t>,
         Grid{images * tiles * pieces, kQuantizeThreads, bytes, 1, false}, params);
}

}  // namespace ocnet
