// SPDX-License-Identifier: MIT
// Probes of warpgroup products and of the registers that warpgroups hand to one another.
#pragma once

#include "common/ptx/fence.cuh"
#include "common/ptx/registers.cuh"
#include "common/ptx/wgmma.cuh"
#include "primitive_probes_common.cuh"

namespace ocnet::probes {

constexpr int kProductThreads = device::kWarpgroupThreads;
constexpr int kProductSteps = 2;

// Where an operand of one step starts in the image, and the strides of its descriptor; all in
// bytes.
struct OperandPlace {
  uint32_t offset;
  uint32_t leading;
  uint32_t stride;
};
struct WgmmaParams {
  const uint32_t* image;
  const uint32_t* a;  // steps by threads by 4, where A is in registers
  float* d;           // threads by columns / 2
  int words;
  OperandPlace a_place[kProductSteps];
  OperandPlace b_place[kProductSteps];
  bool accumulate[kProductSteps];
};

OCNET_DEVICE uint64_t descriptor_of(const OperandPlace& place, uint32_t base) {
  return ptx::tile_descriptor(base + place.offset, place.leading, place.stride);
}
// By the whole warpgroup: the image is then ready for products.
OCNET_DEVICE uint32_t stage_image(const WgmmaParams& params) {
  uint32_t* const shared = device::shared_memory<uint32_t>();
  copy_words(shared, params.image, params.words, kProductThreads);
  ptx::fence_proxy_async();
  device::barrier();
  return ptx::shared_address(shared);
}
template <int kCount>
OCNET_DEVICE void load_own(float (&values)[kCount], const float* from) {
  const float* const own = from + device::thread_index() * kCount;
  OCNET_UNROLL
  for (int i = 0; i < kCount; ++i) values[i] = own[i];
}
template <int kCount>
OCNET_DEVICE void store_own(float* to, const float (&values)[kCount]) {
  float* const own = to + device::thread_index() * kCount;
  OCNET_UNROLL
  for (int i = 0; i < kCount; ++i) own[i] = values[i];
}

// Two steps in one group, both operands in shared memory.
template <typename T, int kColumns, ptx::Contiguous kA, ptx::Contiguous kB>
OCNET_KERNEL(kProductThreads, 1)
wgmma_shared_kernel(WgmmaParams params) {
  const uint32_t base = stage_image(params);
  float d[kColumns / 2];
  load_own(d, params.d);
  ptx::hold_registers(d);
  ptx::wgmma_fence();
  OCNET_UNROLL
  for (int step = 0; step < kProductSteps; ++step) {
    ptx::wgmma<T, kColumns, kA, kB>(d, descriptor_of(params.a_place[step], base),
                                    descriptor_of(params.b_place[step], base),
                                    params.accumulate[step]);
  }
  ptx::wgmma_commit();
  ptx::wgmma_wait<0>();
  ptx::hold_registers(d);
  store_own(params.d, d);
}

// The same with A in registers.
template <typename T, int kColumns, ptx::Contiguous kB>
OCNET_KERNEL(kProductThreads, 1)
wgmma_registers_kernel(WgmmaParams params) {
  const uint32_t base = stage_image(params);
  float d[kColumns / 2];
  load_own(d, params.d);
  uint32_t a[kProductSteps][4];
  OCNET_UNROLL
  for (int i = 0; i < kProductSteps * 4; ++i) {
    const int at = i / 4 * kProductThreads + device::thread_index();
    a[i / 4][i % 4] = params.a[at * 4 + i % 4];
  }
  ptx::hold_registers(d);
  ptx::wgmma_fence();
  OCNET_UNROLL
  for (int step = 0; step < kProductSteps; ++step) {
    ptx::wgmma<T, kColumns, kB>(d, a[step], descriptor_of(params.b_place[step], base),
                                params.accumulate[step]);
  }
  ptx::wgmma_commit();
  ptx::wgmma_wait<0>();
  ptx::hold_registers(d);
  store_own(params.d, d);
}

// A group for each step, with accumulators of its own; the first is read while the second runs.
OCNET_KERNEL(kProductThreads, 1) wgmma_groups_kernel(WgmmaParams params) {
  using ptx::Contiguous;
  const uint32_t base = stage_image(params);
  float first[4];
  float second[4];
  const auto multiply = [&](float (&d)[4], int step) {
    ptx::wgmma<BFloat16, 8, Contiguous::kChannels, Contiguous::kChannels>(
        d, descriptor_of(params.a_place[step], base), descriptor_of(params.b_place[step], base),
        params.accumulate[step]);
    ptx::wgmma_commit();
  };
  load_own(first, params.d);
  load_own(second, params.d + kProductThreads * 4);
  ptx::hold_registers(first);
  ptx::hold_registers(second);
  ptx::wgmma_fence();
  multiply(first, 0);
  multiply(second, 1);
  ptx::wgmma_wait<1>();
  ptx::hold_registers(first);
  store_own(params.d, first);
  ptx::wgmma_wait<0>();
  ptx::hold_registers(second);
  store_own(params.d + kProductThreads * 4, second);
}

// Arguments: for each step whether to accumulate, then places: of A and B for step 0, then step 1.
// Buffers: image, A's registers, sums.
inline WgmmaParams wgmma_params(const ProbeCall& call) {
  WgmmaParams params{};
  params.image = call.buffer<uint32_t>(0);
  params.a = call.buffer<uint32_t>(1);
  params.d = call.buffer<float>(2);
  params.words = words_of(call, 0);
  const int64_t* argument = call.arguments;
  for (bool& accumulate : params.accumulate) accumulate = *argument++ != 0;
  for (int step = 0; step < kProductSteps; ++step) {
    for (OperandPlace* place : {&params.a_place[step], &params.b_place[step]}) {
      place->offset = static_cast<uint32_t>(*argument++);
      place->leading = static_cast<uint32_t>(*argument++);
      place->stride = static_cast<uint32_t>(*argument++);
    }
  }
  return params;
}
inline void run_product(const ProbeCall& call, void (*kernel)(WgmmaParams)) {
  const WgmmaParams params = wgmma_params(call);
  call.launch(kernel, {1, kProductThreads, params.words * sizeof(uint32_t)}, params);
}
template <typename T, int kColumns, ptx::Contiguous kA, ptx::Contiguous kB>
void run_wgmma_shared(const ProbeCall& call) {
  run_product(call, &wgmma_shared_kernel<T, kColumns, kA, kB>);
}
template <typename T, int kColumns, ptx::Contiguous kB>
void run_wgmma_registers(const ProbeCall& call) {
  run_product(call, &wgmma_registers_kernel<T, kColumns, kB>);
}
inline void run_wgmma_groups(const ProbeCall& call) { run_product(call, &wgmma_groups_kernel); }

// One warpgroup gives up registers, two take them and hold more values than they started with.
constexpr int kHeldValues = 192;
struct RegisterParams {
  const float* values;  // kHeldValues by 256 threads
  float* out;           // as `values`, backwards, with what a neighbour gave
  float* lowered;       // 128
};
OCNET_KERNEL(3 * kProductThreads, 1) registers_kernel(RegisterParams params) {
  if (device::thread_index() < kProductThreads) {
    ptx::lower_registers<40>();
    const int thread = device::thread_index();
    params.lowered[thread] = params.values[thread] + 1;
  } else {
    ptx::raise_registers<232>();
    const int thread = device::thread_index() - kProductThreads;
    float held[kHeldValues];
    OCNET_UNROLL
    for (int i = 0; i < kHeldValues; ++i) {
      held[i] = params.values[i * 2 * kProductThreads + thread];
    }
    device::named_barrier_sync(1, 2 * kProductThreads);
    OCNET_UNROLL
    for (int i = 0; i < kHeldValues; ++i) {
      const int at = (kHeldValues - 1 - i) * 2 * kProductThreads + thread;
      params.out[at] = held[i] + device::shuffle_xor(held[i], 1);
    }
  }
}
inline void run_registers(const ProbeCall& call) {
  call.launch(&registers_kernel, {1, 3 * kProductThreads},
              RegisterParams{call.buffer<float>(0), call.buffer<float>(1), call.buffer<float>(2)});
}

constexpr auto kChannels = ptx::Contiguous::kChannels;
constexpr auto kTokens = ptx::Contiguous::kTokens;

// clang-format off
// Names say what is contiguous in A, or that it is in registers, and in B.
#define OCNET_SHARED(T, name, columns, a, b, kA, kB) \
  {"wgmma_" name "_" #columns "_" a "_" b, &run_wgmma_shared<T, columns, kA, kB>}
#define OCNET_REGISTERS(T, name, columns, b, kB) \
  {"wgmma_" name "_" #columns "_registers_" b, &run_wgmma_registers<T, columns, kB>}
#define OCNET_CHANNELS(T, name, columns) \
  OCNET_SHARED(T, name, columns, "channels", "channels", kChannels, kChannels), \
  OCNET_REGISTERS(T, name, columns, "channels", kChannels)
#define OCNET_ALL(T, name, columns) \
  OCNET_CHANNELS(T, name, columns), \
  OCNET_SHARED(T, name, columns, "channels", "tokens", kChannels, kTokens), \
  OCNET_SHARED(T, name, columns, "tokens", "channels", kTokens, kChannels), \
  OCNET_SHARED(T, name, columns, "tokens", "tokens", kTokens, kTokens), \
  OCNET_REGISTERS(T, name, columns, "tokens", kTokens)
#define OCNET_BFLOAT16(columns) OCNET_CHANNELS(BFloat16, "bfloat16", columns)
#define OCNET_BFLOAT16_ALL(columns) OCNET_ALL(BFloat16, "bfloat16", columns)
#define OCNET_FLOAT16_ALL(columns) OCNET_ALL(Float16, "float16", columns)
#define OCNET_TFLOAT32(columns) OCNET_CHANNELS(ptx::TFloat32, "tfloat32", columns)
#define OCNET_FLOAT8(columns) OCNET_CHANNELS(Float8, "float8", columns)

inline const Probe kWgmmaProbes[] = {
    OCNET_BFLOAT16_ALL(8), OCNET_BFLOAT16_ALL(24), OCNET_BFLOAT16_ALL(64), OCNET_BFLOAT16_ALL(80),
    OCNET_BFLOAT16_ALL(96), OCNET_BFLOAT16_ALL(128), OCNET_BFLOAT16_ALL(256),
    OCNET_FLOAT16_ALL(8), OCNET_FLOAT16_ALL(80), OCNET_FLOAT16_ALL(256),
    OCNET_TFLOAT32(8), OCNET_TFLOAT32(24), OCNET_TFLOAT32(64), OCNET_TFLOAT32(80),
    OCNET_TFLOAT32(96), OCNET_TFLOAT32(128), OCNET_TFLOAT32(256),
    OCNET_FLOAT8(8), OCNET_FLOAT8(24), OCNET_FLOAT8(64), OCNET_FLOAT8(80),
    OCNET_FLOAT8(96), OCNET_FLOAT8(128), OCNET_FLOAT8(256),
    // The others, whose instructions are texts of their own.
    OCNET_BFLOAT16(16), OCNET_BFLOAT16(32), OCNET_BFLOAT16(40), OCNET_BFLOAT16(48),
    OCNET_BFLOAT16(56), OCNET_BFLOAT16(72), OCNET_BFLOAT16(88), OCNET_BFLOAT16(104),
    OCNET_BFLOAT16(112), OCNET_BFLOAT16(120), OCNET_BFLOAT16(136), OCNET_BFLOAT16(144),
    OCNET_BFLOAT16(152), OCNET_BFLOAT16(160), OCNET_BFLOAT16(168), OCNET_BFLOAT16(176),
    OCNET_BFLOAT16(184), OCNET_BFLOAT16(192), OCNET_BFLOAT16(200), OCNET_BFLOAT16(208),
    OCNET_BFLOAT16(216), OCNET_BFLOAT16(224), OCNET_BFLOAT16(232), OCNET_BFLOAT16(240),
    OCNET_BFLOAT16(248),
    {"wgmma_groups", &run_wgmma_groups},
    {"registers", &run_registers},
};

#undef OCNET_FLOAT8
#undef OCNET_TFLOAT32
#undef OCNET_FLOAT16_ALL
#undef OCNET_BFLOAT16_ALL
#undef OCNET_BFLOAT16
#undef OCNET_ALL
#undef OCNET_CHANNELS
#undef OCNET_REGISTERS
#undef OCNET_SHARED
// clang-format on

}  // namespace ocnet::probes
