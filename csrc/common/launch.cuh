// SPDX-License-Identifier: MIT
// Launching kernels on the caller's device and stream.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>

#include <cuda_runtime.h>

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/tensor.h>

namespace ocnet {

// Makes a tensor's device current for its lifetime and launches on the stream that torch has
// current there. Nothing waits for the device.
class CudaLauncher {
 public:
  CudaLauncher(const char* function, const torch::stable::Tensor& tensor)
      : function_(function), guard_(tensor.get_device_index()) {
    const int32_t device = tensor.get_device_index();
    void* stream = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
    stream_ = static_cast<cudaStream_t>(stream);
    check(cudaDeviceGetAttribute(&shared_limit_, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  }

  // Bytes of shared memory that a block may have once its kernel has opted in.
  size_t shared_limit() const { return static_cast<size_t>(shared_limit_); }

  template <typename Params>
  void operator()(void (*kernel)(Params), int64_t blocks, int threads, size_t shared_bytes,
                  const Params& params) const {
    if (blocks < 1 || blocks > std::numeric_limits<int32_t>::max()) {
      throw std::runtime_error(std::string(function_) +
                               ": the launch must have 1 to 2^31 - 1 blocks, got " +
                               std::to_string(blocks));
    }
    // Up to 48 KB needs no opting in.
    if (shared_bytes > 48 * 1024) {
      check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(shared_bytes)));
    }
    kernel<<<static_cast<unsigned>(blocks), static_cast<unsigned>(threads), shared_bytes,
             stream_>>>(params);
    check(cudaGetLastError());
  }

 private:
  void check(cudaError_t error) const {
    if (error != cudaSuccess) {
      throw std::runtime_error(std::string(function_) +
                               ": CUDA says: " + cudaGetErrorString(error));
    }
  }

  const char* function_;
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
  int shared_limit_ = 0;
};

}  // namespace ocnet
