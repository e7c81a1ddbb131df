// SPDX-License-Identifier: MIT
// Host side of the backward pass on Hopper's own instructions: checks, tensor maps, workspace,
// launches.
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "oc_attention_delta.cuh"
#include "oc_attention_hopper_bwd.cuh"
#include "oc_attention_hopper_bwd.h"
#include "oc_attention_hopper_bwd_queries.cuh"
#include "oc_attention_hopper_bwd_wide.cuh"
#include "oc_attention_hopper_launch.cuh"
#include "oc_attention_hopper_plan.h"
#include "oc_attention_host.h"

namespace ocnet {
namespace {

using Stages = std::vector<BackwardTensors>;

// Value channels of a launch; with more of them there are several.
constexpr int kSliceValues = 256;
constexpr int64_t kMostChannels = 256;
constexpr int64_t kMostValues = 512;

Sizes check(const AttentionCall& call, const Stages& stages) {
  Sizes sizes;
  for (const BackwardTensors& stage : stages) {
    sizes = check_backward(call.function, stage);
    if (!call.partitions.empty()) check_stage(call, stages[0], stage);
    const auto operand = [&](const char* argument, const Tensor& tensor, int64_t most) {
      if (tensor.size(2) > most) {
        fail_argument(call.function, argument, "have at most " + std::to_string(most) + " channels",
                      std::to_string(tensor.size(2)));
      }
      check_aligned_rows(call.function, argument, tensor);
    };
    operand("query", stage.query, kMostChannels);
    if (stage.key.has_value()) operand("key", *stage.key, kMostChannels);
    operand("value", stage.value, kMostValues);
    operand("grad_out", stage.grad_out, kMostValues);
  }
  return sizes;
}

// The channels of a slice.
template <typename T>
TokenMatrix<T> slice_of(TokenMatrix<T> matrix, int slice) {
  if (matrix.data == nullptr) return matrix;
  const int first = slice * kSliceValues;
  matrix.data = matrix.at(0, first);
  matrix.channels = min_of(matrix.channels - first, kSliceValues);
  return matrix;
}

// A stage, as the launches of a call see it.
template <typename scalar_t>
struct Matrices {
  TokenMatrix<const scalar_t> query, key, value, grad_out, out, residual;
  TokenMatrix<scalar_t> grad_query, grad_key, grad_value;
  TokenMatrix<float> query_sums, key_sums;  // of several slices
  const float* lse;
  RowNumbers* numbers;
  int pitch;  // numbers of an image
  int64_t images;

  Matrices slice(int index) const {
    Matrices one = *this;
    one.value = slice_of(value, index);
    one.grad_out = slice_of(grad_out, index);
    one.out = slice_of(out, index);
    one.residual = slice_of(residual, index);
    one.grad_value = slice_of(grad_value, index);
    return one;
  }
};

// Tensors from torch's allocator, freed when the call returns, and reused after its kernels.
class Room {
 public:
  explicit Room(const Tensor& like) : like_(like) {}
  float* floats(const char* name, int64_t count) {
    rooms_.push_back(
        torch::stable::new_empty(like_, {count}, torch::headeronly::ScalarType::Float));
    return kernel_output<float>(name, rooms_.back());
  }
  TokenMatrix<float> sums(const char* name, int64_t images, int64_t tokens, int64_t channels) {
    const int64_t pitch = ceil_div(channels, 4) * 4;  // rows of whole 16 bytes
    return {floats(name, images * tokens * pitch),
            tokens * pitch,
            pitch,
            1,
            static_cast<int>(tokens),
            static_cast<int>(channels)};
  }

