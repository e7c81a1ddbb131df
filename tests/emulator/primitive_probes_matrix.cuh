// SPDX-License-Identifier: MIT
// Probes of what one warp does with matrices, and of arithmetic.
#pragma once

#include "common/ptx/arithmetic.cuh"
#include "common/ptx/matrix_copy.cuh"
#include "common/ptx/mma.cuh"
#include "primitive_probes_common.cuh"

namespace ocnet::probes {

// Registers of 32 lanes, each lane's together.
struct MmaParams {
  const uint32_t* a;  // 4
  const uint32_t* b;  // 2
  float* d;           // 4
};
template <typename T>
OCNET_KERNEL(kOneWarp, 1)
mma_kernel(MmaParams params) {
  const int lane = device::lane_index();
  uint32_t a[4];
  uint32_t b[2];
  float d[4];
  OCNET_UNROLL
  for (int i = 0; i < 4; ++i) {
    a[i] = params.a[lane * 4 + i];
    d[i] = params.d[lane * 4 + i];
  }
  OCNET_UNROLL
  for (int i = 0; i < 2; ++i) b[i] = params.b[lane * 2 + i];
  ptx::mma(d, a, b, T{});
  OCNET_UNROLL
  for (int i = 0; i < 4; ++i) params.d[lane * 4 + i] = d[i];
}
template <typename T>
void run_mma(const ProbeCall& call) {
  call.launch(&mma_kernel<T>, {1, kOneWarp},
              MmaParams{call.buffer<uint32_t>(0), call.buffer<uint32_t>(1), call.buffer<float>(2)});
}

struct MatrixParams {
  uint32_t* image;
  int words;
  const uint32_t* offsets;  // of each lane's row, in bytes from the start of the image
  uint32_t* registers;      // kMatrices for each lane
};
template <int kMatrices, bool kTransposed, bool kStore>
OCNET_KERNEL(kOneWarp, 1)
matrix_kernel(MatrixParams params) {
  uint32_t* const shared = device::shared_memory<uint32_t>();
  const int lane = device::lane_index();
  copy_words(shared, params.image, params.words, kOneWarp);
  device::barrier();
  const uint32_t address = ptx::shared_address(shared) + params.offsets[lane];
  uint32_t registers[kMatrices];
  if constexpr (kStore) {
    OCNET_UNROLL
    for (int i = 0; i < kMatrices; ++i) registers[i] = params.registers[lane * kMatrices + i];
    ptx::store_matrices<kTransposed>(address, registers);
    device::barrier();
    copy_words(params.image, shared, params.words, kOneWarp);
  } else {
    ptx::load_matrices<kTransposed>(registers, address);
    OCNET_UNROLL
    for (int i = 0; i < kMatrices; ++i) params.registers[lane * kMatrices + i] = registers[i];
  }
}
template <int kMatrices, bool kTransposed, bool kStore>
void run_matrices(const ProbeCall& call) {
  const int words = words_of(call, 0);
  call.launch(&matrix_kernel<kMatrices, kTransposed, kStore>,
              {1, kOneWarp, words * sizeof(uint32_t)},
              MatrixParams{call.buffer<uint32_t>(0), words, call.buffer<uint32_t>(1),
                           call.buffer<uint32_t>(2)});
}

// Each element by one call of the primitive.
struct ArithmeticParams {
  const float* x;
  const float* y;  // of pairs
  uint32_t* out;
  int count;
};
struct Exponential {
  OCNET_DEVICE uint32_t operator()(const ArithmeticParams& params, int i) const {
    return ocnet::detail::bit_cast<uint32_t>(ptx::exp2_approx(params.x[i]));
  }
};
struct Rounding {
  OCNET_DEVICE uint32_t operator()(const ArithmeticParams& params, int i) const {
    return ptx::round_to_tf32(params.x[i]);
  }
};
template <typename T>
struct Packing {
  OCNET_DEVICE uint32_t operator()(const ArithmeticParams& params, int i) const {
    return ptx::pack_pair(params.x[i], params.y[i], T{});
  }
};
struct PackingFour {
  OCNET_DEVICE uint32_t operator()(const ArithmeticParams& params, int i) const {
    const int j = params.count - 1 - i;
    return ptx::pack_four(params.x[i], params.y[i], params.x[j], params.y[j]);
  }
};
template <typename Primitive>
OCNET_KERNEL(kOneWarp, 1)
arithmetic_kernel(ArithmeticParams params) {
  for (int i = device::lane_index(); i < params.count; i += kOneWarp) {
    params.out[i] = Primitive{}(params, i);
  }
}
template <typename Primitive>
void run_arithmetic(const ProbeCall& call) {
  call.launch(
      &arithmetic_kernel<Primitive>, {1, kOneWarp},
      ArithmeticParams{call.buffer<float>(0), call.buffer<float>(1), call.buffer<uint32_t>(2),
                       static_cast<int>(call.elements<float>(0))});
}

inline const Probe kMatrixProbes[] = {
    {"mma_bfloat16", &run_mma<BFloat16>},
    {"mma_float16", &run_mma<Float16>},
    {"mma_tfloat32", &run_mma<ptx::TFloat32>},
    {"load_matrices_1", &run_matrices<1, false, false>},
    {"load_matrices_2", &run_matrices<2, false, false>},
    {"load_matrices_4", &run_matrices<4, false, false>},
    {"load_matrices_1_transposed", &run_matrices<1, true, false>},
    {"load_matrices_2_transposed", &run_matrices<2, true, false>},
    {"load_matrices_4_transposed", &run_matrices<4, true, false>},
    {"store_matrices_1", &run_matrices<1, false, true>},
    {"store_matrices_2", &run_matrices<2, false, true>},
    {"store_matrices_4", &run_matrices<4, false, true>},
    {"store_matrices_1_transposed", &run_matrices<1, true, true>},
    {"store_matrices_2_transposed", &run_matrices<2, true, true>},
    {"store_matrices_4_transposed", &run_matrices<4, true, true>},
    {"exp2_approx", &run_arithmetic<Exponential>},
    {"round_to_tf32", &run_arithmetic<Rounding>},
    {"pack_pair_bfloat16", &run_arithmetic<Packing<BFloat16>>},
    {"pack_pair_float16", &run_arithmetic<Packing<Float16>>},
    {"pack_four", &run_arithmetic<PackingFour>},
};

}  // namespace ocnet::probes
