// SPDX-License-Identifier: MIT
// Launches of the backward kernels on Hopper's own instructions: what the launches of a call read
// and write, their plans and tensor maps. No torch headers.
#pragma once

#include <cstdint>
#include <vector>

#include "common/tensor_map_cache.h"
#include "oc_attention_delta.cuh"
#include "oc_attention_hopper_bwd.cuh"
#include "oc_attention_hopper_bwd_queries.cuh"
#include "oc_attention_hopper_launch.cuh"
#include "oc_attention_hopper_plan.h"

namespace ocnet {

// Value channels of a launch; with more of them there are several.
constexpr int kHopperBwdSliceValues = 256;

// The channels of a slice.
template <typename T>
TokenMatrix<T> slice_of(TokenMatrix<T> matrix, int slice) {
  if (matrix.data == nullptr) return matrix;
  const int first = slice * kHopperBwdSliceValues;
  matrix.data = matrix.at(0, first);
  matrix.channels = min_of(matrix.channels - first, kHopperBwdSliceValues);
  return matrix;
}

// A stage, as the launches of a call see it.
template <typename scalar_t>
struct HopperBwdMatrices {
  TokenMatrix<const scalar_t> query, key, value, grad_out, out, residual;
  TokenMatrix<scalar_t> grad_query, grad_key, grad_value;
  TokenMatrix<float> query_sums, key_sums;  // of several slices
  const float* lse;
  RowNumbers* numbers;
  int pitch;  // numbers of an image
  int64_t images;

  HopperBwdMatrices slice(int index) const {
    HopperBwdMatrices one = *this;
    one.value = slice_of(value, index);
    one.grad_out = slice_of(grad_out, index);
    one.out = slice_of(out, index);
    one.residual = slice_of(residual, index);
    one.grad_value = slice_of(grad_value, index);
    return one;
  }
};

// Numbers of an image of so many queries: the copy engine takes those of whole tiles, threads those
// of tokens.
inline int hopper_bwd_pitch(int queries, bool has_groups) {
  return has_groups ? queries
                    : static_cast<int>(ceil_div(queries, kHopperBwdRows)) * kHopperBwdRows;
}

// Sums of a gradient over several slices, in rows of whole 16 bytes. `Room` gives memory that lasts
// until the launches of the call have ended: floats(name, count).
template <typename scalar_t, typename Room>
TokenMatrix<float> hopper_bwd_sums(Room& room, const char* name, int64_t images,
                                   const TokenMatrix<scalar_t>& gradient) {
  if (gradient.data == nullptr) return {};
  const int64_t pitch = ceil_div(gradient.channels, 4) * 4;
  return {room.floats(name, images * gradient.tokens * pitch),
          gradient.tokens * pitch,
          pitch,
          1,
          gradient.tokens,
          gradient.channels};
}

template <typename scalar_t, typename Room>
void add_sums(HopperBwdMatrices<scalar_t>& stage, Room& room) {
  stage.query_sums = hopper_bwd_sums(room, "sums of grad_query", stage.images, stage.grad_query);
  stage.key_sums = hopper_bwd_sums(room, "sums of grad_key", stage.images, stage.grad_key);
}

// One slice of a call: what all of its launches have in common.
template <typename scalar_t>
struct HopperBwdSlice {
  const char* function;
  double scale;
  const std::vector<Partition>& partitions;  // of each stage; none where there are no groups
  std::vector<HopperBwdMatrices<scalar_t>> stages;
  bool is_first, is_last;