 private:
  const Tensor& like_;
  std::vector<Tensor> rooms_;
};

template <typename scalar_t>
Matrices<scalar_t> matrices(const BackwardTensors& tensors, bool has_groups, int slices,
                            Room& room) {
  Matrices<scalar_t> all;
  all.images = tensors.query.size(0);
  all.query = input<scalar_t>("query", tensors.query);
  all.key = tensors.key.has_value() ? input<scalar_t>("key", *tensors.key) : all.query;
  all.value = input<scalar_t>("value", tensors.value);
  all.grad_out = input<scalar_t>("grad_out", tensors.grad_out);
  all.out = input<scalar_t>("out", tensors.out);
  all.residual = input<scalar_t>("residual", tensors.residual);
  all.lse = kernel_input<float>("lse", tensors.lse);
  all.grad_query = output<scalar_t>("grad_query", tensors.grad_query);
  all.grad_key = output<scalar_t>("grad_key", tensors.grad_key);
  all.grad_value = output<scalar_t>("grad_value", tensors.grad_value);
  // The copy engine takes the numbers of whole tiles, threads those of tokens.
  all.pitch = has_groups
                  ? all.query.tokens
                  : static_cast<int>(ceil_div(all.query.tokens, kHopperBwdRows)) * kHopperBwdRows;
  all.numbers = reinterpret_cast<RowNumbers*>(room.floats("numbers", 2 * all.images * all.pitch));
  const auto sums = [&](const char* name, const TokenMatrix<scalar_t>& gradient) {
    if (slices == 1 || gradient.data == nullptr) return TokenMatrix<float>{};
    return room.sums(name, all.images, gradient.tokens, gradient.channels);
  };
  all.query_sums = sums("sums of grad_query", all.grad_query);
  all.key_sums = sums("sums of grad_key", all.grad_key);
  return all;
}

// One slice of a call: what all of its launches have in common.
template <typename scalar_t>
struct Slice {
  const AttentionCall& call;
  const TensorLauncher& launch;
  Room& room;
  std::vector<Matrices<scalar_t>> stages;
  bool is_first, is_last;

