// SPDX-License-Identifier: MIT
// Host side of spatial gathering on CUDA: checks, workspace, launches. Kernels are in the .cuh
// files. 16-bit numbers go through the tensor cores, fp32 where TF32 is allowed too; strict fp32
// and fp64 through the other kernels.
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <type_traits>

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "common/dispatch.h"
#include "common/token_tensors.h"
#include "spatial_gather.h"
#include "spatial_gather_bwd.cuh"
#include "spatial_gather_fwd.cuh"
#include "spatial_gather_mma.cuh"

namespace ocnet {
namespace {

// How a storage type is multiplied on tensor cores; void where it is not.
template <typename scalar_t>
struct MathOf {
  using type = NarrowMath<scalar_t>;
};
template <>
struct MathOf<float> {
  using type = TF32Math;
};
template <>
struct MathOf<double> {
  using type = void;
};

template <typename scalar_t>
bool on_tensor_cores(bool tf32) {
  return sizeof(scalar_t) == 2 || (sizeof(scalar_t) == 4 && tf32);
}

void check_gather(const char* function, const Tensor& features, const Tensor& logits,
                  const Tensor& out, const std::optional<Tensor>& residual, const Tensor& lse) {
  check_on_device(function, "features", features);
  check_dim(function, "features", 3, features);
  check_dim(function, "logits", 3, logits);
  check_sizes(function, "features", kLargestSize, features);
  check_sizes(function, "logits", kLargestSize, logits);
  const int64_t images = features.size(0), regions = logits.size(2), channels = features.size(2);
  check_matrix(function, "logits", features, {images, features.size(1), regions}, logits);
  check_matrix(function, "out", features, {images, regions, channels}, out);
  if (residual.has_value()) {
    check_matrix(function, "residual", features, {images, regions, channels}, *residual);
  }
  check_shape(function, "lse", {images, regions}, lse);
  check_dtype(function, "lse", accumulator_dtype(features.scalar_type()), lse);
  check_same_device(function, "lse", features, lse);
  check_contiguous(function, "lse", lse);
}

}  // namespace

void spatial_gather_fwd(Tensor features, Tensor logits, double scale, bool tf32, Tensor out,
                        Tensor lse, std::optional<Tensor> residual) {
  constexpr const char* kFunction = "spatial_gather_fwd";
  check_gather(kFunction, features, logits, out, residual, lse);
  dispatch_floating(features.scalar_type(), kFunction, "features", [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    using acc_t = accumulator_t<scalar_t>;
    using Math = typename MathOf<scalar_t>::type;
    const int64_t images = features.size(0);
    const bool mma = on_tensor_cores<scalar_t>(tf32);
    GatherFwdParams<scalar_t> params;
    params.features = input<scalar_t>("features", features);
    params.logits = input<scalar_t>("logits", logits);
    params.scale = static_cast<acc_t>(scale);
    const int regions = params.logits.channels, channels = params.features.channels;
    int64_t slices =
        static_cast<int64_t>(Tile<acc_t>::chunks(regions)) * Tile<acc_t>::chunks(channels);
    if constexpr (!std::is_void_v<Math>) {
      if (mma) slices = gather_mma_slices<Math>(regions, channels);
    }
    auto& partial = params.partial;
    partial.parts = gather_parts(images, params.features.tokens, slices,
                                 mma ? kGatherPositions : Tile<acc_t>::kSide, &partial.length);
    const auto workspace = [&](std::initializer_list<int64_t> shape) {
      return torch::stable::new_empty(features, shape, accumulator_dtype(features.scalar_type()));
    };
    const Tensor sums = workspace({images, partial.parts, regions, channels});
    const Tensor maxima = workspace({images, partial.parts, regions});
    const Tensor totals = workspace({images, partial.parts, regions});
    partial.sums = kernel_output<acc_t>("sums", sums);
    partial.maxima = kernel_output<acc_t>("maxima", maxima);
    partial.totals = kernel_output<acc_t>("totals", totals);
    GatherCombineParams<scalar_t> combine;
    combine.out = output<scalar_t>("out", out);
    combine.residual = output<scalar_t>("residual", residual);
    combine.lse = kernel_output<acc_t>("lse", lse);

    const TensorLauncher launch(kFunction, features);
    if constexpr (!std::is_void_v<Math>) {
      if (mma) {
        check_aligned_rows(kFunction, "features", features);
        partial.natural = kLn2;
        launch_spatial_gather_mma_fwd<Math>(params, images, launch);
      }
    }
    if constexpr (sizeof(scalar_t) >= 4) {
      if (!mma) launch_spatial_gather_fwd(params, images, launch);
    }
    combine.partial = partial;
    launch_spatial_gather_combine(combine, images, launch);
  });
}

void spatial_gather_bwd(Tensor grad_out, Tensor features, Tensor logits, Tensor out, Tensor lse,
                        std::optional<Tensor> residual, double scale, bool tf32,
                        std::optional<Tensor> grad_features, std::optional<Tensor> grad_logits) {
  constexpr const char* kFunction = "spatial_gather_bwd";
  check_gather(kFunction, features, logits, out, residual, lse);
  const int64_t images = features.size(0);
  const auto check = [&](const char* argument, int64_t tokens, int64_t channels,
                         const std::optional<Tensor>& tensor) {
    if (tensor.has_value()) {
      check_matrix(kFunction, argument, features, {images, tokens, channels}, *tensor);
    }
  };
  check("grad_out", logits.size(2), features.size(2), grad_out);
  check("grad_features", features.size(1), features.size(2), grad_features);
  check("grad_logits", features.size(1), logits.size(2), grad_logits);

  dispatch_floating(features.scalar_type(), kFunction, "features", [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    using acc_t = accumulator_t<scalar_t>;
    using Math = typename MathOf<scalar_t>::type;
    const bool mma = on_tensor_cores<scalar_t>(tf32);
    const TensorLauncher launch(kFunction, features);
    const Tensor delta = torch::stable::empty_like(lse);
    GatherBwdParams<scalar_t> params;
    params.grad_out = input<scalar_t>("grad_out", grad_out);
    params.features = input<scalar_t>("features", features);
    params.logits = input<scalar_t>("logits", logits);
    params.out = input<scalar_t>("out", out);
    params.residual = input<scalar_t>("residual", residual);
    params.lse = kernel_input<acc_t>("lse", lse);
    params.delta = kernel_output<acc_t>("delta", delta);
    params.scale = static_cast<acc_t>(scale);
    params.tf32 = mma && sizeof(scalar_t) == 4;
    params.grad_features = output<scalar_t>("grad_features", grad_features);
    params.grad_logits = output<scalar_t>("grad_logits", grad_logits);
    if (grad_logits.has_value()) launch_spatial_gather_delta(params, images, launch);
    if constexpr (!std::is_void_v<Math>) {
      if (mma) {
        check_aligned_rows(kFunction, "features", features);
        check_aligned_rows(kFunction, "grad_out", grad_out);
        launch_spatial_gather_mma_bwd<Math>(params, images, launch);
      }
    }
    if constexpr (sizeof(scalar_t) >= 4) {
      if (!mma) launch_spatial_gather_bwd(params, images, launch);
    }
  });
}

}  // namespace ocnet
