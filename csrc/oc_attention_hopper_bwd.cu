// SPDX-License-Identifier: MIT
// Host side of the backward pass on Hopper's own instructions: checks, tensor maps, workspace,
// launches.
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "common/tensor_map_cache.h"
#include "oc_attention_delta.cuh"
#include "oc_attention_hopper_bwd.cuh"
#include "oc_attention_hopper_bwd.h"
#include "oc_attention_hopper_plan.h"
#include "oc_attention_host.h"

namespace ocnet {
namespace {

constexpr const char* kFunction = "oc_attention_hopper_bwd";
constexpr int64_t kMostChannels = 256;

Sizes check(const BackwardTensors& tensors) {
  const Sizes sizes = check_backward(kFunction, tensors);
  const auto operand = [&](const char* argument, const Tensor& tensor) {
    if (tensor.size(2) > kMostChannels) {
      fail_argument(kFunction, argument,
                    "have at most " + std::to_string(kMostChannels) + " channels",
                    std::to_string(tensor.size(2)));
    }
    check_aligned_rows(kFunction, argument, tensor);
  };
  operand("query", tensors.query);
  operand("value", tensors.value);
  operand("grad_out", tensors.grad_out);
  return sizes;
}

// Of boxes of `tokens` by a line of channels.
template <typename scalar_t>
TensorMap map_of(const TokenMatrix<const scalar_t>& matrix, int64_t images, int tokens) {
  constexpr auto kBytes = static_cast<int64_t>(sizeof(scalar_t));
  // No step is made along an axis of one element, whatever its stride.
  const auto stride = [](int64_t size, int64_t elements) {
    return static_cast<uint64_t>(size == 1 ? 16 : elements * kBytes);
  };
  TensorMapRequest request;
  request.data = const_cast<scalar_t*>(matrix.data);
  request.element =
      std::is_same_v<scalar_t, BFloat16> ? MapElement::kBFloat16 : MapElement::kFloat16;
  request.rank = 3;
  request.swizzle = true;
  request.sizes[0] = static_cast<uint64_t>(matrix.channels);
  request.sizes[1] = static_cast<uint64_t>(matrix.tokens);
  request.sizes[2] = static_cast<uint64_t>(images);
  request.stride_bytes[1] = stride(matrix.tokens, matrix.token_stride);
  request.stride_bytes[2] = stride(images, matrix.image_stride);
  request.box[0] = kLineBytes / kBytes;
  request.box[1] = static_cast<uint32_t>(tokens);
  request.box[2] = 1;
  return cached_tensor_map(kFunction, request);
}

// The numbers of a tile's tokens are a row.
TensorMap map_of_numbers(RowNumbers* numbers, int64_t tiles, int64_t images) {
  constexpr uint32_t kRow = kHopperBwdRows * sizeof(RowNumbers) / sizeof(float);
  TensorMapRequest request;
  request.data = numbers;
  request.element = MapElement::kFloat32;
  request.rank = 3;
  request.sizes[0] = kRow;
  request.sizes[1] = static_cast<uint64_t>(tiles);
  request.sizes[2] = static_cast<uint64_t>(images);
  request.stride_bytes[1] = kRow * sizeof(float);
  request.stride_bytes[2] = static_cast<uint64_t>(tiles) * kRow * sizeof(float);
  request.box[0] = kRow;
  request.box[1] = request.box[2] = 1;
  return cached_tensor_map(kFunction, request);
}

template <typename scalar_t>
struct Operands {
  TokenMatrix<const scalar_t> tokens, value, grad_out;
};

template <typename scalar_t>
HopperBwdMaps maps_of(const Operands<scalar_t>& from, RowNumbers* numbers, int64_t tiles,
                      int64_t images, int cluster) {
  constexpr int kRows = kHopperBwdRows;
  const int part = kHopperBwdCols / cluster;
  return {map_of(from.tokens, images, kRows),    map_of(from.value, images, kRows),
          map_of(from.grad_out, images, kRows),  map_of(from.tokens, images, part),
          map_of(from.value, images, part),      map_of(from.grad_out, images, part),
          map_of_numbers(numbers, tiles, images)};
}

template <typename scalar_t>
void launch_numbers(const BackwardTensors& tensors, const TokenMatrix<const scalar_t>& grad_out,
                    RowNumbers* numbers, int pitch, const TensorLauncher& launch) {
  DeltaParams<scalar_t> params;
  params.tf32 = false;
  params.stages[0] = {grad_out,
                      input<scalar_t>("out", tensors.out),
                      input<scalar_t>("residual", tensors.residual),
                      nullptr,
                      kernel_input<float>("lse", tensors.lse),
                      numbers,
                      pitch};
  params.work = list_work({{static_cast<int>(tensors.query.size(0)), one_group(pitch), 0}});
  launch_oc_attention_bwd_delta(params, launch);
}

template <typename Tile>
void run_tile(const AttentionCall& call, const BackwardTensors& tensors, const Sizes& sizes) {
  using scalar_t = typename Tile::scalar_t;
  constexpr int kTileRows = Tile::kCluster * Tile::kRows;
  constexpr int kBoth = Tile::kChannels + Tile::kValues;
  const Tensor& query = tensors.query;
  const TensorLauncher launch(kFunction, query);
  const auto new_floats = [&](int64_t count) {
    return torch::stable::new_empty(query, {count}, torch::headeronly::ScalarType::Float);
  };
  const Operands<scalar_t> operands{input<scalar_t>("query", query),
                                    input<scalar_t>("value", tensors.value),
                                    input<scalar_t>("grad_out", tensors.grad_out)};
  const int64_t tiles = ceil_div(sizes.queries, kHopperBwdRows);
  const int64_t pitch = tiles * kHopperBwdRows;
  const Tensor number_room = new_floats(2 * sizes.images * pitch);
  auto* const numbers = reinterpret_cast<RowNumbers*>(kernel_output<float>("numbers", number_room));
  launch_numbers<scalar_t>(tensors, operands.grad_out, numbers, static_cast<int>(pitch), launch);

  HopperBwdParams<scalar_t> params;
  params.grad_tokens = output<scalar_t>("grad_query", tensors.grad_query);
  params.grad_value = output<scalar_t>("grad_value", tensors.grad_value);
  params.maps = maps_of(operands, numbers, tiles, sizes.images, Tile::kCluster);
  params.scale = static_cast<float>(call.scale);
  params.scale_log2 = static_cast<float>(call.scale * kLog2E);
  const auto tokens = static_cast<int>(sizes.queries);
  params.work = list_work({{static_cast<int>(sizes.images), one_group(tokens), tokens}});
  params.plan = deal_hopper(params.work, false, kTileRows, Tile::kCols, 1,
                            launch.multiprocessors() / Tile::kCluster);
  // All workers of an image walk over the same rows at the same time.
  params.plan.own_keys_first = false;
  // Freed when this returns, and reused after the kernels: the allocator knows the stream.
  std::optional<Tensor> parts;
  params.parts = nullptr;
  if (params.plan.steps > 0) {
    parts = new_floats(hopper_bwd_part_words(params.plan, kTileRows, kBoth));
    params.parts = kernel_output<float>("parts", *parts);
  }
  Grid grid{int64_t{params.plan.workers} * Tile::kCluster, kHopperThreads, Tile::kSharedBytes,
            Tile::kCluster};
  grid.programmatic = true;
  launch(oc_attention_hopper_bwd_kernel<Tile>, grid, params);
  launch_oc_attention_hopper_bwd_combine<scalar_t>(
      {{params.grad_tokens, params.grad_value},
       {params.scale, bwd::WeightShift<scalar_t>::kInverse},
       {0, Tile::kChannels},
       params.plan,
       params.work,
       params.parts,
       kTileRows,
       kBoth},
      launch);
}

template <typename scalar_t>
void run(const AttentionCall& call, const BackwardTensors& tensors, const Sizes& sizes) {
  if (sizes.channels <= 64 && sizes.value_channels <= 64) {
    run_tile<HopperBwdTile<scalar_t, 64, 64>>(call, tensors, sizes);
  } else if (sizes.channels <= 128 && sizes.value_channels <= 128) {
    run_tile<HopperBwdTile<scalar_t, 128, 128>>(call, tensors, sizes);
  } else if (sizes.channels <= 128) {
    run_tile<HopperBwdTile<scalar_t, 128, 256>>(call, tensors, sizes);
  } else {
    run_tile<HopperBwdTile<scalar_t, 256, 256>>(call, tensors, sizes);
  }
}

}  // namespace

void oc_attention_hopper_bwd(Tensor grad_out, Tensor query, Tensor value, Tensor out, Tensor lse,
                             std::optional<Tensor> residual, double scale, Tensor grad_query,
                             std::optional<Tensor> grad_value) {
  const AttentionCall call{kFunction, scale, false, {}};
  const BackwardTensors tensors{grad_out, query,    std::nullopt, value,        out,
                                lse,      residual, grad_query,   std::nullopt, grad_value};
  const Sizes sizes = check(tensors);
  const auto dtype = query.scalar_type();
  if (dtype == torch::headeronly::ScalarType::BFloat16) {
    run<BFloat16>(call, tensors, sizes);
  } else if (dtype == torch::headeronly::ScalarType::Half) {
    run<Float16>(call, tensors, sizes);
  } else {
    fail_argument(kFunction, "query", "have dtype BFloat16 or Half",
                  torch::headeronly::toString(dtype));
  }
}

}  // namespace ocnet
