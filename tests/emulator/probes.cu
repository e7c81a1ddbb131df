// SPDX-License-Identifier: MIT
// The probes for a GPU: a library with a plain C interface, which device.py builds and loads.
#include <cstdint>
#include <cstdio>
#include <exception>
#include <stdexcept>
#include <string>
#include <vector>

#include <cuda_runtime.h>

#include "delta_probes.cuh"
#include "mma_tile_probes.cuh"
#include "primitive_probes_copies.cuh"
#include "primitive_probes_matrix.cuh"
#include "primitive_probes_tensor.cuh"
#include "primitive_probes_threads.cuh"
#include "primitive_probes_wgmma.cuh"
#include "probe_tables.h"
#include "tiled_product.cuh"

namespace ocnet::probes {
namespace {

void check(const char* what, cudaError_t error) {
  if (error != cudaSuccess) {
    throw std::runtime_error(std::string(what) + ": CUDA says: " + cudaGetErrorString(error));
  }
}

// A copy of an array of the caller in the memory of the device.
class DeviceBuffer {
 public:
  DeviceBuffer(void* host, int64_t bytes) : host_(host), bytes_(static_cast<size_t>(bytes)) {
    check("cudaMalloc", cudaMalloc(&device_, bytes_));
    check("copy to the device", cudaMemcpy(device_, host_, bytes_, cudaMemcpyHostToDevice));
  }
  DeviceBuffer(DeviceBuffer&& other) noexcept
      : host_(other.host_), device_(other.device_), bytes_(other.bytes_) {
    other.device_ = nullptr;
  }
  ~DeviceBuffer() { cudaFree(device_); }

  void* device() const { return device_; }
  void copy_back() const {
    check("copy from the device", cudaMemcpy(host_, device_, bytes_, cudaMemcpyDeviceToHost));
  }

 private:
  void* host_;
  void* device_ = nullptr;
  size_t bytes_;
};

const Probe& find(const char* name) {
  const Probe* const probe =
      find_in_tables(name, kThreadProbes, kMatrixProbes, kCopyProbes, kTensorProbes, kWgmmaProbes,
                     kTiledProductProbes, kMmaTileProbes, kDeltaProbes);
  if (probe == nullptr) throw std::runtime_error(std::string("no probe is called ") + name);
  return *probe;
}

void require_device() {
  int devices = 0;
  check("no CUDA device", cudaGetDeviceCount(&devices));
  if (devices == 0) throw std::runtime_error("no CUDA device");
}

void run(const char* name, int count, void* const* host, const int64_t* bytes,
         const int32_t* writable, const int64_t* arguments) {
  const Probe& probe = find(name);
  require_device();
  std::vector<DeviceBuffer> buffers;
  std::vector<void*> pointers;
  for (int i = 0; i < count; ++i) {
    buffers.emplace_back(host[i], bytes[i]);
    pointers.push_back(buffers.back().device());
  }
  const KernelLauncher launch(probe.name, nullptr);
  probe.run({pointers.data(), bytes, arguments, launch});
  check(name, cudaDeviceSynchronize());
  for (int i = 0; i < count; ++i) {
    if (writable[i] != 0) buffers[static_cast<size_t>(i)].copy_back();
  }
}

// Null, or what went wrong, in words; valid until the next call.
template <typename Body>
const char* in_words(const Body& body) {
  static std::string words;
  try {
    body();
    return nullptr;
  } catch (const std::exception& error) {
    words = error.what();
    return words.c_str();
  }
}

}  // namespace
}  // namespace ocnet::probes

#define OCNET_EXPORTED __attribute__((visibility("default")))

extern "C" {

OCNET_EXPORTED
const char* ocnet_run_probe(const char* name, int count, void* const* host, const int64_t* bytes,
                            const int32_t* writable, const int64_t* arguments) {
  using namespace ocnet::probes;
  return in_words([&] { run(name, count, host, bytes, writable, arguments); });
}

// Writes name and compute capability of the device, as "NVIDIA H200, 9.0".
OCNET_EXPORTED
const char* ocnet_describe_device(char* text, int64_t bytes) {
  using namespace ocnet::probes;
  return in_words([&] {
    require_device();
    cudaDeviceProp facts;
    check("cudaGetDeviceProperties", cudaGetDeviceProperties(&facts, 0));
    std::snprintf(text, static_cast<size_t>(bytes), "%s, %d.%d", facts.name, facts.major,
                  facts.minor);
  });
}

}  // extern "C"
