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
#include "oc_attention_hopper_bwd_queries.cuh"
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
  if (tensors.key.has_value()) operand("key", *tensors.key);
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

// What all launches of a call have in common.
template <typename scalar_t>
struct Call {
  const TensorLauncher& launch;
  Sizes sizes;
  float scale;
  TokenMatrix<const scalar_t> query, key, value, grad_out;
  TokenMatrix<scalar_t> grad_query, grad_key, grad_value;
  RowNumbers* numbers;  // of queries, in whole tiles
  int64_t number_tiles;

  TensorMap map(const TokenMatrix<const scalar_t>& matrix, int tokens) const {
    return map_of(matrix, sizes.images, tokens);
  }
  // Rows are the numbers of a tile's tokens.
  TensorMap number_map(int rows) const {
    constexpr uint32_t kRow = kHopperBwdRows * sizeof(RowNumbers) / sizeof(float);
    TensorMapRequest request;
    request.data = numbers;
    request.element = MapElement::kFloat32;
    request.rank = 3;
    request.sizes[0] = kRow;
    request.sizes[1] = static_cast<uint64_t>(number_tiles);
    request.sizes[2] = static_cast<uint64_t>(sizes.images);
    request.stride_bytes[1] = kRow * sizeof(float);
    request.stride_bytes[2] = static_cast<uint64_t>(number_tiles) * kRow * sizeof(float);
    request.box[0] = kRow;
    request.box[1] = static_cast<uint32_t>(rows);
    request.box[2] = 1;
    return cached_tensor_map(kFunction, request);
  }
};

// Room for parts, where a plan has some. Freed when it goes, and reused after the kernels: the
// allocator knows the stream.
class Parts {
 public:
  Parts(const Tensor& like, const HopperPlan& plan, int tile_rows, int channels) {
    if (plan.steps == 0) return;
    room_ = torch::stable::new_empty(like, {hopper_bwd_part_words(plan, tile_rows, channels)},
                                     torch::headeronly::ScalarType::Float);
    data_ = kernel_output<float>("parts", *room_);
  }
  float* data() const { return data_; }

 private:
  std::optional<Tensor> room_;
  float* data_ = nullptr;
};

// Cuts the work of a launch whose blocks own `owned` tokens, past which `streamed` ones stream.
template <typename Tile>
void plan_work(WorkTable& work, HopperPlan& plan, const Sizes& sizes, int64_t owned,
               int64_t streamed, int tile_rows, const TensorLauncher& launch) {
  work = list_work({{static_cast<int>(sizes.images), one_group(static_cast<int>(owned)),
                     static_cast<int>(streamed)}});
  plan = deal_hopper(work, false, tile_rows, Tile::kCols, 1,
                     max_of(launch.multiprocessors() / Tile::kCluster, 1));
  plan.own_keys_first = false;  // all workers of an image walk over the same rows at the same time
}

template <typename Tile>
Grid grid_of(const HopperPlan& plan) {
  Grid grid{int64_t{plan.workers} * Tile::kCluster, kHopperThreads, Tile::kSharedBytes,
            Tile::kCluster};
  grid.programmatic = true;
  return grid;
}

// The gradients that blocks that own keys make: with shared keys all of them.
template <typename Tile>
void run_keys(const Call<typename Tile::scalar_t>& call, const Tensor& like) {
  using scalar_t = typename Tile::scalar_t;
  constexpr int kTileRows = Tile::kCluster * Tile::kRows;
  constexpr int kBoth = Tile::kChannels + Tile::kValues;
  constexpr int kPart = Tile::kCols / Tile::kCluster;
  HopperBwdParams<scalar_t> params;
  params.grad_tokens = Tile::kAsQuery ? call.grad_query : call.grad_key;
  params.grad_value = call.grad_value;
  params.maps = {call.map(call.key, Tile::kRows),
                 call.map(call.value, Tile::kRows),
                 call.map(call.grad_out, Tile::kRows),
                 call.map(call.query, kPart),
                 call.map(call.value, kPart),
                 call.map(call.grad_out, kPart),
                 call.number_map(1)};
  params.scale = call.scale;
  params.scale_log2 = static_cast<float>(call.scale * kLog2E);
  plan_work<Tile>(params.work, params.plan, call.sizes, call.sizes.keys, call.sizes.queries,
                  kTileRows, call.launch);
  const Parts parts(like, params.plan, kTileRows, kBoth);
  params.parts = parts.data();
  call.launch(oc_attention_hopper_bwd_kernel<Tile>, grid_of<Tile>(params.plan), params);
  launch_oc_attention_hopper_bwd_combine<scalar_t>(
      {{params.grad_tokens, params.grad_value},
       {params.scale, bwd::WeightShift<scalar_t>::kInverse},
       {0, Tile::kChannels},
       params.plan,
       params.work,
       params.parts,
       kTileRows,
       kBoth},
      call.launch);
}

