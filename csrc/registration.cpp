// SPDX-License-Identifier: MIT
// Every native schema, one line each. Compiled once for the CPU library, once with USE_CUDA for the
// CUDA one, and once with OCNET_EMULATOR for the tests, which run the CUDA one's sources on the
// CPU. OCNET_HAS_HOPPER: there is code for compute capability 9.0's own instructions (sm_90a).
#include <torch/csrc/stable/library.h>

#include "inplace_abn.h"
#include "oc_attention.h"
#if defined(OCNET_HAS_HOPPER)
#include "oc_attention_hopper.h"
#include "oc_attention_hopper_bwd.h"
#endif
#include "partitioned_attention.h"
#include "spatial_gather.h"

#ifdef USE_CUDA
#define OCNET_NAMESPACE ocnet_cuda
#define OCNET_KEY CUDA
#elif defined(OCNET_EMULATOR)
#define OCNET_NAMESPACE ocnet_emulated
#define OCNET_KEY CPU
#else
#define OCNET_NAMESPACE ocnet_cpu
#define OCNET_KEY CPU
#endif

// clang-format off
STABLE_TORCH_LIBRARY(OCNET_NAMESPACE, m) {
  m.def("inplace_abn_stats(Tensor x, Tensor(a!) packed) -> ()");
  m.def("inplace_abn_fwd(Tensor x, Tensor? residual, Tensor? weight, Tensor? bias, Tensor? slope, Tensor? packed, Tensor? running_mean, Tensor? running_var, bool training, float momentum, float eps, float scale_eps, int activation, float param, bool signed_scale, Tensor(a!) out, Tensor(b!)? mean, Tensor(c!)? var, Tensor(d!)? new_mean, Tensor(e!)? new_var) -> ()");
  m.def("inplace_abn_bwd_reduce(Tensor out, Tensor? residual, Tensor grad_out, Tensor? weight, Tensor? bias, Tensor? slope, Tensor? count, float scale_eps, int activation, float param, bool signed_scale, Tensor(a!) sums, Tensor(b!)? grad_weight, Tensor(c!)? grad_bias, Tensor(d!)? grad_slope) -> ()");
  m.def("inplace_abn_bwd_apply(Tensor out, Tensor? residual, Tensor grad_out, Tensor? weight, Tensor? bias, Tensor? slope, Tensor var, Tensor? sums, Tensor? count, float eps, float scale_eps, int activation, float param, bool signed_scale, Tensor(a!)? grad_x, Tensor(b!)? grad_residual) -> ()");
  m.def("inplace_abn_bwd(Tensor out, Tensor? residual, Tensor grad_out, Tensor? weight, Tensor? bias, Tensor? slope, Tensor var, bool training, float eps, float scale_eps, int activation, float param, bool signed_scale, Tensor(a!)? grad_x, Tensor(b!)? grad_residual, Tensor(c!)? grad_weight, Tensor(d!)? grad_bias, Tensor(e!)? grad_slope) -> ()");
  m.def("oc_attention_fwd(Tensor query, Tensor? key, Tensor value, float scale, bool tf32, Tensor(a!) out, Tensor(b!) lse, Tensor(c!)? residual) -> ()");
  m.def("oc_attention_bwd(Tensor grad_out, Tensor query, Tensor? key, Tensor value, Tensor out, Tensor lse, Tensor? residual, float scale, bool tf32, Tensor(a!)? grad_query, Tensor(b!)? grad_key, Tensor(c!)? grad_value) -> ()");
#if defined(OCNET_HAS_HOPPER)
  m.def("oc_attention_hopper_fwd(Tensor query, Tensor? key, Tensor value, float scale, Tensor(a!) out, Tensor(b!) lse, Tensor(c!)? residual) -> ()");
  m.def("oc_attention_hopper_bwd(Tensor grad_out, Tensor query, Tensor? key, Tensor value, Tensor out, Tensor lse, Tensor? residual, float scale, Tensor(a!)? grad_query, Tensor(b!)? grad_key, Tensor(c!)? grad_value) -> ()");
  m.def("partitioned_attention_hopper_fwd(Tensor[] query, Tensor[] key, Tensor[] value, int[] partition, float scale, Tensor(a!)[] out, Tensor(b!)[] lse, Tensor(c!)[] residual) -> ()");
  m.def("partitioned_attention_hopper_bwd(Tensor[] grad_out, Tensor[] query, Tensor[] key, Tensor[] value, Tensor[] out, Tensor[] lse, Tensor[] residual, int[] partition, float scale, Tensor(a!)[] grad_query, Tensor(b!)[] grad_key, Tensor(c!)[] grad_value) -> ()");
#endif
  m.def("partitioned_attention_fwd(Tensor[] query, Tensor[] key, Tensor[] value, int[] partition, float scale, bool tf32, Tensor(a!)[] out, Tensor(b!)[] lse, Tensor(c!)[] residual) -> ()");
  m.def("partitioned_attention_bwd(Tensor[] grad_out, Tensor[] query, Tensor[] key, Tensor[] value, Tensor[] out, Tensor[] lse, Tensor[] residual, int[] partition, float scale, bool tf32, Tensor(a!)[] grad_query, Tensor(b!)[] grad_key, Tensor(c!)[] grad_value) -> ()");
  m.def("spatial_gather_fwd(Tensor features, Tensor logits, float scale, bool tf32, Tensor(a!) out, Tensor(b!) lse, Tensor(c!)? residual) -> ()");
  m.def("spatial_gather_bwd(Tensor grad_out, Tensor features, Tensor logits, Tensor out, Tensor lse, Tensor? residual, float scale, bool tf32, Tensor(a!)? grad_features, Tensor(b!)? grad_logits) -> ()");
}
// clang-format on

STABLE_TORCH_LIBRARY_IMPL(OCNET_NAMESPACE, OCNET_KEY, m) {
  m.impl("inplace_abn_stats", TORCH_BOX(&ocnet::inplace_abn_stats));
  m.impl("inplace_abn_fwd", TORCH_BOX(&ocnet::inplace_abn_fwd));
  m.impl("inplace_abn_bwd_reduce", TORCH_BOX(&ocnet::inplace_abn_bwd_reduce));
  m.impl("inplace_abn_bwd_apply", TORCH_BOX(&ocnet::inplace_abn_bwd_apply));
  m.impl("inplace_abn_bwd", TORCH_BOX(&ocnet::inplace_abn_bwd));
  m.impl("oc_attention_fwd", TORCH_BOX(&ocnet::oc_attention_fwd));
  m.impl("oc_attention_bwd", TORCH_BOX(&ocnet::oc_attention_bwd));
#if defined(OCNET_HAS_HOPPER)
  m.impl("oc_attention_hopper_fwd", TORCH_BOX(&ocnet::oc_attention_hopper_fwd));
  m.impl("oc_attention_hopper_bwd", TORCH_BOX(&ocnet::oc_attention_hopper_bwd));
  m.impl("partitioned_attention_hopper_fwd", TORCH_BOX(&ocnet::partitioned_attention_hopper_fwd));
  m.impl("partitioned_attention_hopper_bwd", TORCH_BOX(&ocnet::partitioned_attention_hopper_bwd));
#endif
  m.impl("partitioned_attention_fwd", TORCH_BOX(&ocnet::partitioned_attention_fwd));
  m.impl("partitioned_attention_bwd", TORCH_BOX(&ocnet::partitioned_attention_bwd));
  m.impl("spatial_gather_fwd", TORCH_BOX(&ocnet::spatial_gather_fwd));
  m.impl("spatial_gather_bwd", TORCH_BOX(&ocnet::spatial_gather_bwd));
}
