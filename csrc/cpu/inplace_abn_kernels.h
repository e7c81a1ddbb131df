// SPDX-License-Identifier: MIT
// The loops of activated batch norm that take the time, once for every instruction set, chosen when
// the process runs.
#pragma once

#include <cstdint>

namespace ocnet::cpu {

// Those that kernels know: the identity is a leaky ReLU of slope 1.
enum AbnActivation : int {
  kLeakyRelu,
  kElu,
  kRelu,           // has no inverse: not for kCentred
  kSlopeGradient,  // a leaky ReLU, and the gradient of its slope: for kSums only
};

// What a backward pass does with a number of the map, besides writing dy where it is wanted.
enum AbnBackward : int {
  kSums,     // adds up S, T and the gradient of the slope; writes A * dy where it is wanted
  kCentred,  // writes A * dy + B * yc + K
  kScaled,   // writes A * dy where it is wanted
};

// Kinds of sums of a backward pass: S, T, and the gradient of the slope.
constexpr int kAbnSums = 3;

// Room that vectors of values for `channels` channels take: kernels read and add a few beyond.
constexpr int64_t abn_padded(int64_t channels) { return (channels + 31) / 32 * 32 + 32; }

// What is the same for a whole channel. From a pointer, kernels for planes read one number, those
// for rows one for each column.
template <typename T>
struct AbnChannels {
  T *mean, *factor, *bias, *slope;  // forward: y = factor * (x - mean) + bias
  T *inverse_slope, *bound;         // of yc
  T *of_dy, *of_centred, *offset;   // A, B, K
};

// Lines of a map: parts of the planes of one channel, or of rows. nullptr stands for what is not
// there or not wanted.
template <typename T, typename Element>
struct AbnBlock {
  const Element *map, *residual, *grad_out;  // the map is x in forward, z in backward
  Element *target, *grad_residual;
  int64_t lines, stride, length;
  AbnChannels<T> channels;
  T alpha, alpha_floor;  // scale of ELU, and the least z / alpha that is taken to be so
  double* sums;          // added to: those of the first kind, then of the next
  int64_t sums_stride;
  T* scratch;        // of a worker: 1 + kAbnSums vectors of abn_padded(length) where lines are rows
  bool past_caches;  // whether what is written goes to memory at once; whole cache lines only
};

template <typename T, typename Element>
struct AbnKernels {
  using Run = void (*)(const AbnBlock<T, Element>&);

  // Writes to `sums` the means of the block, and the sums of squared deviations from them.
  Run moments;
  Run normalise[3];
  Run backward[3][4];
};

// For the widest set this processor runs.
template <typename T, typename Element>
const AbnKernels<T, Element>& abn_kernels(bool rows);

}  // namespace ocnet::cpu
