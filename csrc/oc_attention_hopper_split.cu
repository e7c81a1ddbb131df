// SPDX-License-Identifier: MIT
// Host side of the strict fp32 forward pass on Hopper's own instructions: operands in parts, and
// their maps.
#include <cstdint>
#include <optional>

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "common/tensor_map_cache.h"
#include "oc_attention_hopper_host.h"
#include "oc_attention_hopper_split.cuh"

namespace ocnet {
namespace {

// The parts of an operand, in memory of torch's allocator.
class SplitOperand {
 public:
  SplitOperand(const char* name, const Tensor& whole, const TokenMatrix<const float>& from,
               const TensorLauncher& launch)
      : tokens_{nullptr, whole.size(0), from.tokens, split_channels(from.channels)},
        storage_(torch::stable::new_empty(
            whole, {tokens_.images * tokens_.tokens * tokens_.token_stride()},
            torch::headeronly::ScalarType::BFloat16)) {
    tokens_.data = kernel_output<BFloat16>(name, storage_);
    launch_oc_attention_split({from, tokens_}, launch);
  }

  // For boxes of a line of `tokens` tokens, with all parts.
  TensorMap map(const char* function, int tokens) const {
    constexpr int64_t kBytes = sizeof(BFloat16);
    TensorMapRequest request;
    request.data = tokens_.data;
    request.element = MapElement::kBFloat16;
    request.rank = 4;
    request.swizzle = true;
    request.sizes[0] = static_cast<uint64_t>(tokens_.channels);
    request.sizes[1] = static_cast<uint64_t>(tokens_.tokens);
    request.sizes[2] = kSplitParts;
    request.sizes[3] = static_cast<uint64_t>(tokens_.images);
    request.stride_bytes[1] = static_cast<uint64_t>(tokens_.token_stride() * kBytes);
    request.stride_bytes[2] = static_cast<uint64_t>(tokens_.channels * kBytes);
    request.stride_bytes[3] =
        static_cast<uint64_t>(tokens_.tokens * tokens_.token_stride() * kBytes);
    request.box[0] = kLineBytes / kBytes;
    request.box[1] = static_cast<uint32_t>(tokens);
    request.box[2] = kSplitParts;
    request.box[3] = 1;
    return cached_tensor_map(function, request);
  }

 private:
  SplitTokens tokens_;
  Tensor storage_;
};

template <typename Tile>
void run_tile(const AttentionCall& call, const ForwardTensors& tensors, const Sizes& sizes) {
  const TensorLauncher launch(call.function, tensors.query);
  // Until everything is launched: what is freed may be handed out again.
  std::optional<SplitOperand> query, key, value;
  const auto maps_of = [&](const FwdStage<float>& stage) -> HopperMaps {
    query.emplace("parts of the query", tensors.query, stage.query, launch);
    if (tensors.key.has_value()) key.emplace("parts of the key", *tensors.key, stage.key, launch);
    value.emplace("parts of the value", tensors.value, stage.value, launch);
    const SplitOperand& keys = key.has_value() ? *key : *query;
    return {query->map(call.function, Tile::kRows), keys.map(call.function, Tile::kCols),
            value->map(call.function, Tile::kCols)};
  };
  run_hopper<Tile>(call, {tensors}, sizes, launch, oc_attention_hopper_split_fwd_kernel<Tile>,
                   maps_of);
}

template <typename Tile>
bool run_if_wide_enough(const AttentionCall& call, const ForwardTensors& tensors,
                        const Sizes& sizes) {
  if (!is_wide_enough<Tile>(sizes)) return false;
  run_tile<Tile>(call, tensors, sizes);
  return true;
}

}  // namespace

void attend_in_parts_on_hopper(const AttentionCall& call, const ForwardTensors& tensors,
                               const Sizes& sizes) {
#define OCNET_TRY(...) \
  if (run_if_wide_enough<SplitTile<__VA_ARGS__>>(call, tensors, sizes)) return;
  OCNET_HOPPER_SPLIT_ROWS(OCNET_TRY)
#undef OCNET_TRY
}

}  // namespace ocnet
