// SPDX-License-Identifier: MIT
// Launches of the forward kernels on Hopper's own instructions, and the tensor maps that those of
// 16 bits take. No torch headers.
#pragma once

#include <type_traits>

#include "common/tensor_map_cache.h"
#include "oc_attention_hopper_combine.cuh"
#include "oc_attention_hopper_copies.cuh"

namespace ocnet {

template <typename scalar_t>
constexpr MapElement map_element() {
  return std::is_same_v<scalar_t, BFloat16> ? MapElement::kBFloat16 : MapElement::kFloat16;
}

// The map of a token matrix for boxes of `tokens` by `channels`, of which one fits a line.
template <typename Tile>
TensorMap tensor_map(const char* function, const TokenMatrix<const typename Tile::scalar_t>& matrix,
                     int64_t images, int tokens, int channels) {
  constexpr auto kBytes = static_cast<int64_t>(sizeof(typename Tile::scalar_t));
  constexpr bool kByChannels = Tile::kSource == HopperSource::kTokenMajor;
  // No step is made along an axis of one element, whatever its stride.
  const auto stride = [](int64_t size, int64_t elements) {
    return static_cast<uint64_t>(size == 1 ? 16 : elements * kBytes);
  };
  const auto count = static_cast<uint64_t>(matrix.tokens);
  const auto width = static_cast<uint64_t>(matrix.channels);
  TensorMapRequest request;
  request.data = const_cast<typename Tile::scalar_t*>(matrix.data);
  request.element = map_element<typename Tile::scalar_t>();
  request.rank = 3;
  request.swizzle = true;
  request.sizes[0] = kByChannels ? width : count;
  request.sizes[1] = kByChannels ? count : width;
  request.sizes[2] = static_cast<uint64_t>(images);
  request.stride_bytes[1] = kByChannels ? stride(matrix.tokens, matrix.token_stride)
                                        : stride(matrix.channels, matrix.channel_stride);
  request.stride_bytes[2] = stride(images, matrix.image_stride);
  request.box[0] = Tile::kLine;
  request.box[1] = static_cast<uint32_t>(kByChannels ? tokens : channels);
  request.box[2] = 1;
  return cached_tensor_map(function, request);
}

// None where threads copy.
template <typename Tile>
HopperMaps tensor_maps(const char* function, const FwdStage<typename Tile::scalar_t>& stage,
                       int64_t images) {
  if constexpr (Tile::kSource == HopperSource::kGroups) {
    return {};
  } else {
    constexpr int kTokens = Tile::kCols / Tile::kCluster;
    const auto map = [&](const auto& matrix, int tokens, int channels) {
      return tensor_map<Tile>(function, matrix, images, tokens, channels);
    };
    return {map(stage.query, Tile::kRows, Tile::kChannels),
            map(stage.key, kTokens, Tile::kChannels / Tile::kCluster),
            map(stage.value, kTokens, Tile::kValues / Tile::kCluster)};
  }
}

// Launches a kernel on its parameters, and the combination of what it leaves in parts.
template <typename Tile, typename Kernel, typename Launch>
void launch_hopper(const HopperFwdParams<typename Tile::scalar_t>& params, Kernel kernel,
                   const Launch& launch) {
  constexpr int kTileRows = Tile::kCluster * Tile::kRows;
  launch(kernel,
         Grid{int64_t{params.plan.workers} * Tile::kCluster, Tile::kThreads, Tile::kSharedBytes,
              Tile::kCluster},
         params);
  launch_oc_attention_hopper_combine<typename Tile::scalar_t>(
      {params.stages[0], params.plan, params.work, params.partial, kTileRows, Tile::kValues},
      launch);
}

}  // namespace ocnet
