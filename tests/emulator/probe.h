// SPDX-License-Identifier: MIT
// Little kernels that the tests run on the emulator and, where there is one, on a GPU.
#pragma once

#include <cstdint>

#include "common/launch.cuh"

namespace ocnet::probes {

// Buffers lie where the kernels can reach them; the tests and the probe agree on what they hold.
struct ProbeCall {
  void* const* buffers;
  const int64_t* bytes;
  const int64_t* arguments;
  const KernelLauncher& launch;

  template <typename T>
  T* buffer(int index) const {
    return static_cast<T*>(buffers[index]);
  }
  template <typename T>
  int64_t elements(int index) const {
    return bytes[index] / static_cast<int64_t>(sizeof(T));
  }
};

struct Probe {
  const char* name;
  void (*run)(const ProbeCall&);
};

}  // namespace ocnet::probes
