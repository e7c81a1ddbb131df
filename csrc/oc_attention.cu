// SPDX-License-Identifier: MIT
// Host side of the forward pass on CUDA: checks, workspace, launches. Kernels are in the .cuh
// files: fp64 is multiplied by threads, everything else by tensor cores.
#include <optional>

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "oc_attention.h"
#include "oc_attention_host.h"
#include "oc_attention_mma_fwd.cuh"
#include "oc_attention_simt_fwd.cuh"

namespace ocnet {
namespace {

struct ForwardTensors {
  const Tensor& query;
  const std::optional<Tensor>& key;
  const Tensor& value;
  const Tensor& out;
  const Tensor& lse;
  const std::optional<Tensor>& residual;
};

constexpr const char* kFunction = "oc_attention_fwd";

Sizes check_forward(const ForwardTensors& tensors) {
  const Tensor& query = tensors.query;
  const Sizes sizes = check_inputs(kFunction, query, tensors.key, tensors.value);
  const auto check = [&](const char* argument, const Tensor& tensor) {
    check_matrix(kFunction, argument, query, {sizes.images, sizes.queries, sizes.value_channels},
                 tensor);
  };
  check("out", tensors.out);
  if (tensors.residual.has_value()) {
    if (query.scalar_type() == accumulator_dtype(query.scalar_type())) {
      fail_argument(kFunction, "residual", "be absent where nothing is rounded",
                    torch::headeronly::toString(query.scalar_type()));
    }
    check("residual", *tensors.residual);
  }
  check_lse(kFunction, query, sizes, tensors.lse);
  return sizes;
}

template <typename Params, typename scalar_t>
Params matrices(const ForwardTensors& tensors) {
  Params params;
  params.query = input<scalar_t>("query", tensors.query);
  params.key = tensors.key.has_value() ? input<scalar_t>("key", *tensors.key) : params.query;
  params.value = input<scalar_t>("value", tensors.value);
  params.out = output<scalar_t>("out", tensors.out);
  params.lse = kernel_output<accumulator_t<scalar_t>>("lse", tensors.lse);
  return params;
}

template <typename Math>
void multiply_on_tensor_cores(const ForwardTensors& tensors, const Sizes& sizes, double scale) {
  using scalar_t = typename Math::storage_t;
  check_operand(kFunction, "query", tensors.query);
  if (tensors.key.has_value()) check_operand(kFunction, "key", *tensors.key);
  check_operand(kFunction, "value", tensors.value);
  const TensorLauncher launch(kFunction, tensors.query);
  const AttentionShape shape{sizes.images,
                             static_cast<int>(sizes.queries),
                             static_cast<int>(sizes.keys),
                             static_cast<int>(sizes.channels),
                             static_cast<int>(sizes.value_channels),
                             arithmetic_of<Math>()};
  auto params = matrices<MmaFwdParams<scalar_t>, scalar_t>(tensors);
  params.residual = output<scalar_t>("residual", tensors.residual);
  params.scale_log2 = static_cast<float>(scale * kLog2E);
  params.plan = plan_forward(shape, launch.shared_limit(), launch.multiprocessors());
  if (params.plan.warps == 0) {
    fail_argument(kFunction, "query",
                  "have channels that fit the " + std::to_string(launch.shared_limit()) +
                      " bytes of shared memory of a block",
                  shape_text(tensors.query.sizes()));
  }
  // Freed when this returns, and reused after the kernels: the allocator knows the stream.
  std::optional<Tensor> workspace;
  float* words = nullptr;
  if (params.plan.splits > 1) {
    workspace = torch::stable::new_empty(tensors.query, {workspace_words(shape, params.plan)},
                                         torch::headeronly::ScalarType::Float);
    words = kernel_output<float>("workspace", *workspace);
  }
  launch_oc_attention_mma_fwd<Math>(params, shape, words, launch);
}

}  // namespace

void oc_attention_fwd(Tensor query, std::optional<Tensor> key, Tensor value, double scale,
                      bool tf32, Tensor out, Tensor lse, std::optional<Tensor> residual) {
  const ForwardTensors tensors{query, key, value, out, lse, residual};
  const Sizes sizes = check_forward(tensors);
  dispatch_floating(query.scalar_type(), kFunction, "query", [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    if constexpr (std::is_same_v<scalar_t, double>) {
      auto params = matrices<FwdParams<double>, double>(tensors);
      params.scale = scale;
      launch_oc_attention_fwd(params, sizes.images, TensorLauncher(kFunction, query));
    } else if constexpr (std::is_same_v<scalar_t, float>) {
      if (tf32) {
        multiply_on_tensor_cores<TF32Math>(tensors, sizes, scale);
      } else {
        multiply_on_tensor_cores<SplitMath>(tensors, sizes, scale);
      }
    } else {
      multiply_on_tensor_cores<NarrowMath<scalar_t>>(tensors, sizes, scale);
    }
  });
}

}  // namespace ocnet
