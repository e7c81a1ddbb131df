// SPDX-License-Identifier: MIT
// What the backward pass must know of every softmax row.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <optional>

#include "kernels.h"
#include "matrix.h"
#include "packed.h"
#include "runtime.h"

namespace ocnet::cpu {

// lse and delta = rowsum(grad_out * (out + residual)) of every query. Every batch item begins a new
// block, so that nobody reads what another task may be writing.
template <typename T, typename Element>
class RowStatistics {
 public:
  RowStatistics(const Matrices<const Element>& out,
                const std::optional<Matrices<const Element>>& residual,
                const Matrices<const Element>& grad_out, const Matrices<const T>& forward_lse,
                const torch::stable::Tensor& like, int64_t batches)
      : out_(out),
        residual_(residual),
        grad_out_(grad_out),
        given_(forward_lse),
        stride_(round_up(out.tokens, kResident)),
        lse_(like, batches * stride_),
        delta_(like, batches * stride_) {}

  // NaN where the forward row has no finite sum: every weight of such a row is NaN.
  T* lse(int64_t batch, int64_t token) const { return lse_.data() + batch * stride_ + token; }
  T* delta(int64_t batch, int64_t token) const { return delta_.data() + batch * stride_ + token; }

  int64_t scratch_size() const { return 3 * kMaxPanel * out_.channels; }

  // Computes the rows of `count` tokens; `start` is a multiple of a panel.
  void compute(int64_t batch, int64_t start, int64_t count, T* scratch) const {
    const int64_t end = start + count, columns = kernels<T>().columns;
    for (; start < end; start += columns) {
      panel(batch, start, std::min(columns, end - start), scratch);
    }
  }

 private:
  void panel(int64_t batch, int64_t start, int64_t used, T* left) const {
    const Kernels<T>& run = kernels<T>();
    const int64_t size = run.columns * out_.channels;
    T* const right = left + size;
    T* const rest = right + size;
    const TokenRange<const T> given(given_, batch, start);
    T* const target = lse(batch, start);
    for (int64_t token = 0; token < used; ++token) {
      const T value = given.source[given.steps[token]];
      target[token] = std::isfinite(value) ? value : std::numeric_limits<T>::quiet_NaN();
    }
    pack_by_token(run, grad_out_, batch, start, used, left);
    pack_by_token(run, out_, batch, start, used, right);
    if (residual_) {
      pack_by_token(run, *residual_, batch, start, used, rest);
      std::transform(right, right + size, rest, right, std::plus<T>());
    }
    T sums[kMaxPanel], nothing[kMaxPanel] = {};
    run.dot(left, right, out_.channels, sums);
    // An infinite gradient makes every score gradient of its row NaN in the plain formula: infinity
    // minus a sum with that infinity.
    for (int64_t at = 0; at < size; at += run.columns) {
      for (int column = 0; column < run.columns; ++column) {
        nothing[column] += left[at + column] - left[at + column];
      }
    }
    std::transform(sums, sums + used, nothing, delta(batch, start), std::plus<T>());
  }

  Matrices<const Element> out_;
  std::optional<Matrices<const Element>> residual_;
  Matrices<const Element> grad_out_;
  Matrices<const T> given_;
  int64_t stride_;
  Buffer<T> lse_, delta_;
};

}  // namespace ocnet::cpu
