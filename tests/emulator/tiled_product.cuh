// SPDX-License-Identifier: MIT
// A tiled matrix product in the manner of Hopper kernels, made of nothing but the hardware layer: a
// producer copies tiles through a ring of buffers, consumer warpgroups multiply them.
//
// result[row][column] = sum over channels of a[row][channel] * b[column][channel], in fp32. Rows
// and columns are the tokens of the operands; either axis of an operand may be the contiguous one.
#pragma once

#include "common/cluster.cuh"
#include "common/ptx/fence.cuh"
#include "common/ptx/matrix_copy.cuh"
#include "common/ptx/mbarrier.cuh"
#include "common/ptx/registers.cuh"
#include "common/ptx/tma.cuh"
#include "common/ptx/wgmma.cuh"
#include "common/tokens.h"
#include "probe.h"

namespace ocnet::probes::tiled {

using ptx::Contiguous;

constexpr int kWarpgroupRows = 64;
constexpr int kLineElements = 64;  // one 128-byte line of the swizzle
constexpr int kLineBytes = 128;
constexpr int kStageChannels = 64;
constexpr int kStageProducts = kStageChannels / 16;
constexpr int kOutputColumns = 16;
constexpr int kOutputBytes = kWarpgroupRows * kOutputColumns * static_cast<int>(sizeof(float));

// What instances are made of. Those below change one or the other member.
template <typename Element_, int kColumns_, Contiguous kA_, Contiguous kB_>
struct Product {
  using Element = Element_;
  static constexpr int kColumns = kColumns_;
  static constexpr Contiguous kA = kA_;
  static constexpr Contiguous kB = kB_;
  static constexpr int kStages = 3;
  static constexpr int kConsumers = 2;  // warpgroups
  static constexpr int kBlocks = 1;     // of a cluster that shares the tiles of B
  static constexpr bool kFromRegisters = false;
  static constexpr bool kTensorStore = true;
};
// A goes through registers.
template <typename Base>
struct FromRegisters : Base {
  static constexpr bool kFromRegisters = true;
};
// Each of two blocks fetches half a tile of B for both.
template <typename Base>
struct InCluster : Base {
  static constexpr int kBlocks = 2;
};
// One consumer, two stages, ordinary stores.
template <typename Base>
struct Small : Base {
  static constexpr int kStages = 2;
  static constexpr int kConsumers = 1;
  static constexpr bool kTensorStore = false;
};

// Shared memory: the tiles of A and B of each stage, two output boxes per consumer, the mbarriers.
template <typename P>
struct ProductLayout {
  static constexpr int kThreads = (P::kConsumers + 1) * device::kWarpgroupThreads;
  static constexpr int kRows = P::kConsumers * kWarpgroupRows;
  static constexpr int kABytes = kRows * kLineBytes;
  static constexpr int kBBytes = P::kColumns * kLineBytes;
  static constexpr int kStageBytes = kABytes + kBBytes;
  static constexpr int kOutputStart = P::kStages * kStageBytes;
  static constexpr int kConsumerOutputBytes = P::kTensorStore ? 2 * kOutputBytes : 0;
  static constexpr int kBarrierStart = kOutputStart + P::kConsumers * kConsumerOutputBytes;
  static constexpr int kSharedBytes = kBarrierStart + P::kStages * 2 * 8;
};

struct ProductParams {
  TensorMap a;
  TensorMap b;
  TensorMap result_map;
  float* result;
  int64_t result_stride;
  int rows;
  int columns;
  int row_tiles;  // a multiple of the blocks of a cluster
  int steps;      // stages that the channels take
};

// The buffers of one step, and the parity of their use.
template <typename P>
struct Stage {
  using Layout = ProductLayout<P>;
  uint32_t a;
  uint32_t b;
  uint32_t full;
  uint32_t empty;
  uint32_t parity;

