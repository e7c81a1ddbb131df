// SPDX-License-Identifier: MIT
// Tensor maps: what the copy engine must know of a tensor in global memory and of the boxes that it
// copies (PTX ISA: Tensors). Made on the host, handed to kernels by value.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>

#if defined(__CUDACC__)
#include <cuda.h>
#include <cuda_runtime.h>
#endif

namespace ocnet {

// Opaque on a device. The emulator keeps the request in it.
struct alignas(64) TensorMap {
  uint64_t words[16];
};

enum class MapElement : int { kBFloat16, kFloat16, kFloat32, kFloat8 };

// Axes are counted from the innermost, whose elements are contiguous.
struct TensorMapRequest {
  void* data = nullptr;
  MapElement element = MapElement::kBFloat16;
  int rank = 0;
  uint64_t sizes[4] = {};         // elements
  uint64_t stride_bytes[4] = {};  // of the axes but the innermost: stride_bytes[0] is not used
  uint32_t box[4] = {};           // elements
  bool swizzle = false;           // 128 bytes (ptx/descriptor.h)
};

inline int element_bytes(MapElement element) {
  switch (element) {
    case MapElement::kFloat32:
      return 4;
    case MapElement::kFloat8:
      return 1;
    default:
      return 2;
  }
}

// The rules of cuTensorMapEncodeTiled, in words.
inline void check_tensor_map(const char* function, const TensorMapRequest& request) {
  const auto require = [&](bool holds, const std::string& what, uint64_t got) {
    if (!holds) {
      throw std::runtime_error(std::string(function) + ": tensor map must have " + what + ", got " +
                               std::to_string(got));
    }
  };
  const uint64_t bytes = static_cast<uint64_t>(element_bytes(request.element));
  const uint64_t row_bytes = request.box[0] * bytes;
  require(request.rank >= 1 && request.rank <= 4, "1 to 4 axes",
          static_cast<uint64_t>(request.rank));
  const auto address = reinterpret_cast<uint64_t>(request.data);
  require(address != 0 && address % 16 == 0, "data aligned to 16 bytes", address);
  for (int axis = 0; axis < request.rank; ++axis) {
    const std::string name = " of axis " + std::to_string(axis);
    require(request.sizes[axis] >= 1 && request.sizes[axis] <= (uint64_t{1} << 32),
            "1 to 2^32 elements" + name, request.sizes[axis]);
    require(request.box[axis] >= 1 && request.box[axis] <= 256, "a box of 1 to 256 elements" + name,
            request.box[axis]);
    if (axis == 0) continue;
    const uint64_t stride = request.stride_bytes[axis];
    require(stride % 16 == 0 && stride < (uint64_t{1} << 40),
            "a stride that is a multiple of 16 bytes below 2^40" + name, stride);
  }
  require(row_bytes % 16 == 0, "box rows that are a multiple of 16 bytes", row_bytes);
  // Shorter rows are legal, but then nobody's tile layout (ptx/descriptor.h) is what comes out.
  require(!request.swizzle || row_bytes == 128, "box rows of 128 bytes for the swizzle", row_bytes);
}

#if defined(__CUDACC__)

namespace detail {

inline auto tensor_map_encoder(const char* function) {
  void* entry = nullptr;
  cudaDriverEntryPointQueryResult result;
  // Through the runtime: linking the driver library would keep ours from loading without a driver.
  const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry,
                                                             12000, cudaEnableDefault, &result);
  if (error != cudaSuccess || result != cudaDriverEntryPointSuccess) {
    throw std::runtime_error(std::string(function) + ": the driver has no cuTensorMapEncodeTiled");
  }
  return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(entry);
}

inline CUtensorMapDataType map_type(MapElement element) {
  switch (element) {
    case MapElement::kBFloat16:
      return CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
    case MapElement::kFloat16:
      return CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
    case MapElement::kFloat8:  // copied as it is
      return CU_TENSOR_MAP_DATA_TYPE_UINT8;
    default:
      return CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
  }
}

}  // namespace detail

inline TensorMap encode_tensor_map(const char* function, const TensorMapRequest& request) {
  check_tensor_map(function, request);
  static_assert(sizeof(TensorMap) == sizeof(CUtensorMap), "a tensor map has 128 bytes");
  cuuint64_t sizes[4];
  cuuint64_t strides[4];
  cuuint32_t box[4];
  const cuuint32_t element_strides[4] = {1, 1, 1, 1};
  for (int axis = 0; axis < request.rank; ++axis) {
    sizes[axis] = request.sizes[axis];
    box[axis] = request.box[axis];
    if (axis > 0) strides[axis - 1] = request.stride_bytes[axis];
  }
  CUtensorMap encoded;
  static const auto encode = detail::tensor_map_encoder(function);
  const CUresult error =
      encode(&encoded, detail::map_type(request.element), static_cast<cuuint32_t>(request.rank),
             request.data, sizes, strides, box, element_strides, CU_TENSOR_MAP_INTERLEAVE_NONE,
             request.swizzle ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_NONE,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (error != CUDA_SUCCESS) {
    throw std::runtime_error(std::string(function) + ": cuTensorMapEncodeTiled says error " +
                             std::to_string(static_cast<int>(error)));
  }
  TensorMap map;
  std::memcpy(&map, &encoded, sizeof(map));
  return map;
}

#else

inline TensorMap encode_tensor_map(const char* function, const TensorMapRequest& request) {
  check_tensor_map(function, request);
  static_assert(sizeof(TensorMapRequest) <= sizeof(TensorMap), "the request fits the map");
  TensorMap map{};
  std::memcpy(&map, &request, sizeof(request));
  return map;
}

#endif

}  // namespace ocnet
