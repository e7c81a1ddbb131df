// SPDX-License-Identifier: MIT
#include "oc_attention.h"

#include "attention.h"

namespace ocnet {

void oc_attention_fwd(torch::stable::Tensor query, std::optional<torch::stable::Tensor> key,
                      torch::stable::Tensor value, double scale, bool /*tf32*/,
                      torch::stable::Tensor out, torch::stable::Tensor lse,
                      std::optional<torch::stable::Tensor> residual) {
  const cpu::ForwardTensors tensors{query, key, value, scale, out, lse, residual};
  cpu::check("oc_attention", tensors);
  cpu::forward(tensors);
}

void oc_attention_bwd(torch::stable::Tensor grad_out, torch::stable::Tensor query,
                      std::optional<torch::stable::Tensor> key, torch::stable::Tensor value,
                      torch::stable::Tensor out, torch::stable::Tensor lse,
                      std::optional<torch::stable::Tensor> residual, double scale, bool /*tf32*/,
                      std::optional<torch::stable::Tensor> grad_query,
                      std::optional<torch::stable::Tensor> grad_key,
                      std::optional<torch::stable::Tensor> grad_value) {
  const cpu::BackwardTensors tensors{grad_out, query, key,        value,    out,       lse,
                                     residual, scale, grad_query, grad_key, grad_value};
  cpu::check("oc_attention", tensors);
  cpu::backward(tensors);
}

}  // namespace ocnet
