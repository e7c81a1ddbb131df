// SPDX-License-Identifier: MIT
// fp32 token matrices cut into three BFloat16 parts, laid out for the copy engine. No torch
// headers.
#pragma once

#include "common/device.cuh"
#include "common/launch.cuh"
#include "common/math.h"
#include "common/mma_tile.cuh"
#include "common/tokens.h"

namespace ocnet {

constexpr int kSplitParts = 3;

// (images, tokens, parts, channels), dense: high, middle and low parts (SplitMath) of a token, each
// with as many channels as make whole 16 bytes; those past the last one are 0.
struct SplitTokens {
  BFloat16* data;
  int64_t images;
  int tokens, channels;

  OCNET_HOST_DEVICE int64_t token_stride() const { return int64_t{kSplitParts} * channels; }
  OCNET_HOST_DEVICE BFloat16* at(int64_t image, int64_t token, int part, int channel) const {
    return data + (image * tokens + token) * token_stride() + int64_t{part} * channels + channel;
  }
};
OCNET_HOST_DEVICE int split_channels(int channels) { return (channels + 7) / 8 * 8; }

struct SplitParams {
  TokenMatrix<const float> from;
  SplitTokens to;
};

constexpr int kSplitThreads = 256;
constexpr int kSplitSide = 64;  // tokens and channels of a block
constexpr int kSplitPitch = kSplitSide + 1;
constexpr size_t kSplitSharedBytes = sizeof(float) * kSplitSide * kSplitPitch;

namespace detail {

// The parts of eight channels. A number that is not finite is its own low part, and its others are
// 0. As a key's or a value's, that part meets but the high part of the other factor: what is
// infinite is not multiplied by a 0 that is only the rest of a cut. (As a query's it makes a row of
// NaN, as any score of NaN or +inf does.)
OCNET_DEVICE void write_parts(const SplitTokens& to, int64_t image, int token, int channel,
                              const float* numbers) {
  struct alignas(16) Words {
    uint32_t word[4];
  };
  Words parts[kSplitParts];
  OCNET_UNROLL
  for (int i = 0; i < 4; ++i) {
    const SplitMath::Pair pair = SplitMath::pair(numbers[2 * i], numbers[2 * i + 1]);
    parts[0].word[i] = pair.finite_high;
    parts[1].word[i] = pair.middle;
    parts[2].word[i] = pair.low | (pair.high ^ pair.finite_high);
  }
  OCNET_UNROLL
  for (int part = 0; part < kSplitParts; ++part) {
    *reinterpret_cast<Words*>(to.at(image, token, part, channel)) = parts[part];
  }
}

}  // namespace detail

// Cuts a matrix of any strides. Grid: tiles of channels, of tokens, images. Reads go along the axis
// that is closer together, writes along channels.
OCNET_KERNEL(kSplitThreads, 2) oc_attention_split_kernel(SplitParams params) {
  const SplitTokens& to = params.to;
  const int64_t channel_tiles = ceil_div(to.channels, kSplitSide);
  const int64_t token_tiles = ceil_div(to.tokens, kSplitSide);
  const int64_t row_tile = device::block_index() / channel_tiles;
  const int64_t image = row_tile / token_tiles;
  const int first_channel =
      static_cast<int>(device::block_index() - row_tile * channel_tiles) * kSplitSide;
  const int first_token = static_cast<int>(row_tile - image * token_tiles) * kSplitSide;
  const TokenMatrix<const float> from = params.from.image(image);
  const bool along_tokens = from.token_stride < from.channel_stride;
  auto* const tile = device::shared_memory<float>();

  OCNET_UNROLL
  for (int i = 0; i < kSplitSide * kSplitSide / kSplitThreads; ++i) {
    const int place = device::thread_index() + i * kSplitThreads;
    const int token = along_tokens ? place % kSplitSide : place / kSplitSide;
    const int channel = along_tokens ? place / kSplitSide : place % kSplitSide;
    const bool exists =
        first_token + token < from.tokens && first_channel + channel < from.channels;
    tile[token * kSplitPitch + channel] =
        exists ? *from.at(first_token + token, first_channel + channel) : 0.0f;
  }
  device::barrier();
  constexpr int kPieces = kSplitSide / 8;
  for (int i = device::thread_index(); i < kSplitSide * kPieces; i += kSplitThreads) {
    const int token = i / kPieces;
    const int channel = i % kPieces * 8;
    if (first_token + token >= to.tokens || first_channel + channel >= to.channels) continue;
    detail::write_parts(to, image, first_token + token, first_channel + channel,
                        tile + token * kSplitPitch + channel);
  }
}

template <typename Launch>
void launch_oc_attention_split(const SplitParams& params, const Launch& launch) {
  const int64_t blocks = params.to.images * ceil_div(params.to.tokens, kSplitSide) *
                         ceil_div(params.to.channels, kSplitSide);
  launch(oc_attention_split_kernel, Grid{blocks, kSplitThreads, kSplitSharedBytes}, params);
}

}  // namespace ocnet
