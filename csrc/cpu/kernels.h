// SPDX-License-Identifier: MIT
// The loops that take the time, once for every instruction set, chosen when the process runs.
//
// One tile holds the scores of kStream streamed tokens (rows) against kResident resident tokens
// (columns), so a column is one softmax row and its statistics sit side by side in vectors. The
// same tile read by columns is the left operand of the product that follows. All operands are
// packed (matrix.h).
#pragma once

#include <cstdint>

namespace ocnet::cpu {

// 96 and 192 are multiples of every register block below; three tiles, two accumulators and three
// resident blocks of 256 channels take 0.7 MB in fp32, so a core's second-level cache holds them
// with the streamed panels.
constexpr int64_t kResident = 96;
constexpr int64_t kStream = 192;

// One column panel of a backward tile. Resident tokens as queries have P = exp(s - lse[resident])
// and add P * (query_product - delta[resident]) to the result; as keys they have
// P' = exp(s - lse[streamed]) and add P' * (key_product - delta[streamed]). Tokens that attend to
// themselves are both.
template <typename T>
struct GradientTile {
  T* scores;         // in: scaled scores, out: P' where the resident tokens are keys
  T* query_product;  // in: <value streamed, grad_out resident>
  T* key_product;    // in: <grad_out streamed, value resident>
  T* result;         // out: gradient of the scaled scores; one of the two products
  const T* resident_lse;
  const T* resident_delta;
  const T* streamed_lse;
  const T* streamed_delta;
};

template <typename T>
struct Kernels {
  int rows;     // of a register block, and the width of a packed panel of a left operand
  int columns;  // of a register block, and the width of a packed panel of a right operand

  // tile[streamed][column panel] = scale * left * right over `depth` channels; `groups` register
  // blocks of streamed tokens. The scaled score is rounded here, once: scores, maxima and lse must
  // not differ by a fused rounding.
  void (*product)(const T* left, int64_t groups, const T* right, int64_t depth, T scale, T* tile);

  // output[row][column panel] = factor[row] * output + transpose(tile) * right over `depth`
  // streamed tokens.
  void (*accumulate)(const T* tile, int64_t groups, const T* right, int64_t depth, const T* factor,
                     T* output, int64_t output_stride);

  // result[column] = sum over `depth` of left * right for one panel of each.
  void (*dot)(const T* left, const T* right, int64_t depth, T* result);

  // One step of the running softmax for one column panel: scores become weights relative to the new
  // maximum, `sum` follows, and `factor` is what earlier accumulations must be multiplied by.
  void (*softmax)(T* tile, int64_t streamed, T* maximum, T* sum, T* factor);

  // One column panel: P' alone (for the value gradient), or with the gradients of the scores.
  void (*weights)(const GradientTile<T>& tile, int64_t streamed);
  void (*gradient_of_queries)(const GradientTile<T>& tile, int64_t streamed);
  void (*gradient_of_keys)(const GradientTile<T>& tile, int64_t streamed);
  void (*gradient_of_both)(const GradientTile<T>& tile, int64_t streamed);
};

// The widest set this processor runs. Defined for float and double.
template <typename T>
const Kernels<T>& kernels();

}  // namespace ocnet::cpu
