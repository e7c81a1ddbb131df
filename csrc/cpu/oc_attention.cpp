// SPDX-License-Identifier: MIT
#include "oc_attention.h"

#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include "backward.h"
#include "forward.h"

namespace ocnet {
namespace cpu {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

void check_matrix(const Tensor& tensor, const Tensor& query, int64_t tokens, int64_t channels,
                  const char* name) {
  STD_TORCH_CHECK(
      tensor.dim() == 3 && tensor.size(0) == query.size(0) && tensor.size(1) == tokens &&
          tensor.size(2) == channels && tensor.scalar_type() == query.scalar_type() &&
          tensor.is_cpu(),
      "oc_attention: ", name,
      " must be a CPU tensor (N, tokens, channels) of the query's dtype that fits the others");
}

void check(const Tensor& query, const std::optional<Tensor>& key, const Tensor& value,
           const Tensor& out, const Tensor& lse, const std::optional<Tensor>& residual) {
  STD_TORCH_CHECK(query.dim() == 3 && value.dim() == 3,
                  "oc_attention: query and value must have three dimensions");
  const int64_t streamed = key ? value.size(1) : query.size(1);
  check_matrix(query, query, query.size(1), query.size(2), "query");
  if (key) {
    check_matrix(*key, query, streamed, query.size(2), "key");
  }
  check_matrix(value, query, streamed, value.size(2), "value");
  check_matrix(out, query, query.size(1), value.size(2), "out");
  if (residual) {
    check_matrix(*residual, query, query.size(1), value.size(2), "residual");
  }
  const ScalarType wide =
      query.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  STD_TORCH_CHECK(lse.dim() == 2 && lse.size(0) == query.size(0) && lse.size(1) == query.size(1) &&
                      lse.scalar_type() == wide && lse.is_contiguous() && lse.is_cpu(),
                  "oc_attention: lse must be a contiguous CPU tensor (N, L), float64 for float64 "
                  "and else float32");
}

// Calls run(T{}, Element{}) for the type of the sums and the type in memory.
template <typename Run>
void dispatch(ScalarType type, const Run& run) {
  switch (type) {
    case ScalarType::Float:
      return run(float{}, float{});
    case ScalarType::Double:
      return run(double{}, double{});
    case ScalarType::BFloat16:
      return run(float{}, c10::BFloat16{});
    case ScalarType::Half:
      return run(float{}, c10::Half{});
    default:
      STD_TORCH_CHECK(false, "oc_attention: query must be float32, float64, bfloat16 or float16");
  }
}

}  // namespace
}  // namespace cpu

void oc_attention_fwd(torch::stable::Tensor query, std::optional<torch::stable::Tensor> key,
                      torch::stable::Tensor value, double scale, bool /*tf32*/,
                      torch::stable::Tensor out, torch::stable::Tensor lse,
                      std::optional<torch::stable::Tensor> residual) {
  cpu::check(query, key, value, out, lse, residual);
  cpu::dispatch(query.scalar_type(), [&](auto wide, auto element) {
    cpu::forward<decltype(wide), decltype(element)>(query, key, value, scale, out, lse, residual);
  });
}

void oc_attention_bwd(torch::stable::Tensor grad_out, torch::stable::Tensor query,
                      std::optional<torch::stable::Tensor> key, torch::stable::Tensor value,
                      torch::stable::Tensor out, torch::stable::Tensor lse,
                      std::optional<torch::stable::Tensor> residual, double scale, bool /*tf32*/,
                      std::optional<torch::stable::Tensor> grad_query,
                      std::optional<torch::stable::Tensor> grad_key,
                      std::optional<torch::stable::Tensor> grad_value) {
  cpu::check(query, key, value, out, lse, residual);
  cpu::check_matrix(grad_out, query, query.size(1), value.size(2), "grad_out");
  if (grad_query) {
    cpu::check_matrix(*grad_query, query, query.size(1), query.size(2), "grad_query");
  }
  if (grad_key) {
    STD_TORCH_CHECK(key.has_value(), "oc_attention: grad_key must be absent without a key");
    cpu::check_matrix(*grad_key, query, value.size(1), query.size(2), "grad_key");
  }
  if (grad_value) {
    cpu::check_matrix(*grad_value, query, value.size(1), value.size(2), "grad_value");
  }
  cpu::dispatch(query.scalar_type(), [&](auto wide, auto element) {
    cpu::backward<decltype(wide), decltype(element)>(
        grad_out, query, key, value, out, lse, residual, scale, grad_query, grad_key, grad_value);
  });
}

}  // namespace ocnet
