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

// The map of a token matrix for boxes of a line of its contiguous axis, channels or tokens, by
// `across` of the other.
template <typename scalar_t>
TensorMap line_map(const char* function, const TokenMatrix<const scalar_t>& matrix, int64_t images,
                   bool by_channels, int across) {
  constexpr auto kBytes = static_cast<int64_t>(sizeof(scalar_t));
  // No step is made along an axis of one element, whatever its stride.
  const auto stride = [](int64_t size, int64_t elements) {
    return static_cast<uint64_t>(size == 1 ? 16 : elements * kBytes);
  };
  const auto count = static_cast<uint64_t>(matrix.tokens);
  const auto width = static_cast<uint64_t>(matrix.channels);
  TensorMapRequest request;
  request.data = const_cast<scalar_t*>(matrix.data);
  request.element = map_element<scalar_t>();
  request.rank = 3;
  request.swizzle = true;
  request.sizes[0] = by_channels ? width : count;
  request.sizes[1] = by_channels ? count : width;
  request.sizes[2] = static_cast<uint64_t>(images);
  request.stride_bytes[1] = by_channels ? stride(matrix.tokens, matrix.token_stride)
                                        : stride(matrix.channels, matrix.channel_stride);
  request.stride_bytes[2] = stride(images, matrix.image_stride);
  request.box[0] = kLineBytes / kBytes;
  request.box[1] = static_cast<uint32_t>(across);
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
      constexpr bool kByChannels = Tile::kSource == HopperSource::kTokenMajor;
      return line_map(function, matrix, images, kByChannels, kByChannels ? tokens : channels);
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
