// SPDX-License-Identifier: MIT
// From a dtype known at run time to the types of the passes.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "../common/checks.h"

namespace ocnet::cpu {

// Calls run(T{}, Element{}) for the type of the sums and the type in memory; a refusal names
// `argument`.
template <typename Run>
void dispatch(const char* function, const char* argument, const torch::stable::Tensor& tensor,
              const Run& run) {
  using torch::headeronly::ScalarType;
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return run(float{}, float{});
    case ScalarType::Double:
      return run(double{}, double{});
    case ScalarType::BFloat16:
      return run(float{}, c10::BFloat16{});
    case ScalarType::Half:
      return run(float{}, c10::Half{});
    default:
      fail_argument(function, argument, "have dtype Float, Double, BFloat16 or Half",
                    torch::headeronly::toString(tensor.scalar_type()));
  }
}

}  // namespace ocnet::cpu
