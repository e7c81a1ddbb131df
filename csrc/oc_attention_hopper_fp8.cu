// SPDX-License-Identifier: MIT
// Host side of the forward pass in 8 bits: checks, workspace, tensor maps, launches.
#include <optional>
#include <string>
#include <type_traits>

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "common/tensor_map_cache.h"
#include "oc_attention_hopper_fp8.h"
#include "oc_attention_hopper_fp8_fwd.cuh"
#include "oc_attention_hopper_fp8_quantize.cuh"
#include "oc_attention_hopper_plan.h"
#include "oc_attention_host.h"

namespace ocnet {
namespace {

constexpr const char* kFunction = "oc_attention_fp8_fwd";
constexpr auto kByte = torch::headeronly::ScalarType::Byte;
constexpr auto kFloat = torch::headeronly::ScalarType::Float;

void check_channels(const char* argument, int64_t channels, int64_t most) {
  if (channels > most) {
    fail_argument(kFunction, argument, "have at most " + std::to_string(most) + " channels",
                  std::to_string(channels));
  }
}

// A matrix for each image, in torch's memory, which is freed when this goes and reused after the
// kernels.
template <typename T>
struct Workspace {
  Tensor tensor;
  TokenMatrix<T> matrix;

  Workspace(const char* name, const Tensor& like, int64_t images, int64_t rows, int64_t columns)
      : tensor(torch::stable::new_empty(like, {images, rows, columns},
                                        std::is_same_v<T, Float8> ? kByte : kFloat)),
        matrix(ocnet::matrix(kernel_output<T>(name, tensor), tensor)) {}
};

// Columns come in whole lines, of 16 bytes at least where they are what tensor maps step over.
int64_t whole(int64_t size, int64_t unit) { return ceil_div(size, unit) * unit; }
constexpr int64_t kScalesUnit = 4;

// Tokens in 8 bits, and the scales that they have in their roles.
template <typename scalar_t>
struct QuantizedTokens {
  Workspace<Float8> numbers;
  std::optional<Workspace<float>> query_scales, key_scales;

  QuantizedTokens(const Tensor& from, bool are_queries, bool are_keys, float key_factor,
                  const TensorLauncher& launch)
      : numbers("8-bit tokens", from, from.size(0), from.size(1),
                whole(from.size(2), kFloat8Line)) {
    const auto scales = [&](const char* name, std::optional<Workspace<float>>& to) {
      to.emplace(name, from, from.size(0), 1, whole(from.size(1), kScalesUnit));
      return as_tokens(to->matrix, numbers.matrix.tokens);
    };
    QuantizeTokensParams<scalar_t> params{
        input<scalar_t>("tokens", from), numbers.matrix, {}, {}, key_factor};
    if (are_queries) params.query_scales = scales("query scales", query_scales);
    if (are_keys) params.key_scales = scales("key scales", key_scales);
    launch_quantize_tokens(params, from.size(0), launch);
  }

  // A row of each image as numbers of its tokens.
  template <typename T>
  static TokenMatrix<T> as_tokens(const TokenMatrix<T>& row, int tokens) {
    return {row.data, row.image_stride, 1, 1, tokens, 1};
  }
};

template <typename scalar_t>
struct QuantizedValues {
  Workspace<Float8> numbers;  // channels as rows
  Workspace<float> scales;