  bool has_groups() const { return !partitions.empty(); }
  HopperGradient<scalar_t> gradient(const TokenMatrix<scalar_t>& to,
                                    const TokenMatrix<float>& sums) const {
    return {to, is_first ? TokenMatrix<float>{} : sums, is_last ? TokenMatrix<float>{} : sums,
            static_cast<float>(scale)};
  }
};

template <typename scalar_t>
HopperBwdSlice<scalar_t> slice_of_call(const char* function, double scale,
                                       const std::vector<Partition>& partitions,
                                       const std::vector<HopperBwdMatrices<scalar_t>>& stages,
                                       int index, int slices) {
  HopperBwdSlice<scalar_t> slice{function, scale, partitions, {}, index == 0, index + 1 == slices};
  for (const auto& stage : stages) slice.stages.push_back(stage.slice(index));
  return slice;
}

// --- the numbers of tokens ---

template <typename scalar_t, typename Launch>
void launch_hopper_bwd_numbers(const HopperBwdSlice<scalar_t>& slice, const Launch& launch) {
  DeltaParams<scalar_t> params;
  params.tf32 = false;
  std::vector<StageWork> work;
  for (size_t i = 0; i < slice.stages.size(); ++i) {
    const HopperBwdMatrices<scalar_t>& from = slice.stages[i];
    params.stages[i] = {from.grad_out, from.out,     from.residual, nullptr,
                        from.lse,      from.numbers, from.pitch};
    work.push_back({static_cast<int>(from.images), one_group(from.pitch), 0});
  }
  params.work = list_work(work);
  launch_oc_attention_bwd_delta(params, launch);
}

// Of the numbers of so many tokens; behind the last one they are 0.
template <typename scalar_t>
TensorMap number_map(const char* function, const HopperBwdMatrices<scalar_t>& from, int tokens) {
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

// --- passes ---

// Which tokens blocks own, and which stream past them.
enum class HopperBwdSide { kQueries, kKeys };

// A kernel, and its parameters but for the memory of parts, of which there are as many as the plan
// asks for when the pass is launched.
template <typename Tile>
struct HopperBwdPass {
  static constexpr int kTileRows = Tile::kCluster * Tile::kRows;

  void (*kernel)(HopperBwdParams<Tile>);
  HopperBwdParams<Tile> params;
  int part_channels;

  int64_t part_words() const {
    return hopper_bwd_part_words(params.plan, kTileRows, part_channels);
  }
};

// Operands, work, plan and maps of a pass, whose gradients are there.
template <typename Tile>
void describe_pass(HopperBwdParams<Tile>& params,
                   const HopperBwdSlice<typename Tile::scalar_t>& slice, HopperBwdSide side,
                   int most_workers) {
  const auto& stages = slice.stages;
  const bool owns_keys = side == HopperBwdSide::kKeys;
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
    work.push_back({static_cast<int>(from.images),
                    slice.has_groups() ? slice.partitions[i] : one_group(to.own_tokens.tokens),
                    to.tokens.tokens});
  }
  params.work = list_work(work);
  params.scale_log2 = static_cast<float>(slice.scale * kLog2E);
  params.plan = deal_hopper(params.work, slice.has_groups(), HopperBwdPass<Tile>::kTileRows,
                            Tile::kCols, 1, most_workers);
  params.plan.own_keys_first = false;  // all workers of an image walk over the same rows together
  if constexpr (!HopperBwdParams<Tile>::kByThreads) {
    const auto& from = stages[0];
    const auto& matrices = params.stages[0].operands;
    const char* const function = slice.function;
    const auto map = [&](const auto& matrix, int tokens) {
      return line_map(function, matrix, from.images, true, tokens);
    };
    constexpr int kPart = Tile::kCols / Tile::kCluster;
    params.maps = {map(matrices.own_tokens, Tile::kRows),
                   owns_keys ? map(matrices.own_values, Tile::kRows) : TensorMap{},
                   map(matrices.own_grads, Tile::kRows),
                   number_map(function, from, Tile::kRows),
                   map(matrices.tokens, kPart),
                   map(matrices.values, kPart),
                   map(matrices.grads, kPart),
                   number_map(function, from, Tile::kCols)};
  }
}

// The gradients that blocks that own keys make: with shared keys all of them. `most_workers`:
// clusters at most.
template <typename Tile>
HopperBwdPass<Tile> keys_pass(const HopperBwdSlice<typename Tile::scalar_t>& slice,
                              int most_workers, void (*kernel)(HopperBwdParams<Tile>)) {
  using scalar_t = typename Tile::scalar_t;
  HopperBwdPass<Tile> pass{kernel, {}, Tile::kChannels + Tile::kValues};
  for (size_t i = 0; i < slice.stages.size(); ++i) {
    const HopperBwdMatrices<scalar_t>& from = slice.stages[i];
    HopperBwdStage<scalar_t>& to = pass.params.stages[i];
    to.grad_tokens = Tile::kAsQuery ? slice.gradient(from.grad_query, from.query_sums)
                                    : slice.gradient(from.grad_key, from.key_sums);
    to.grad_value = {from.grad_value, {}, {}, bwd::WeightShift<scalar_t>::kInverse};
  }
  describe_pass(pass.params, slice, HopperBwdSide::kKeys, most_workers);
  return pass;
}

// The gradient of the queries, where keys are others.
template <typename Tile>
HopperBwdPass<Tile> queries_pass(const HopperBwdSlice<typename Tile::scalar_t>& slice,
                                 int most_workers) {
  HopperBwdPass<Tile> pass{&oc_attention_hopper_bwd_query_kernel<Tile>, {}, Tile::kChannels};
  for (size_t i = 0; i < slice.stages.size(); ++i) {
    const auto& from = slice.stages[i];
    pass.params.stages[i].grad_tokens = slice.gradient(from.grad_query, from.query_sums);
    pass.params.stages[i].grad_value = {};
  }
  describe_pass(pass.params, slice, HopperBwdSide::kQueries, most_workers);
  return pass;
}

// Launches the kernel, and the combination of parts if there are any.
template <typename Tile, typename Launch>
void launch_pass(const HopperBwdPass<Tile>& pass, const Launch& launch) {
  const HopperBwdParams<Tile>& params = pass.params;
  Grid grid{int64_t{params.plan.workers} * Tile::kCluster, kHopperThreads, Tile::kSharedBytes,
            Tile::kCluster};
  grid.programmatic = true;
  launch(pass.kernel, grid, params);
  launch_oc_attention_hopper_bwd_combine<typename Tile::scalar_t>(
      {{params.stages[0].grad_tokens, params.stages[0].grad_value},
       {0, Tile::kChannels},
       params.plan,
       params.work,
       params.parts,
       HopperBwdPass<Tile>::kTileRows,
       pass.part_channels},
      launch);
}

}  // namespace ocnet