  OCNET_DEVICE Stage(uint32_t shared, int step) {
    const int index = step % P::kStages;
    a = shared + index * Layout::kStageBytes;
    b = a + Layout::kABytes;
    full = shared + Layout::kBarrierStart + index * 16;
    empty = full + 8;
    parity = step / P::kStages % 2;
  }
};

template <typename P>
OCNET_DEVICE void prepare_barriers(uint32_t shared) {
  if (device::thread_index() == 0) {
    for (int step = 0; step < P::kStages; ++step) {
      const Stage<P> stage(shared, step);
      ptx::mbarrier_init(stage.full, 1);
      ptx::mbarrier_init(stage.empty, P::kBlocks * P::kConsumers * 4);  // every consumer warp
    }
    ptx::fence_mbarrier_init();
  }
  if constexpr (P::kBlocks > 1) {
    device::cluster_barrier();
  } else {
    device::barrier();
  }
}

template <typename P>
OCNET_DEVICE void load_a(const TensorMap& map, const Stage<P>& stage, int token, int channel) {
  if constexpr (P::kA == Contiguous::kChannels) {
    ptx::tensor_load(stage.a, map, stage.full, {channel, token});
  } else {
    OCNET_UNROLL
    for (int box = 0; box < P::kConsumers; ++box) {
      ptx::tensor_load(stage.a + box * kStageChannels * kLineBytes, map, stage.full,
                       {token + box * kLineElements, channel});
    }
  }
}

// A box of B for this block, or for all blocks of its cluster.
template <typename P>
OCNET_DEVICE void load_box_of_b(uint32_t to, const TensorMap& map, uint32_t full,
                                const int (&at)[2]) {
  if constexpr (P::kBlocks > 1) {
    ptx::tensor_load_multicast(to, map, full, at, (1 << P::kBlocks) - 1);
  } else {
    ptx::tensor_load(to, map, full, at);
  }
}

// The part of the tile that block `rank` fetches: some of the lines in shared memory.
template <typename P>
OCNET_DEVICE void load_b(const TensorMap& map, const Stage<P>& stage, int token, int channel,
                         int rank) {
  if constexpr (P::kB == Contiguous::kChannels) {
    const int first = rank * (P::kColumns / P::kBlocks);
    load_box_of_b<P>(stage.b + first * kLineBytes, map, stage.full, {channel, token + first});
  } else {
    const int first = rank * (kStageChannels / P::kBlocks);
    OCNET_UNROLL
    for (int box = 0; box < P::kColumns / kLineElements; ++box) {
      load_box_of_b<P>(stage.b + (box * kStageChannels + first) * kLineBytes, map, stage.full,
                       {token + box * kLineElements, channel + first});
    }
  }
}

template <typename P>
OCNET_DEVICE void produce(const ProductParams& params, uint32_t shared, int first_row,
                          int first_column) {
  const int rank = P::kBlocks > 1 ? device::cluster_rank() : 0;
  ptx::tensor_prefetch(params.a);
  ptx::tensor_prefetch(params.b);
  for (int step = 0; step < params.steps; ++step) {
    const Stage<P> stage(shared, step);
    ptx::mbarrier_wait(stage.empty, stage.parity ^ 1);
    ptx::mbarrier_arrive_expect(stage.full, ProductLayout<P>::kStageBytes);
    load_a<P>(params.a, stage, first_row, step * kStageChannels);
    load_b<P>(params.b, stage, first_column, step * kStageChannels, rank);
  }
}

// The descriptor of 16 channels of a tile.
template <Contiguous kAxis>
OCNET_DEVICE uint64_t product_descriptor(uint32_t tile, int product) {
  if constexpr (kAxis == Contiguous::kChannels) {
    return ptx::tile_descriptor(tile + product * 32, 0, 8 * kLineBytes);
  } else {
    return ptx::tile_descriptor(tile + product * 16 * kLineBytes, kStageChannels * kLineBytes,
                                8 * kLineBytes);
  }
}

// Where this lane's row of the matrices of A begins, for 16 rows and 16 channels.
template <Contiguous kAxis>
OCNET_DEVICE uint32_t matrix_row(uint32_t tile, int row, int channel) {
  const int lane = device::lane_index();
  if constexpr (kAxis == Contiguous::kChannels) {
    return ptx::swizzle_128(tile + (row + lane % 16) * kLineBytes + (channel + lane / 16 * 8) * 2);
  } else {
    return ptx::swizzle_128(tile + (channel + lane / 16 * 8 + lane % 8) * kLineBytes +
                            (row + lane / 8 % 2 * 8) * 2);
  }
}

// Starts the products of one stage. With A in registers it also ends them: the registers go.
template <typename P>
OCNET_DEVICE void multiply(float (&sums)[P::kColumns / 2], uint32_t a, uint32_t b,
                           bool accumulate) {
  using Element = typename P::Element;
  if constexpr (P::kFromRegisters) {
    uint32_t registers[kStageProducts][4];
    OCNET_UNROLL
    for (int i = 0; i < kStageProducts; ++i) {
      ptx::load_matrices<P::kA == Contiguous::kTokens>(
          registers[i], matrix_row<P::kA>(a, device::warp_index() % 4 * 16, i * 16));
    }
    ptx::wgmma_fence();
    OCNET_UNROLL
    for (int i = 0; i < kStageProducts; ++i) {
      ptx::wgmma<Element, P::kColumns, P::kB>(sums, registers[i], product_descriptor<P::kB>(b, i),
                                              accumulate || i > 0);
    }
    ptx::wgmma_commit();
    ptx::wgmma_wait<0>();
  } else {
    ptx::wgmma_fence();
    OCNET_UNROLL
    for (int i = 0; i < kStageProducts; ++i) {
      ptx::wgmma<Element, P::kColumns, P::kA, P::kB>(sums, product_descriptor<P::kA>(a, i),
                                                     product_descriptor<P::kB>(b, i),
                                                     accumulate || i > 0);
    }
    ptx::wgmma_commit();
  }
}

// Tells every producer that fills this buffer that this warp has read it.
template <typename P>
OCNET_DEVICE void release(const Stage<P>& stage) {
  device::sync_warp();
  if (device::lane_index() >= P::kBlocks) return;
  if constexpr (P::kBlocks > 1) {
    ptx::mbarrier_arrive_cluster(ptx::cluster_address(stage.empty, device::lane_index()));
  } else {
    ptx::mbarrier_arrive(stage.empty);
  }
}

template <typename P>
OCNET_DEVICE void multiply_steps(float (&sums)[P::kColumns / 2], uint32_t shared, int steps,
                                 int consumer) {
  constexpr int kInFlight = P::kFromRegisters ? 0 : 1;
  const uint32_t own_rows = consumer * kWarpgroupRows * kLineBytes;
  for (int step = 0; step < steps; ++step) {
    const Stage<P> stage(shared, step);
    ptx::mbarrier_wait(stage.full, stage.parity);
    multiply<P>(sums, stage.a + own_rows, stage.b, step > 0);
    ptx::wgmma_wait<kInFlight>();
    if (step >= kInFlight) release<P>(Stage<P>(shared, step - kInFlight));
  }
  ptx::wgmma_wait<0>();
  ptx::hold_registers(sums);
}

struct alignas(8) FloatPair {
  float at[2];
};

// Sums to a box in shared memory, from there by the copy engine, which clips them; the next box
// is filled meanwhile.
template <typename P>
OCNET_DEVICE void store_boxes(const ProductParams& params, const float (&sums)[P::kColumns / 2],
                              int first_row, int first_column, int consumer) {
  float* const boxes = device::shared_memory<float>() +
                       (ProductLayout<P>::kOutputStart + consumer * 2 * kOutputBytes) / 4;
  const int thread = device::thread_index() % device::kWarpgroupThreads;
  const int row = thread / 32 * 16 + thread % 32 / 4;
  const int column = thread % 4 * 2;
  OCNET_UNROLL
  for (int box = 0; box < P::kColumns / kOutputColumns; ++box) {
    float* const tile = boxes + box % 2 * (kOutputBytes / 4);
    if (thread == 0) ptx::bulk_wait_read<1>();
    device::named_barrier_sync(1 + consumer, device::kWarpgroupThreads);
    OCNET_UNROLL
    for (int i = 0; i < 8; i += 2) {
      const int at = (row + i / 2 % 2 * 8) * kOutputColumns + i / 4 * 8 + column;
      *reinterpret_cast<FloatPair*>(tile + at) = {sums[box * 8 + i], sums[box * 8 + i + 1]};
    }
    ptx::fence_proxy_async();
    device::named_barrier_sync(1 + consumer, device::kWarpgroupThreads);
    if (thread == 0) {
      ptx::tensor_store(params.result_map, ptx::shared_address(tile),
                        {first_column + box * kOutputColumns, first_row});
      ptx::bulk_commit();
    }
  }
  if (thread == 0) ptx::bulk_wait_read<0>();
}

template <typename P>
OCNET_DEVICE void store_elements(const ProductParams& params, const float (&sums)[P::kColumns / 2],
                                 int first_row, int first_column) {
  const int thread = device::thread_index() % device::kWarpgroupThreads;
  OCNET_UNROLL
  for (int i = 0; i < P::kColumns / 2; ++i) {
    const int row = first_row + thread / 32 * 16 + thread % 32 / 4 + i / 2 % 2 * 8;
    const int column = first_column + i / 4 * 8 + thread % 4 * 2 + i % 2;
    if (row < params.rows && column < params.columns) {
      params.result[row * params.result_stride + column] = sums[i];
    }
  }
}

template <typename P>
OCNET_DEVICE void consume(const ProductParams& params, uint32_t shared, int first_row,
                          int first_column) {
  const int consumer = device::warp_index() / 4 - 1;
  float sums[P::kColumns / 2];
  multiply_steps<P>(sums, shared, params.steps, consumer);
  first_row += consumer * kWarpgroupRows;
  if constexpr (P::kTensorStore) {
    store_boxes<P>(params, sums, first_row, first_column, consumer);
  } else {
    store_elements<P>(params, sums, first_row, first_column);
  }
}

template <typename P>
OCNET_KERNEL(ProductLayout<P>::kThreads, 1)
tiled_product(OCNET_GRID_CONSTANT ProductParams params) {
  const uint32_t shared = ptx::shared_address(device::shared_memory<unsigned char>());
  const int block = static_cast<int>(device::block_index());
  const int first_row = block % params.row_tiles * ProductLayout<P>::kRows;
  const int first_column = block / params.row_tiles * P::kColumns;
  prepare_barriers<P>(shared);
  if (device::warp_index() < 4) {
    if constexpr (P::kConsumers > 1) ptx::lower_registers<40>();
    if (device::warp_index() == 0 && device::elect_one()) {
      produce<P>(params, shared, first_row, first_column);
    }
    device::sync_warp();
  } else {
    if constexpr (P::kConsumers > 1) ptx::raise_registers<232>();
    consume<P>(params, shared, first_row, first_column);
  }
  // The other block still sends tiles and arrivals to this one.
  if constexpr (P::kBlocks > 1) device::cluster_barrier();
}

inline MapElement map_element(BFloat16) { return MapElement::kBFloat16; }
inline MapElement map_element(Float16) { return MapElement::kFloat16; }

template <typename Element>
TensorMap operand_map(void* data, Contiguous axis, int64_t tokens, int64_t channels, int64_t stride,
                      int box_tokens, int box_channels) {
  const bool by_channels = axis == Contiguous::kChannels;
  TensorMapRequest request;
  request.data = data;
  request.element = map_element(Element{});
  request.rank = 2;
  request.sizes[0] = static_cast<uint64_t>(by_channels ? channels : tokens);
  request.sizes[1] = static_cast<uint64_t>(by_channels ? tokens : channels);
  request.stride_bytes[1] = static_cast<uint64_t>(stride) * sizeof(Element);
  request.box[0] = kLineElements;
  request.box[1] = static_cast<uint32_t>(by_channels ? box_tokens : box_channels);
  request.swizzle = true;
  return encode_tensor_map("tiled_product", request);
}

inline TensorMap result_map(float* data, int64_t rows, int64_t columns, int64_t stride) {
  TensorMapRequest request;
  request.data = data;
  request.element = MapElement::kFloat32;
  request.rank = 2;
  request.sizes[0] = static_cast<uint64_t>(columns);
  request.sizes[1] = static_cast<uint64_t>(rows);
  request.stride_bytes[1] = static_cast<uint64_t>(stride) * sizeof(float);
  request.box[0] = kOutputColumns;
  request.box[1] = kWarpgroupRows;
  return encode_tensor_map("tiled_product", request);
}

// Buffers: a, b, result. Arguments: rows, columns, channels, then the strides of the three buffers
// in elements: from one line of the contiguous axis to the next.
template <typename P>
void run_tiled_product(const ProbeCall& call) {
  using Layout = ProductLayout<P>;
  using Element = typename P::Element;
  const int64_t rows = call.arguments[0];
  const int64_t columns = call.arguments[1];
  const int64_t channels = call.arguments[2];
  const int64_t* const strides = call.arguments + 3;
  ProductParams params{};
  params.a = operand_map<Element>(call.buffers[0], P::kA, rows, channels, strides[0], Layout::kRows,
                                  kStageChannels);
  params.b = operand_map<Element>(call.buffers[1], P::kB, columns, channels, strides[1],
                                  P::kColumns / P::kBlocks, kStageChannels / P::kBlocks);
  params.result = call.buffer<float>(2);
  params.result_map = result_map(params.result, rows, columns, strides[2]);
  params.result_stride = strides[2];
  params.rows = static_cast<int>(rows);
  params.columns = static_cast<int>(columns);
  params.row_tiles = static_cast<int>(ceil_div(rows, Layout::kRows * P::kBlocks)) * P::kBlocks;
  params.steps = static_cast<int>(ceil_div(channels, kStageChannels));
  const int64_t blocks = params.row_tiles * ceil_div(columns, P::kColumns);
  call.launch(tiled_product<P>, Grid{blocks, Layout::kThreads, Layout::kSharedBytes, P::kBlocks},
              params);
}

template <int kColumns, bool kATokens, bool kBTokens, typename Element = BFloat16>
using ProductOf = Product<Element, kColumns, kATokens ? Contiguous::kTokens : Contiguous::kChannels,
                          kBTokens ? Contiguous::kTokens : Contiguous::kChannels>;

// Names: columns, then the contiguous axes of A and B.
inline const Probe kTiledProductProbes[] = {
    {"product_64_channels_channels", &run_tiled_product<ProductOf<64, false, false>>},
    {"product_64_channels_tokens", &run_tiled_product<ProductOf<64, false, true>>},
    {"product_64_tokens_channels", &run_tiled_product<ProductOf<64, true, false>>},
    {"product_64_tokens_tokens", &run_tiled_product<ProductOf<64, true, true>>},
    {"product_80_channels_channels", &run_tiled_product<ProductOf<80, false, false>>},
    {"product_80_tokens_channels", &run_tiled_product<ProductOf<80, true, false>>},
    {"product_96_channels_channels", &run_tiled_product<ProductOf<96, false, false>>},
    {"product_96_tokens_channels", &run_tiled_product<ProductOf<96, true, false>>},
    {"product_256_channels_channels", &run_tiled_product<ProductOf<256, false, false>>},
    {"product_256_channels_tokens", &run_tiled_product<ProductOf<256, false, true>>},
    {"product_256_tokens_channels", &run_tiled_product<ProductOf<256, true, false>>},
    {"product_256_tokens_tokens", &run_tiled_product<ProductOf<256, true, true>>},
    {"product_64_channels_tokens_float16", &run_tiled_product<ProductOf<64, false, true, Float16>>},
    {"product_80_tokens_channels_float16", &run_tiled_product<ProductOf<80, true, false, Float16>>},
    {"product_80_channels_channels_registers",
     &run_tiled_product<FromRegisters<ProductOf<80, false, false>>>},
    {"product_64_tokens_tokens_registers",
     &run_tiled_product<FromRegisters<ProductOf<64, true, true>>>},
    {"product_256_channels_tokens_registers",
     &run_tiled_product<FromRegisters<ProductOf<256, false, true>>>},
    {"product_80_channels_channels_cluster",
     &run_tiled_product<InCluster<ProductOf<80, false, false>>>},
    {"product_64_tokens_tokens_cluster", &run_tiled_product<InCluster<ProductOf<64, true, true>>>},
    {"product_256_channels_tokens_cluster",
     &run_tiled_product<InCluster<ProductOf<256, false, true>>>},
    {"product_64_channels_channels_small", &run_tiled_product<Small<ProductOf<64, false, false>>>},
    {"product_96_tokens_channels_small", &run_tiled_product<Small<ProductOf<96, true, false>>>},
};

}  // namespace ocnet::probes::tiled

namespace ocnet::probes {

using tiled::kTiledProductProbes;

}  // namespace ocnet::probes
