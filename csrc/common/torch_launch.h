// SPDX-License-Identifier: MIT
// Tensors handed to kernels, and launches where torch would launch: on the device of a tensor, on
// the stream that is current there.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/tensor.h>

#include "checks.h"
#include "launch.cuh"

namespace ocnet {

#if defined(__CUDACC__)

inline void check_on_device(const char* function, const char* argument,
                            const torch::stable::Tensor& tensor) {
  if (!tensor.is_cuda()) {
    fail_argument(function, argument, "be on a CUDA device", device_text(tensor));
  }
}

// 10 * major + minor of a tensor's device.
inline int compute_capability(const torch::stable::Tensor& tensor) {
  int major = 0;
  int minor = 0;
  const int device = tensor.get_device_index();
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  return 10 * major + minor;
}

inline cudaStream_t current_stream(int32_t device) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  return static_cast<cudaStream_t>(stream);
}

// Makes a tensor's device current for its lifetime.
class TensorLauncher {
 public:
  TensorLauncher(const char* function, const torch::stable::Tensor& tensor)
      : guard_(tensor.get_device_index()),
        launch_(function, current_stream(tensor.get_device_index())) {}

  size_t shared_limit() const { return launch_.shared_limit(); }
  int multiprocessors() const { return launch_.multiprocessors(); }
  bool has_clusters() const { return launch_.has_clusters(); }
  template <typename Params>
  void operator()(void (*kernel)(Params), const Grid& grid, const Params& params) const {
    launch_(kernel, grid, params);
  }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  KernelLauncher launch_;
};

// What kernels read of a tensor, and what they write.
template <typename T>
const T* kernel_input(const char*, const torch::stable::Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}
template <typename T>
T* kernel_output(const char*, const torch::stable::Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

#else

inline void check_on_device(const char* function, const char* argument,
                            const torch::stable::Tensor& tensor) {
  if (!tensor.is_cpu()) {
    fail_argument(function, argument, "be on the CPU, where the emulator runs",
                  device_text(tensor));
  }
}

inline int compute_capability(const torch::stable::Tensor&) {
  return emulator::has_clusters() ? 90 : 80;
}

// Forgets the tensors of a call when it ends.
class TensorLauncher : public KernelLauncher {
 public:
  TensorLauncher(const char* function, const torch::stable::Tensor&) : KernelLauncher(function) {}
  TensorLauncher(const TensorLauncher&) = delete;
  TensorLauncher& operator=(const TensorLauncher&) = delete;
  ~TensorLauncher() { emulator::detach_all(); }
};

// Bytes from the first to the last element: strides are not negative in torch.
inline size_t spanned_bytes(const torch::stable::Tensor& tensor, size_t element_bytes) {
  int64_t last = 0;
  for (int64_t axis = 0; axis < tensor.dim(); ++axis) {
    if (tensor.size(axis) == 0) return 0;
    last += (tensor.size(axis) - 1) * tensor.stride(axis);
  }
  return static_cast<size_t>(last + 1) * element_bytes;
}

template <typename T>
const T* kernel_input(const char* name, const torch::stable::Tensor& tensor) {
  const void* const data = tensor.const_data_ptr();
  emulator::attach(name, data, spanned_bytes(tensor, sizeof(T)), false);
  return static_cast<const T*>(data);
}
template <typename T>
T* kernel_output(const char* name, const torch::stable::Tensor& tensor) {
  void* const data = tensor.mutable_data_ptr();
  emulator::attach(name, data, spanned_bytes(tensor, sizeof(T)), true);
  return static_cast<T*>(data);
}

#endif

}  // namespace ocnet
