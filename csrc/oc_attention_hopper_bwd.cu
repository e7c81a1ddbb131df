// SPDX-License-Identifier: MIT
// Host side of the backward pass on Hopper's own instructions: checks, workspace, which tile a call
// takes.
#include <optional>
#include <string>
#include <vector>

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "oc_attention_hopper_bwd.h"
#include "oc_attention_hopper_bwd_launch.cuh"
#include "oc_attention_hopper_bwd_wide.cuh"
#include "oc_attention_host.h"

namespace ocnet {
namespace {

using Stages = std::vector<BackwardTensors>;

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

// Tensors from torch's allocator, freed when the call returns, and reused after its kernels.
class Room {
 public:
  explicit Room(const Tensor& like) : like_(like) {}
  float* floats(const char* name, int64_t count) {
    rooms_.push_back(
        torch::stable::new_empty(like_, {count}, torch::headeronly::ScalarType::Float));
    return kernel_output<float>(name, rooms_.back());
  }

 private:
  const Tensor& like_;
  std::vector<Tensor> rooms_;
};

template <typename scalar_t>
HopperBwdMatrices<scalar_t> matrices(const BackwardTensors& tensors, bool has_groups, Room& room) {
  HopperBwdMatrices<scalar_t> all{};
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
  all.pitch = hopper_bwd_pitch(all.query.tokens, has_groups);
  all.numbers = reinterpret_cast<RowNumbers*>(room.floats("numbers", 2 * all.images * all.pitch));
  return all;
}

// Makes the passes of a slice, and launches them.
template <typename scalar_t>
struct Launches {
  const HopperBwdSlice<scalar_t>& slice;
  const TensorLauncher& launch;
  Room& room;

  void numbers() const { launch_hopper_bwd_numbers(slice, launch); }
  template <typename Tile>
  void keys(void (*kernel)(HopperBwdParams<Tile>)) const {
    run(keys_pass<Tile>(slice, most_workers<Tile>(), kernel));
  }
  template <typename Tile>
  void queries() const {
    run(queries_pass<Tile>(slice, most_workers<Tile>()));
  }

 private:
  template <typename Tile>
  int most_workers() const {
    return launch.multiprocessors() / Tile::kCluster;
  }
  template <typename Tile>
  void run(HopperBwdPass<Tile> pass) const {
    const int64_t words = pass.part_words();
    if (words > 0) pass.params.parts = room.floats("parts", words);
    launch_pass(pass, launch);
  }
};

template <typename scalar_t, int kChannels, int kValues, HopperSource kSource>
void run_both(const Launches<scalar_t>& launches) {
  if constexpr (kSource == HopperSource::kTokenMajor && kChannels <= 128 && kValues <= 128) {
    using Tile = HopperBwdWideTile<scalar_t, kChannels, kValues>;
    launches.keys(&oc_attention_hopper_bwd_wide_kernel<Tile>);
  } else {
    using Tile = HopperBwdTile<scalar_t, kChannels, kValues, HopperRole::kBoth, kSource>;
    launches.keys(&oc_attention_hopper_bwd_kernel<Tile>);
  }
}

template <typename scalar_t, int kChannels, int kValues, int kQueryCols, HopperSource kSource>
void run_tile(const Launches<scalar_t>& launches, const BackwardTensors& wanted) {
  using Keys = HopperBwdTile<scalar_t, kChannels, kValues, HopperRole::kKeys, kSource>;
  using Queries = HopperQueryTile<scalar_t, kChannels, kValues, kQueryCols, kSource>;
  launches.numbers();
  const bool as_query = wanted.grad_query.has_value();
  if (as_query && !wanted.key.has_value()) {
    run_both<scalar_t, kChannels, kValues, kSource>(launches);
    return;
  }
  if (wanted.grad_key.has_value() || wanted.grad_value.has_value()) {
    launches.keys(&oc_attention_hopper_bwd_kernel<Keys>);
  }
  if (as_query) launches.template queries<Queries>();
}

// The smallest tiles that are wide enough. Columns of the pass whose blocks own queries are what
// shared memory has room for twice.
template <typename scalar_t>
void run_slice(const Launches<scalar_t>& launches, const BackwardTensors& wanted) {
  const int channels = launches.slice.stages[0].query.channels;
  const int values = launches.slice.stages[0].value.channels;
  if (launches.slice.has_groups()) {
    if (channels <= 128 && values <= 128) {
      run_tile<scalar_t, 128, 128, 64, HopperSource::kGroups>(launches, wanted);
    } else {
      run_tile<scalar_t, 256, 256, 48, HopperSource::kGroups>(launches, wanted);
    }
  } else if (channels <= 64 && values <= 64) {
    run_tile<scalar_t, 64, 64, 64, HopperSource::kTokenMajor>(launches, wanted);
  } else if (channels <= 128 && values <= 128) {
    run_tile<scalar_t, 128, 128, 64, HopperSource::kTokenMajor>(launches, wanted);
  } else if (channels <= 128) {
    run_tile<scalar_t, 128, 256, 64, HopperSource::kTokenMajor>(launches, wanted);
  } else {
    run_tile<scalar_t, 256, 256, 48, HopperSource::kTokenMajor>(launches, wanted);
  }
}

template <typename scalar_t>
void run(const AttentionCall& call, const Stages& stages, const Sizes& sizes) {
  const TensorLauncher launch(call.function, stages[0].query);
  Room room(stages[0].query);
  const auto slices = static_cast<int>(ceil_div(sizes.value_channels, kHopperBwdSliceValues));
  std::vector<HopperBwdMatrices<scalar_t>> all;
  for (const BackwardTensors& stage : stages) {
    all.push_back(matrices<scalar_t>(stage, !call.partitions.empty(), room));
    if (slices > 1) add_sums(all.back(), room);
  }
  for (int index = 0; index < slices; ++index) {
    const auto slice =
        slice_of_call(call.function, call.scale, call.partitions, all, index, slices);
    run_slice(Launches<scalar_t>{slice, launch, room}, stages[0]);
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
