// SPDX-License-Identifier: MIT
// From a dtype known at run time to a storage type known at compile time.
#pragma once

#include <torch/headeronly/core/ScalarType.h>

#include "checks.h"
#include "math.h"

namespace ocnet {

template <typename T>
struct TypeTag {
  using type = T;
};

// Calls body(TypeTag<storage type>{}) for the four floating dtypes; a refusal names `argument`.
template <typename Body>
void dispatch_floating(torch::headeronly::ScalarType dtype, const char* function,
                       const char* argument, const Body& body) {
  using torch::headeronly::ScalarType;
  if (dtype == ScalarType::Float) {
    body(TypeTag<float>{});
  } else if (dtype == ScalarType::Double) {
    body(TypeTag<double>{});
  } else if (dtype == ScalarType::BFloat16) {
    body(TypeTag<BFloat16>{});
  } else if (dtype == ScalarType::Half) {
    body(TypeTag<Float16>{});
  } else {
    fail_argument(function, argument, "have dtype Float, Double, BFloat16 or Half",
                  torch::headeronly::toString(dtype));
  }
}

// The dtype of scores and sums.
inline torch::headeronly::ScalarType accumulator_dtype(torch::headeronly::ScalarType dtype) {
  using torch::headeronly::ScalarType;
  return dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

}  // namespace ocnet
