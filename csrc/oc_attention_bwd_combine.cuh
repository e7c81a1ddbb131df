// SPDX-License-Identifier: MIT
// Combination of what blocks of the tensor-core backward summed of an output that they share,
// always in the same order. No torch headers.
#pragma once

#include <cstdint>

#include "common/device.cuh"
#include "common/launch.cuh"
#include "common/math.h"
#include "common/tokens.h"

namespace ocnet {

// to = factor * the sum of `splits` shares, in order.
template <typename storage_t>
struct BwdCombineParams {
  TokenMatrix<const float> shares;  // (N * splits, tokens, channels)
  TokenMatrix<storage_t> to;        // (N, tokens, channels), any strides
  int splits;
  float factor;
  int64_t row_tiles;
};

// Grid: (image, tile of 8 tokens); 256 threads, a warp for each token.
template <typename storage_t>
OCNET_KERNEL(256, 4)
oc_attention_bwd_combine_kernel(BwdCombineParams<storage_t> params) {
  const int64_t image = device::block_index() / params.row_tiles;
  const int64_t tile = device::block_index() % params.row_tiles;
  const int64_t token = tile * 8 + device::warp_index();
  if (token >= params.to.tokens) return;
  const TokenMatrix<storage_t> to = params.to.image(image);
  for (int channel = device::lane_index(); channel < to.channels; channel += 32) {
    const float* share = params.shares.image(image * params.splits).at(token, channel);
    float sum = 0;
    for (int split = 0; split < params.splits; ++split) {
      sum += *share;
      share += params.shares.image_stride;
    }
    *to.at(token, channel) = from_accumulator<storage_t>(sum * params.factor);
  }
}

template <typename storage_t, typename Launch>
void combine_shares(const TokenMatrix<float>& sums, const TokenMatrix<storage_t>& to,
                    int64_t images, int splits, float factor, const Launch& launch) {
  if (to.data == nullptr) return;
  BwdCombineParams<storage_t> params;
  params.shares = {sums.data,           sums.image_stride, sums.token_stride,
                   sums.channel_stride, sums.tokens,       sums.channels};
  params.to = to;
  params.splits = splits;
  params.factor = factor;
  params.row_tiles = ceil_div(to.tokens, 8);
  launch(oc_attention_bwd_combine_kernel<storage_t>, Grid{images * params.row_tiles, 256}, params);
}

}  // namespace ocnet
