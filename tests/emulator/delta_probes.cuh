// SPDX-License-Identifier: MIT
// Probes of what the backward of attention computes of each query.
#pragma once

#include "oc_attention_delta.cuh"
#include "probe.h"

namespace ocnet::probes {

// Buffers: grad_out, out and residual (images, tokens, channels), lse (images, tokens), numbers
// (images, pitch). Arguments: images, tokens, channels, pitch.
template <typename T>
void run_row_numbers(const ProbeCall& call) {
  const int images = static_cast<int>(call.arguments[0]);
  const int tokens = static_cast<int>(call.arguments[1]);
  const int channels = static_cast<int>(call.arguments[2]);
  const int pitch = static_cast<int>(call.arguments[3]);
  const auto matrix = [&](int buffer) {
    return TokenMatrix<const T>{
        call.buffer<const T>(buffer), int64_t{tokens} * channels, channels, 1, tokens, channels};
  };
  DeltaParams<T> params;
  params.tf32 = false;
  params.stages[0] = {matrix(0),
                      matrix(1),
                      matrix(2),
                      nullptr,
                      call.buffer<const float>(3),
                      call.buffer<RowNumbers>(4),
                      pitch};
  params.work = list_work({{images, one_group(pitch), 0}});
  launch_oc_attention_bwd_delta(params, call.launch);
}

constexpr Probe kDeltaProbes[] = {
    {"row_numbers_bfloat16", run_row_numbers<BFloat16>},
    {"row_numbers_float16", run_row_numbers<Float16>},
};

}  // namespace ocnet::probes