template <typename Tile>
void run_queries(const Call<typename Tile::scalar_t>& call, const Tensor& like) {
  using scalar_t = typename Tile::scalar_t;
  constexpr int kTileRows = Tile::kCluster * kHopperRows;
  constexpr int kPart = Tile::kCols / Tile::kCluster;
  HopperQueryParams<scalar_t> params;
  params.grad_query = call.grad_query;
  params.maps.own_tokens = call.map(call.query, kHopperRows);
  params.maps.own_grads = call.map(call.grad_out, kHopperRows);
  params.maps.tokens = call.map(call.key, kPart);
  params.maps.values = call.map(call.value, kPart);
  params.maps.numbers = call.number_map(kHopperRows / kHopperBwdRows);
  params.scale = call.scale;
  params.scale_log2 = static_cast<float>(call.scale * kLog2E);
  plan_work<Tile>(params.work, params.plan, call.sizes, call.sizes.queries, call.sizes.keys,
                  kTileRows, call.launch);
  const Parts parts(like, params.plan, kTileRows, Tile::kChannels);
  params.parts = parts.data();
  call.launch(oc_attention_hopper_bwd_query_kernel<Tile>, grid_of<Tile>(params.plan), params);
  launch_oc_attention_hopper_bwd_combine<scalar_t>({{params.grad_query, {}},
                                                    {params.scale, 1},
                                                    {0, 0},
                                                    params.plan,
                                                    params.work,
                                                    params.parts,
                                                    kTileRows,
                                                    Tile::kChannels},
                                                   call.launch);
}

template <typename scalar_t>
void launch_numbers(const Call<scalar_t>& call, const BackwardTensors& tensors) {
  const auto pitch = static_cast<int>(call.number_tiles * kHopperBwdRows);
  DeltaParams<scalar_t> params;
  params.tf32 = false;
  params.stages[0] = {call.grad_out,
                      input<scalar_t>("out", tensors.out),
                      input<scalar_t>("residual", tensors.residual),
                      nullptr,
                      kernel_input<float>("lse", tensors.lse),
                      call.numbers,
                      pitch};
  params.work = list_work({{static_cast<int>(call.sizes.images), one_group(pitch), 0}});
  launch_oc_attention_bwd_delta(params, call.launch);
}

template <typename scalar_t, int kChannels, int kValues, int kQueryCols>
void run_tile(const BackwardTensors& tensors, const Sizes& sizes, double scale) {
  const Tensor& query = tensors.query;
  const TensorLauncher launch(kFunction, query);
  const int64_t tiles = ceil_div(sizes.queries, kHopperBwdRows);
  const Tensor room = torch::stable::new_empty(query, {2 * sizes.images * tiles * kHopperBwdRows},
                                               torch::headeronly::ScalarType::Float);
  const auto read_query = input<scalar_t>("query", query);
  const bool shared = !tensors.key.has_value();
  const Call<scalar_t> call{launch,
                            sizes,
                            static_cast<float>(scale),
                            read_query,
                            shared ? read_query : input<scalar_t>("key", *tensors.key),
                            input<scalar_t>("value", tensors.value),
                            input<scalar_t>("grad_out", tensors.grad_out),
                            output<scalar_t>("grad_query", tensors.grad_query),
                            output<scalar_t>("grad_key", tensors.grad_key),
                            output<scalar_t>("grad_value", tensors.grad_value),
                            reinterpret_cast<RowNumbers*>(kernel_output<float>("numbers", room)),
                            tiles};
  launch_numbers(call, tensors);
  const bool as_query = tensors.grad_query.has_value();
  if (shared && as_query) {
    run_keys<HopperBwdTile<scalar_t, kChannels, kValues, HopperRole::kBoth>>(call, query);
    return;
  }
  if (tensors.grad_key.has_value() || tensors.grad_value.has_value()) {
    run_keys<HopperBwdTile<scalar_t, kChannels, kValues, HopperRole::kKeys>>(call, query);
  }
  if (as_query) {
    run_queries<HopperQueryTile<scalar_t, kChannels, kValues, kQueryCols>>(call, query);
  }
}

// Columns of the pass whose blocks own queries: what shared memory has room for twice.
template <typename scalar_t>
void run(const BackwardTensors& tensors, const Sizes& sizes, double scale) {
  if (sizes.channels <= 64 && sizes.value_channels <= 64) {
    run_tile<scalar_t, 64, 64, 64>(tensors, sizes, scale);
  } else if (sizes.channels <= 128 && sizes.value_channels <= 128) {
    run_tile<scalar_t, 128, 128, 64>(tensors, sizes, scale);
  } else if (sizes.channels <= 128) {
    run_tile<scalar_t, 128, 256, 64>(tensors, sizes, scale);
  } else {
    run_tile<scalar_t, 256, 256, 48>(tensors, sizes, scale);
  }
}

}  // namespace

void oc_attention_hopper_bwd(Tensor grad_out, Tensor query, std::optional<Tensor> key, Tensor value,
                             Tensor out, Tensor lse, std::optional<Tensor> residual, double scale,
                             std::optional<Tensor> grad_query, std::optional<Tensor> grad_key,
                             std::optional<Tensor> grad_value) {
  const BackwardTensors tensors{grad_out, query,    key,        value,    out,
                                lse,      residual, grad_query, grad_key, grad_value};
  const Sizes sizes = check(tensors);
  const auto dtype = query.scalar_type();
  if (dtype == torch::headeronly::ScalarType::BFloat16) {
    run<BFloat16>(tensors, sizes, scale);
  } else if (dtype == torch::headeronly::ScalarType::Half) {
    run<Float16>(tensors, sizes, scale);
  } else {
    fail_argument(kFunction, "query", "have dtype BFloat16 or Half",
                  torch::headeronly::toString(dtype));
  }
}

}  // namespace ocnet
