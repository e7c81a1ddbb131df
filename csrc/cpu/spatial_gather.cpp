// SPDX-License-Identifier: MIT
// Host side of spatial gathering on the CPU: checks, then the passes.
#include "../spatial_gather.h"

#include "../common/checks.h"
#include "../common/dispatch.h"
#include "dispatch.h"
#include "spatial_gather_bwd.h"
#include "spatial_gather_fwd.h"

namespace ocnet {
namespace {

using torch::stable::Tensor;

constexpr int64_t kLargestSize = int64_t{1} << 30;

struct Checked {
  const char* function;
  const Tensor& features;
  const Tensor& logits;

  void matrix(const char* argument, int64_t tokens, int64_t channels, const Tensor& tensor) const {
    check_shape(function, argument, {features.size(0), tokens, channels}, tensor);
    check_dtype(function, argument, features.scalar_type(), tensor);
    check_same_device(function, argument, features, tensor);
  }
  void matrix(const char* argument, int64_t tokens, int64_t channels,
              const std::optional<Tensor>& tensor) const {
    if (tensor) matrix(argument, tokens, channels, *tensor);
  }
  int64_t positions() const { return features.size(1); }
  int64_t channels() const { return features.size(2); }
  int64_t regions() const { return logits.size(2); }
};

Checked check(const char* function, const Tensor& features, const Tensor& logits, const Tensor& out,
              const Tensor& lse, const std::optional<Tensor>& residual) {
  if (!features.is_cpu()) {
    fail_argument(function, "features", "be on the CPU", device_text(features));
  }
  check_dim(function, "features", 3, features);
  check_dim(function, "logits", 3, logits);
  check_sizes(function, "features", kLargestSize, features);
  check_sizes(function, "logits", kLargestSize, logits);
  const Checked checked{function, features, logits};
  checked.matrix("logits", checked.positions(), checked.regions(), logits);
  checked.matrix("out", checked.regions(), checked.channels(), out);
  checked.matrix("residual", checked.regions(), checked.channels(), residual);
  check_shape(function, "lse", {features.size(0), checked.regions()}, lse);
  check_dtype(function, "lse", accumulator_dtype(features.scalar_type()), lse);
  check_same_device(function, "lse", features, lse);
  check_contiguous(function, "lse", lse);
  return checked;
}

}  // namespace

void spatial_gather_fwd(Tensor features, Tensor logits, double scale, bool /*tf32*/, Tensor out,
                        Tensor lse, std::optional<Tensor> residual) {
  constexpr const char* kFunction = "spatial_gather_fwd";
  check(kFunction, features, logits, out, lse, residual);
  cpu::dispatch(kFunction, "features", features, [&](auto wide, auto element) {
    cpu::gather_forward<decltype(wide), decltype(element)>(features, logits, scale, out, lse,
                                                           residual);
  });
}

void spatial_gather_bwd(Tensor grad_out, Tensor features, Tensor logits, Tensor out, Tensor lse,
                        std::optional<Tensor> residual, double scale, bool /*tf32*/,
                        std::optional<Tensor> grad_features, std::optional<Tensor> grad_logits) {
  constexpr const char* kFunction = "spatial_gather_bwd";
  const Checked checked = check(kFunction, features, logits, out, lse, residual);
  checked.matrix("grad_out", checked.regions(), checked.channels(), grad_out);
  checked.matrix("grad_features", checked.positions(), checked.channels(), grad_features);
  checked.matrix("grad_logits", checked.positions(), checked.regions(), grad_logits);
  cpu::dispatch(kFunction, "features", features, [&](auto wide, auto element) {
    cpu::gather_backward<decltype(wide), decltype(element)>(
        grad_out, features, logits, out, lse, residual, scale, grad_features, grad_logits);
  });
}

}  // namespace ocnet