  QuantizedValues(const Tensor& from, const TensorLauncher& launch)
      : numbers("8-bit values", from, from.size(0), from.size(2), whole(from.size(1), kFloat8Cols)),
        scales("value scales", from, from.size(0), 1, from.size(2)) {
    const int64_t tiles = ceil_div(from.size(1), kFloat8Cols);
    const Workspace<float> maxima("maxima of values", from, from.size(0),
                                  tiles < kMostChunks ? tiles : kMostChunks, from.size(2));
    launch_quantize_values(
        QuantizeValuesParams<scalar_t>{input<scalar_t>("value", from), maxima.matrix,
                                       numbers.matrix, scales.matrix},
        from.size(0), launch);
  }
};

// For boxes of a line by `rows`.
TensorMap lines_map(const Workspace<Float8>& from, int rows) {
  const TokenMatrix<Float8>& matrix = from.matrix;
  TensorMapRequest request;
  request.data = matrix.data;
  request.element = MapElement::kFloat8;
  request.rank = 3;
  request.swizzle = true;
  request.sizes[0] = static_cast<uint64_t>(matrix.channels);
  request.sizes[1] = static_cast<uint64_t>(matrix.tokens);
  request.sizes[2] = static_cast<uint64_t>(from.tensor.size(0));
  request.stride_bytes[1] = static_cast<uint64_t>(matrix.token_stride);
  request.stride_bytes[2] = static_cast<uint64_t>(matrix.image_stride);
  request.box[0] = kFloat8Line;
  request.box[1] = static_cast<uint32_t>(rows);
  request.box[2] = 1;
  return cached_tensor_map(kFunction, request);
}

// For boxes of so many scales; of `keys` in each image.
TensorMap scales_map(const Workspace<float>& from, int64_t keys, int box) {
  TensorMapRequest request;
  request.data = from.matrix.data;
  request.element = MapElement::kFloat32;
  request.rank = 2;
  request.sizes[0] = static_cast<uint64_t>(keys);
  request.sizes[1] = static_cast<uint64_t>(from.tensor.size(0));
  request.stride_bytes[1] = static_cast<uint64_t>(from.matrix.image_stride) * sizeof(float);
  request.box[0] = static_cast<uint32_t>(box);
  request.box[1] = 1;
  return cached_tensor_map(kFunction, request);
}

template <typename T>
TokenMatrix<const T> read_only(const TokenMatrix<T>& matrix) {
  return {matrix.data,           matrix.image_stride, matrix.token_stride,
          matrix.channel_stride, matrix.tokens,       matrix.channels};
}

struct Call {
  const Tensor& query;
  const std::optional<Tensor>& key;
  const Tensor& value;
  double scale;
  const Tensor& out;
};

template <typename Tile>
void run_tile(const Call& call, const Sizes& sizes) {
  using out_t = typename Tile::out_t;
  constexpr int kTileRows = Tile::kCluster * kHopperRows;
  constexpr int kOwnKeys = Tile::kCols / Tile::kCluster;
  const TensorLauncher launch(kFunction, call.query);
  const auto factor = static_cast<float>(call.scale * kLog2E);
  const bool shared = !call.key.has_value();
  const QuantizedTokens<out_t> queries(call.query, true, shared, factor, launch);
  std::optional<QuantizedTokens<out_t>> others;
  if (!shared) others.emplace(*call.key, false, true, factor, launch);
  const QuantizedTokens<out_t>& keys = shared ? queries : *others;
  const QuantizedValues<out_t> values(call.value, launch);

  Float8FwdParams<out_t> params;
  params.out = output<out_t>("out", call.out);
  params.maps = {lines_map(queries.numbers, kHopperRows), lines_map(keys.numbers, kOwnKeys),
                 lines_map(values.numbers, Tile::kValues / Tile::kCluster)};
  params.key_scales = scales_map(*keys.key_scales, sizes.keys, kOwnKeys);
  params.query_scales =
      read_only(queries.as_tokens(queries.query_scales->matrix, static_cast<int>(sizes.queries)));
  params.value_scales = read_only(values.scales.matrix);
  params.work =
      list_work({{static_cast<int>(sizes.images), one_group(static_cast<int>(sizes.queries)),
                  static_cast<int>(sizes.keys)}});
  const int slices = static_cast<int>(ceil_div(sizes.value_channels, Tile::kValues));
  params.plan = deal_hopper(params.work, false, kTileRows, Tile::kCols, slices,
                            launch.multiprocessors() / Tile::kCluster);
  std::optional<Workspace<float>> parts;
  if (params.plan.steps > 0) {
    parts.emplace("parts", call.query, 1, 1,
                  hopper_part_words(params.plan, kTileRows, Tile::kValues));
    params.partial = parts->matrix.data;
  }
  launch(oc_attention_hopper_fp8_fwd_kernel<Tile>,
         Grid{int64_t{params.plan.workers} * Tile::kCluster, kHopperThreads, Tile::kSharedBytes,
              Tile::kCluster},
         params);
  FwdStage<out_t> stage;
  stage.out = params.out;
  launch_oc_attention_hopper_combine<out_t>(
      {stage, params.plan, params.work, params.partial, kTileRows, Tile::kValues}, launch);
}

template <typename out_t>
void run(const Call& call, const Sizes& sizes) {
  const int64_t values = sizes.value_channels < 256 ? sizes.value_channels : 256;
#define OCNET_TRY(channels_, values_)                             \
  if (sizes.channels <= (channels_) && values <= (values_)) {     \
    run_tile<Float8Tile<out_t, channels_, values_>>(call, sizes); \
    return;                                                       \
  }
  OCNET_FLOAT8_TILES(OCNET_TRY)
#undef OCNET_TRY
}

}  // namespace

void oc_attention_fp8_fwd(Tensor query, std::optional<Tensor> key, Tensor value, double scale,
                          Tensor out) {
  const Sizes sizes = check_inputs(kFunction, query, key, value);
  check_matrix(kFunction, "out", query, {sizes.images, sizes.queries, sizes.value_channels}, out);
  check_hopper(kFunction, query);
  check_channels("query", sizes.channels, kFloat8MostChannels);
  check_channels("value", sizes.value_channels, kFloat8MostValues);
  const Call call{query, key, value, scale, out};
  const auto dtype = query.scalar_type();
  if (dtype == torch::headeronly::ScalarType::BFloat16) {
    run<BFloat16>(call, sizes);
  } else if (dtype == torch::headeronly::ScalarType::Half) {
    run<Float16>(call, sizes);
  } else {
    fail_argument(kFunction, "query", "have dtype BFloat16 or Half",
                  torch::headeronly::toString(dtype));
  }
}

}  // namespace ocnet
