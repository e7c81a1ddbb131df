// SPDX-License-Identifier: MIT
// Launching kernels on a stream. No torch headers; nothing waits for the device.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#else
#include "emulation.h"
#include "host_device.h"
#endif

namespace ocnet {

struct Grid {
  int64_t blocks;
  int threads;
  size_t shared_bytes = 0;
  int cluster_blocks = 1;  // blocks that run together (sm_90); divides `blocks`
  // May begin before the launch before it has ended (ptx/dependent_launch.cuh); from sm_90 on.
  bool programmatic = false;
};

inline void check_grid(const char* function, const Grid& grid) {
  if (grid.blocks < 1 || grid.blocks > std::numeric_limits<int32_t>::max()) {
    throw std::runtime_error(std::string(function) +
                             ": the launch must have 1 to 2^31 - 1 blocks, got " +
                             std::to_string(grid.blocks));
  }
}

// Bytes of parameters that a kernel may have with drivers older than 530.
constexpr size_t kMostParameterBytes = 4096;

#if !defined(__CUDACC__)
// What an emulated thread runs; its parameters are the host's to hand over.
template <typename Params>
struct KernelCall {
  void (*kernel)(Params);
  const Params* params;
};
template <typename Params>
OCNET_EMULATED void run_kernel(const void* context) {
  const auto& call = *static_cast<const KernelCall<Params>*>(context);
  call.kernel(*call.params);
}
#endif

// Launches on one stream of the current device: launch(kernel, grid, params).
class KernelLauncher {
 public:
#if defined(__CUDACC__)

  KernelLauncher(const char* function, cudaStream_t stream) : function_(function), stream_(stream) {
    int device = 0;
    int limit = 0;
    check(cudaGetDevice(&device));
    check(cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
    shared_limit_ = static_cast<size_t>(limit);
    check(cudaDeviceGetAttribute(&multiprocessors_, cudaDevAttrMultiProcessorCount, device));
    int clusters = 0;
    check(cudaDeviceGetAttribute(&clusters, cudaDevAttrClusterLaunch, device));
    has_clusters_ = clusters != 0;
  }

  template <typename Params>
  void operator()(void (*kernel)(Params), const Grid& grid, const Params& params) const {
    static_assert(sizeof(Params) <= kMostParameterBytes, "parameters are passed by value");
    check_grid(function_, grid);
    // Up to 48 KB needs no opting in.
    if (grid.shared_bytes > 48 * 1024) {
      check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(grid.shared_bytes)));
    }
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(static_cast<unsigned>(grid.blocks));
    config.blockDim = dim3(static_cast<unsigned>(grid.threads));
    config.dynamicSmemBytes = grid.shared_bytes;
    config.stream = stream_;
    cudaLaunchAttribute attributes[2] = {};
    config.attrs = attributes;
    if (grid.cluster_blocks > 1) {  // refused before sm_90
      cudaLaunchAttribute& cluster = attributes[config.numAttrs++];
      cluster.id = cudaLaunchAttributeClusterDimension;
      cluster.val.clusterDim = {static_cast<unsigned>(grid.cluster_blocks), 1, 1};
    }
    if (grid.programmatic && has_clusters_) {
      cudaLaunchAttribute& early = attributes[config.numAttrs++];
      early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
      early.val.programmaticStreamSerializationAllowed = 1;
    }
    check(cudaLaunchKernelEx(&config, kernel, params));
  }

 private:
  void check(cudaError_t error) const {
    if (error != cudaSuccess) {
      throw std::runtime_error(std::string(function_) +
                               ": CUDA says: " + cudaGetErrorString(error));
    }
  }

  cudaStream_t stream_;

#else

  explicit KernelLauncher(const char* function)
      : function_(function),
        shared_limit_(emulator::shared_limit()),
        multiprocessors_(emulator::multiprocessors()),
        has_clusters_(emulator::has_clusters()) {}

  template <typename Params>
  void operator()(void (*kernel)(Params), const Grid& grid, const Params& params) const {
    static_assert(sizeof(Params) <= kMostParameterBytes, "parameters are passed by value");
    check_grid(function_, grid);
    const KernelCall<Params> call{kernel, &params};
    emulator::launch({function_, reinterpret_cast<const void*>(kernel), grid.blocks, grid.threads,
                      grid.shared_bytes, grid.cluster_blocks, grid.programmatic},
                     &run_kernel<Params>, &call);
  }

 private:
#endif

  const char* function_;
  size_t shared_limit_ = 0;
  int multiprocessors_ = 0;
  bool has_clusters_ = false;

 public:
  // Bytes of shared memory that a block may have once its kernel has opted in.
  size_t shared_limit() const { return shared_limit_; }
  // How many blocks run at once, if a multiprocessor has room for one.
  int multiprocessors() const { return multiprocessors_; }
  // Whether more than one block may be a cluster: from sm_90 on.
  bool has_clusters() const { return has_clusters_; }
};

}  // namespace ocnet