  bool has_groups() const { return !call.partitions.empty(); }
  HopperGradient<scalar_t> gradient(const TokenMatrix<scalar_t>& to,
                                    const TokenMatrix<float>& sums) const {
    return {to, is_first ? TokenMatrix<float>{} : sums, is_last ? TokenMatrix<float>{} : sums,
            static_cast<float>(call.scale)};
  }
};

// --- tensor maps ---

// Of the numbers of so many tokens; behind the last one they are 0.
template <typename scalar_t>
TensorMap number_map(const char* function, const Matrices<scalar_t>& from, int tokens) {
  constexpr int kWords = sizeof(RowNumbers) / sizeof(float);
  TensorMapRequest request;
  request.data = from.numbers;
  request.element = MapElement::kFloat32;
  request.rank = 2;
  request.sizes[0] = static_cast<uint64_t>(from.pitch) * kWords;
  request.sizes[1] = static_cast<uint64_t>(from.images);
  request.stride_bytes[1] = static_cast<uint64_t>(from.pitch) * sizeof(RowNumbers);
  request.box[0] = static_cast<uint32_t>(tokens * kWords);
  request.box[1] = 1;
  return cached_tensor_map(function, request);
}

// --- launches ---

// Which tokens blocks own, and which stream past them.
enum class Side { kQueries, kKeys };

template <typename Tile>
void describe(HopperBwdParams<Tile>& params, const Slice<typename Tile::scalar_t>& slice, Side side,
              int own_rows) {
  const auto& stages = slice.stages;
  const bool owns_keys = side == Side::kKeys;
  std::vector<StageWork> work;
  for (size_t i = 0; i < stages.size(); ++i) {
    const auto& from = stages[i];
    HopperBwdOperands<typename Tile::scalar_t>& to = params.stages[i].operands;
    to.own_tokens = owns_keys ? from.key : from.query;
    to.own_values = to.values = from.value;
    to.own_grads = to.grads = from.grad_out;
    to.tokens = owns_keys ? from.query : from.key;
    to.numbers = from.numbers;
    to.pitch = from.pitch;
    work.push_back(stage_work(slice.call, i, from.images, to.own_tokens.tokens, to.tokens.tokens));
  }
  params.work = list_work(work);
  params.scale_log2 = static_cast<float>(slice.call.scale * kLog2E);
  params.plan = deal_hopper(params.work, slice.has_groups(), Tile::kCluster * own_rows, Tile::kCols,
                            1, slice.launch.multiprocessors() / Tile::kCluster);
  params.plan.own_keys_first = false;  // all workers of an image walk over the same rows together
  if constexpr (!HopperBwdParams<Tile>::kByThreads) {
    const auto& from = stages[0];
    const auto& matrices = params.stages[0].operands;
    const char* const function = slice.call.function;
    const auto map = [&](const auto& matrix, int tokens) {
      return line_map(function, matrix, from.images, true, tokens);
    };
    constexpr int kPart = Tile::kCols / Tile::kCluster;
    params.maps = {map(matrices.own_tokens, own_rows),
                   owns_keys ? map(matrices.own_values, own_rows) : TensorMap{},
                   map(matrices.own_grads, own_rows),
                   number_map(function, from, own_rows),
                   map(matrices.tokens, kPart),
                   map(matrices.values, kPart),
                   map(matrices.grads, kPart),
                   number_map(function, from, Tile::kCols)};
  }
}

// Launches the kernel, and the combination of parts if there are any; `channels` of a part.
template <typename Tile>
void launch_pass(void (*kernel)(HopperBwdParams<Tile>), HopperBwdParams<Tile>& params,
                 const Slice<typename Tile::scalar_t>& slice, int tile_rows, int channels) {
  const HopperPlan& plan = params.plan;
  const int64_t words = hopper_bwd_part_words(plan, tile_rows, channels);
  params.parts = words > 0 ? slice.room.floats("parts", words) : nullptr;
  Grid grid{int64_t{plan.workers} * Tile::kCluster, kHopperThreads, Tile::kSharedBytes,
            Tile::kCluster};
  grid.programmatic = true;
  slice.launch(kernel, grid, params);
  launch_oc_attention_hopper_bwd_combine<typename Tile::scalar_t>(
      {{params.stages[0].grad_tokens, params.stages[0].grad_value},
       {0, Tile::kChannels},
       plan,
       params.work,
       params.parts,
       tile_rows,
       channels},
      slice.launch);
}

// The gradients that blocks that own keys make: with shared keys all of them.
template <typename Tile>
void run_keys(const Slice<typename Tile::scalar_t>& slice,
              void (*kernel)(HopperBwdParams<Tile>) = &oc_attention_hopper_bwd_kernel<Tile>) {
  using scalar_t = typename Tile::scalar_t;
  HopperBwdParams<Tile> params;
  for (size_t i = 0; i < slice.stages.size(); ++i) {
    const Matrices<scalar_t>& from = slice.stages[i];
    params.stages[i].grad_tokens = Tile::kAsQuery ? slice.gradient(from.grad_query, from.query_sums)
                                                  : slice.gradient(from.grad_key, from.key_sums);
    params.stages[i].grad_value = {from.grad_value, {}, {}, bwd::WeightShift<scalar_t>::kInverse};
  }
  describe(params, slice, Side::kKeys, Tile::kRows);
  launch_pass(kernel, params, slice, Tile::kCluster * Tile::kRows, Tile::kChannels + Tile::kValues);
}

template <typename Tile>
void run_queries(const Slice<typename Tile::scalar_t>& slice) {
  HopperBwdParams<Tile> params;
  for (size_t i = 0; i < slice.stages.size(); ++i) {
    const auto& from = slice.stages[i];
    params.stages[i].grad_tokens = slice.gradient(from.grad_query, from.query_sums);
    params.stages[i].grad_value = {};
  }
  describe(params, slice, Side::kQueries, kHopperRows);
  launch_pass(&oc_attention_hopper_bwd_query_kernel<Tile>, params, slice,
              Tile::kCluster * kHopperRows, Tile::kChannels);
}

template <typename scalar_t>
void launch_numbers(const Slice<scalar_t>& slice) {
  DeltaParams<scalar_t> params;
  params.tf32 = false;
  std::vector<StageWork> work;
  for (size_t i = 0; i < slice.stages.size(); ++i) {
    const Matrices<scalar_t>& from = slice.stages[i];
    params.stages[i] = {from.grad_out, from.out,     from.residual, nullptr,
                        from.lse,      from.numbers, from.pitch};
    work.push_back({static_cast<int>(from.images), one_group(from.pitch), 0});
  }
  params.work = list_work(work);
  launch_oc_attention_bwd_delta(params, slice.launch);
}

template <typename scalar_t, int kChannels, int kValues, HopperSource kSource>
void run_both(const Slice<scalar_t>& slice) {
  if constexpr (kSource == HopperSource::kTokenMajor && kChannels <= 128 && kValues <= 128) {
    using Tile = HopperBwdWideTile<scalar_t, kChannels, kValues>;
    run_keys<Tile>(slice, &oc_attention_hopper_bwd_wide_kernel<Tile>);
  } else {
    run_keys<HopperBwdTile<scalar_t, kChannels, kValues, HopperRole::kBoth, kSource>>(slice);
  }
}

template <typename scalar_t, int kChannels, int kValues, int kQueryCols, HopperSource kSource>
void run_tile(const Slice<scalar_t>& slice, const BackwardTensors& wanted) {
  launch_numbers(slice);
  const bool as_query = wanted.grad_query.has_value();
  if (as_query && !wanted.key.has_value()) {
    run_both<scalar_t, kChannels, kValues, kSource>(slice);
    return;
  }
  if (wanted.grad_key.has_value() || wanted.grad_value.has_value()) {
    run_keys<HopperBwdTile<scalar_t, kChannels, kValues, HopperRole::kKeys, kSource>>(slice);
  }
  if (as_query) {
    run_queries<HopperQueryTile<scalar_t, kChannels, kValues, kQueryCols, kSource>>(slice);
  }
}

// The smallest tiles that are wide enough. Columns of the pass whose blocks own queries are what
// shared memory has room for twice.
template <typename scalar_t>
void run_slice(const Slice<scalar_t>& slice, const BackwardTensors& wanted) {
  const int channels = slice.stages[0].query.channels;
  const int values = slice.stages[0].value.channels;
  if (slice.has_groups()) {
    if (channels <= 128 && values <= 128) {
      run_tile<scalar_t, 128, 128, 64, HopperSource::kGroups>(slice, wanted);
    } else {
      run_tile<scalar_t, 256, 256, 48, HopperSource::kGroups>(slice, wanted);
    }
  } else if (channels <= 64 && values <= 64) {
    run_tile<scalar_t, 64, 64, 64, HopperSource::kTokenMajor>(slice, wanted);
  } else if (channels <= 128 && values <= 128) {
    run_tile<scalar_t, 128, 128, 64, HopperSource::kTokenMajor>(slice, wanted);
  } else if (channels <= 128) {
    run_tile<scalar_t, 128, 256, 64, HopperSource::kTokenMajor>(slice, wanted);
  } else {
    run_tile<scalar_t, 256, 256, 48, HopperSource::kTokenMajor>(slice, wanted);
  }
}

template <typename scalar_t>
void run(const AttentionCall& call, const Stages& stages, const Sizes& sizes) {
  const TensorLauncher launch(call.function, stages[0].query);
  Room room(stages[0].query);
  const auto slices = static_cast<int>(ceil_div(sizes.value_channels, kSliceValues));
  std::vector<Matrices<scalar_t>> all;
  for (const BackwardTensors& stage : stages) {
    all.push_back(matrices<scalar_t>(stage, !call.partitions.empty(), slices, room));
  }
  for (int index = 0; index < slices; ++index) {
    Slice<scalar_t> slice{call, launch, room, {}, index == 0, index + 1 == slices};
    for (const Matrices<scalar_t>& stage : all) slice.stages.push_back(stage.slice(index));
    run_slice(slice, stages[0]);
  }
}

}  // namespace

void attend_backward_on_hopper(const AttentionCall& call, const Stages& stages) {
  const Sizes sizes = check(call, stages);
  check_hopper(call.function, stages[0].query);
  const auto dtype = stages[0].query.scalar_type();
  if (dtype == torch::headeronly::ScalarType::BFloat16) {
    run<BFloat16>(call, stages, sizes);
  } else if (dtype == torch::headeronly::ScalarType::Half) {
    run<Float16>(call, stages, sizes);
  } else {
    fail_argument(call.function, "query", "have dtype BFloat16 or Half",
                  torch::headeronly::toString(dtype));
  }
}

void oc_attention_hopper_bwd(Tensor grad_out, Tensor query, std::optional<Tensor> key, Tensor value,
                             Tensor out, Tensor lse, std::optional<Tensor> residual, double scale,
                             std::optional<Tensor> grad_query, std::optional<Tensor> grad_key,
                             std::optional<Tensor> grad_value) {
  attend_backward_on_hopper(
      {"oc_attention_hopper_bwd", scale, false, {}},
      {{grad_out, query, key, value, out, lse, residual, grad_query, grad_key, grad_value}});
}

}  // namespace ocnet
