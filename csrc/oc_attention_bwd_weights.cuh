// SPDX-License-Identifier: MIT
// What the tensor-core kernels of the backward share.
#pragma once

#include "common/math.h"

namespace ocnet {
namespace bwd {

// Powers of two that P' is multiplied by, and grad_value divided: P' is at most 1, and with many
// keys it would lie among the subnormals of Float16.
template <typename storage_t>
struct WeightShift {
  static constexpr float kBits = 0;
  static constexpr float kInverse = 1;
};
template <>
struct WeightShift<Float16> {
  static constexpr float kBits = 15;
  static constexpr float kInverse = 0x1p-15f;
};

// Four neighbouring sums of a thread: one access to shared memory.
struct alignas(16) Quad {
  float at[4];
};

}  // namespace bwd
}  // namespace ocnet
