// SPDX-License-Identifier: MIT
#include "attention.h"

#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include "backward.h"
#include "dispatch.h"
#include "forward.h"

namespace ocnet::cpu {
namespace {

using torch::headeronly::ScalarType;

void check_matrix(const char* function, const Tensor& tensor, const Tensor& query, int64_t tokens,
                  int64_t channels, const char* name) {
  STD_TORCH_CHECK(
      tensor.dim() == 3 && tensor.size(0) == query.size(0) && tensor.size(1) == tokens &&
          tensor.size(2) == channels && tensor.scalar_type() == query.scalar_type() &&
          tensor.is_cpu(),
      function, ": ", name,
      " must be a CPU tensor (N, tokens, channels) of the query's dtype that fits the others");
}

void check_inputs(const char* function, const Tensor& query, const std::optional<Tensor>& key,
                  const Tensor& value, const Tensor& out, const Tensor& lse,
                  const std::optional<Tensor>& residual) {
  STD_TORCH_CHECK(query.dim() == 3 && value.dim() == 3, function,
                  ": query and value must have three dimensions");
  const int64_t streamed = key ? value.size(1) : query.size(1);
  check_matrix(function, query, query, query.size(1), query.size(2), "query");
  if (key) {
    check_matrix(function, *key, query, streamed, query.size(2), "key");
  }
  check_matrix(function, value, query, streamed, value.size(2), "value");
  check_matrix(function, out, query, query.size(1), value.size(2), "out");
  if (residual) {
    check_matrix(function, *residual, query, query.size(1), value.size(2), "residual");
  }
  const ScalarType wide =
      query.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  STD_TORCH_CHECK(lse.dim() == 2 && lse.size(0) == query.size(0) && lse.size(1) == query.size(1) &&
                      lse.scalar_type() == wide && lse.is_contiguous() && lse.is_cpu(),
                  function,
                  ": lse must be a contiguous CPU tensor (N, L), float64 for float64 and else "
                  "float32");
}

}  // namespace

void check(const char* function, const ForwardTensors& at) {
  check_inputs(function, at.query, at.key, at.value, at.out, at.lse, at.residual);
}

void check(const char* function, const BackwardTensors& at) {
  const Tensor &query = at.query, &value = at.value;
  check_inputs(function, query, at.key, value, at.out, at.lse, at.residual);
  check_matrix(function, at.grad_out, query, query.size(1), value.size(2), "grad_out");
  if (at.grad_query) {
    check_matrix(function, *at.grad_query, query, query.size(1), query.size(2), "grad_query");
  }
  if (at.grad_key) {
    STD_TORCH_CHECK(at.key.has_value(), function, ": grad_key must be absent without a key");
    check_matrix(function, *at.grad_key, query, value.size(1), query.size(2), "grad_key");
  }
  if (at.grad_value) {
    check_matrix(function, *at.grad_value, query, value.size(1), value.size(2), "grad_value");
  }
}

void forward(const ForwardTensors& tensors, const Groups* groups) {
  dispatch("oc_attention", "query", tensors.query, [&](auto wide, auto element) {
    forward(ForwardCall<decltype(wide), decltype(element)>(tensors, groups));
  });
}

void backward(const BackwardTensors& tensors, const Groups* groups) {
  dispatch("oc_attention", "query", tensors.query, [&](auto wide, auto element) {
    backward(BackwardCall<decltype(wide), decltype(element)>(tensors, groups));
  });
}

}  // namespace ocnet::cpu
