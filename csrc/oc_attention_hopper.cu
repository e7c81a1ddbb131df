// SPDX-License-Identifier: MIT
// Host side of the forward pass on Hopper's own instructions: checks, and which tile a call takes.
#include <optional>
#include <string>

#include <torch/csrc/stable/tensor.h>

#include "oc_attention_hopper.h"
#include "oc_attention_hopper_fwd.cuh"
#include "oc_attention_hopper_host.h"

namespace ocnet {
namespace {

bool is_channel_major(const Tensor& tensor) {
  return tensor.stride(1) == 1 && tensor.stride(2) != 1 && tensor.size(2) > 1;
}

// Token-major operands, as the other tensor-core kernels take them, or all of them channel-major.
HopperSource check_source(const AttentionCall& call, const HopperStages& stages) {
  const auto check = [&](const auto& each) {
    for (const ForwardTensors& stage : stages) {
      each("query", stage.query);
      if (stage.key.has_value()) each("key", *stage.key);
      each("value", stage.value);
    }
  };
  const bool has_groups = !call.partitions.empty();
  if (has_groups || !is_channel_major(stages[0].query)) {
    check([&](const char* argument, const Tensor& tensor) {
      check_aligned_rows(call.function, argument, tensor);
    });
    return has_groups ? HopperSource::kGroups : HopperSource::kTokenMajor;
  }
  check([&](const char* argument, const Tensor& tensor) {
    check_aligned_channels(call.function, argument, tensor);
  });
  return HopperSource::kChannelMajor;
}

void check_channels(const AttentionCall& call, const Sizes& sizes) {
  const auto check = [&](const char* argument, int64_t channels, int64_t most) {
    if (channels > most) {
      fail_argument(call.function, argument, "have at most " + std::to_string(most) + " channels",
                    std::to_string(channels));
    }
  };
  check("query", sizes.channels, kHopperMostChannels);
  check("value", sizes.value_channels, kHopperMostValues);
}

template <typename Tile>
void run_tile(const AttentionCall& call, const HopperStages& stages, const Sizes& sizes) {
  const TensorLauncher launch(call.function, stages[0].query);
  run_hopper<Tile>(
      call, stages, sizes, launch, oc_attention_hopper_fwd_kernel<Tile>,
      [&](const auto& stage) { return tensor_maps<Tile>(call.function, stage, sizes.images); });
}

template <typename Tile>
bool run_if_wide_enough(const AttentionCall& call, const HopperStages& stages, const Sizes& sizes,
                        HopperSource source) {
  if (source != Tile::kSource || !is_wide_enough<Tile>(sizes)) return false;
  run_tile<Tile>(call, stages, sizes);
  return true;
}

template <typename scalar_t>
void run(const AttentionCall& call, const HopperStages& stages, const Sizes& sizes,
         HopperSource source) {
#define OCNET_TRY(kind, channels, values, cols)                                             \
  if (run_if_wide_enough<HopperTile<scalar_t, channels, values, cols, HopperSource::kind>>( \
          call, stages, sizes, source)) {                                                   \
    return;                                                                                 \
  }
  OCNET_HOPPER_ROWS(OCNET_TRY)
#undef OCNET_TRY
}

}  // namespace

void attend_on_hopper(const AttentionCall& call, const HopperStages& stages) {
  const Sizes sizes = check_forward(call, stages);
  check_hopper(call.function, stages[0].query);
  check_channels(call, sizes);
  const auto dtype = stages[0].query.scalar_type();
  if (dtype == torch::headeronly::ScalarType::BFloat16) {
    run<BFloat16>(call, stages, sizes, check_source(call, stages));
  } else if (dtype == torch::headeronly::ScalarType::Half) {
    run<Float16>(call, stages, sizes, check_source(call, stages));
  } else if (dtype == torch::headeronly::ScalarType::Float && call.partitions.empty()) {
    attend_in_parts_on_hopper(call, stages[0], sizes);
  } else {
    fail_argument(call.function, "query",
                  call.partitions.empty() ? "have dtype BFloat16, Half or Float"
                                          : "have dtype BFloat16 or Half where there are groups",
                  torch::headeronly::toString(dtype));
  }
}

void oc_attention_hopper_fwd(Tensor query, std::optional<Tensor> key, Tensor value, double scale,
                             Tensor out, Tensor lse, std::optional<Tensor> residual) {
  attend_on_hopper({"oc_attention_hopper_fwd", scale, false, {}},
                   {{query, key, value, out, lse, residual}});
}

}  // namespace ocnet
