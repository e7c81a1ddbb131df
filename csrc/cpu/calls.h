// SPDX-License-Identifier: MIT
// What the passes of attention are given: matrices of images, or of the groups of one shape.
#pragma once

#include <cstdint>
#include <optional>

#include "attention.h"
#include "matrix.h"
#include "runtime.h"

namespace ocnet::cpu {

inline int64_t batch_items(const Tensor& query, const Groups* groups) {
  return query.size(0) * (groups == nullptr ? 1 : groups->count());
}

// `like` tells workspaces where to be.
template <typename T, typename Element>
struct ForwardCall {
  Tensor like;
  int64_t batches;
  Matrices<const Element> query;
  std::optional<Matrices<const Element>> key;
  Matrices<const Element> value;
  T scale;
  Matrices<Element> out;
  Matrices<T> lse;
  std::optional<Matrices<Element>> residual;

  ForwardCall(const ForwardTensors& from, const Groups* groups)
      : like(from.query),
        batches(batch_items(from.query, groups)),
        query(matrices<const Element>(from.query, groups)),
        key(maybe_matrices<const Element>(from.key, groups)),
        value(matrices<const Element>(from.value, groups)),
        scale(static_cast<T>(from.scale)),
        out(matrices<Element>(from.out, groups)),
        lse(numbers<T>(from.lse, groups)),
        residual(maybe_matrices<Element>(from.residual, groups)) {}
};

template <typename T, typename Element>
struct BackwardCall {
  Tensor like;
  int64_t batches;
  Matrices<const Element> grad_out, query;
  std::optional<Matrices<const Element>> key;
  Matrices<const Element> value, out;
  Matrices<const T> lse;
  std::optional<Matrices<const Element>> residual;
  T scale;
  std::optional<Matrices<Element>> grad_query, grad_key, grad_value;

  BackwardCall(const BackwardTensors& from, const Groups* groups)
      : like(from.query),
        batches(batch_items(from.query, groups)),
        grad_out(matrices<const Element>(from.grad_out, groups)),
        query(matrices<const Element>(from.query, groups)),
        key(maybe_matrices<const Element>(from.key, groups)),
        value(matrices<const Element>(from.value, groups)),
        out(matrices<const Element>(from.out, groups)),
        lse(numbers<const T>(from.lse, groups)),
        residual(maybe_matrices<const Element>(from.residual, groups)),
        scale(static_cast<T>(from.scale)),
        grad_query(maybe_matrices<Element>(from.grad_query, groups)),
        grad_key(maybe_matrices<Element>(from.grad_key, groups)),
        grad_value(maybe_matrices<Element>(from.grad_value, groups)) {}

  bool with_gradient() const { return grad_query || grad_key; }
};

}  // namespace ocnet::cpu
