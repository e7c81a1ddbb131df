// SPDX-License-Identifier: MIT
// What kernels with a planted fault have in common. Without the fault, each doubles `data`.
//
// `fault: <mark>` in a comment marks a line that reports must name.
#pragma once

#include "common/device.cuh"
#include "common/tensor_map.h"
#include "probe.h"

namespace ocnet::probes::faults {

struct FaultParams {
  TensorMap data_map;  // of the kernels that copy boxes
  TensorMap result_map;
  const float* data;
  float* result;
  uint32_t* counter;  // 0 at first
  int elements;
  bool planted;
};

inline FaultParams fault_params(const ProbeCall& call) {
  FaultParams params{};
  params.data = call.buffer<float>(0);
  params.result = call.buffer<float>(1);
  params.counter = call.buffer<uint32_t>(2);
  params.elements = static_cast<int>(call.elements<float>(0));
  params.planted = call.arguments[0] != 0;
  return params;
}

// Buffers: data, result, a counter. Argument: whether the fault is planted.
template <void (*kKernel)(FaultParams), int kThreads, int kSharedBytes = 0, int kBlocks = 1,
          int kClusterBlocks = 1>
void run_fault(const ProbeCall& call) {
  call.launch(kKernel, Grid{kBlocks, kThreads, kSharedBytes, kClusterBlocks}, fault_params(call));
}

}  // namespace ocnet::probes::faults
