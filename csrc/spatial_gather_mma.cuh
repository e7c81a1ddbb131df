// SPDX-License-Identifier: MIT
// Kernels of spatial gathering on tensor cores, by mma.sync (sm_80 and later). No torch headers.
//
// The same work as in the other two headers, cut for warps: 16 regions (forward) or 16 positions
// (backward) each. Weights are made in the registers in which the product wants them; logits have
// any strides and go there straight from global memory, all the other matrices need rows that start
// at multiples of 16 bytes and channel stride 1.
#pragma once

#include "common/launch.cuh"
#include "common/mma_tile.cuh"
#include "spatial_gather_bwd.cuh"
#include "spatial_gather_fwd.cuh"

namespace ocnet {

constexpr int kGatherWarps = 8;
constexpr int kGatherThreads = kGatherWarps * device::kWarpThreads;
constexpr int kGatherStages = 3;
// Of a tile of the forward kernels, whose weights take registers beside 64 of sums; small tiles,
// so more of them on their way.
constexpr int kGatherPositions = 16;
constexpr int kGatherFwdStages = 5;
constexpr float kLog2E = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;

template <typename Math>
struct GatherMma {
  using storage_t = typename Math::storage_t;
  static constexpr int kBytes = static_cast<int>(sizeof(storage_t));
  // Channels of the sums of one warp: 64 registers of a lane with 16-bit storage.
  static constexpr int kWidth = 256 / kBytes;
  // Channels of a step of a product over channels: rows of 128 bytes.
  static constexpr int kDepth = 128 / kBytes;
};

// Tiles that arrive in the background, in the order of their use: `load(tile, place)` starts the
// copies of one into a place.
template <int kStages, typename Load>
struct Pipeline {
  const Load& load;
  int tiles;

  OCNET_DEVICE void start() const {
    OCNET_UNROLL
    for (int tile = 0; tile < kStages - 1; ++tile) {
      if (tile < tiles) load(tile, tile);
      ptx::copy_async_commit();
    }
  }
  // Waits until the tile has arrived, returns its place, and starts the copies of a later tile into
  // the place of the one before, which every thread has left at the barrier.
  OCNET_DEVICE int next(int tile) const {
    ptx::copy_async_wait<kStages - 2>();
    device::barrier();
    const int later = tile + kStages - 1;
    if (later < tiles) load(later, later % kStages);
    ptx::copy_async_commit();
    return tile % kStages;
  }
};
template <int kStages, typename Load>
OCNET_DEVICE Pipeline<kStages, Load> make_pipeline(const Load& load, int tiles) {
  return {load, tiles};
}

// The largest value among the four lanes of a row, and their sum.
OCNET_DEVICE float quad_maximum(float value) {
  value = maximum(value, device::shuffle_xor(value, 1));
  return maximum(value, device::shuffle_xor(value, 2));
}
OCNET_DEVICE float quad_total(float value) {
  value += device::shuffle_xor(value, 1);
  return value + device::shuffle_xor(value, 2);
}

// Sums 8 / kRegionGroups * kWidth channels of 16 * kRegionGroups regions over one part.
//
// Grid: (image, part, slice of regions and channels), slice fastest, channels fastest within it;
// 256 threads. A warp has 16 regions and kWidth channels; warps with the same regions make the same
// weights. Tiles of 16 positions pass by, five at a time in shared memory.
// features (N, L, C) bf16, fp16, or fp32 for TF32; logits (N, L, K) the same; sums are fp32.
// Shared memory: 5 * 16 * 8 / kRegionGroups * 256 bytes: 81,920 with two groups, which the
// 101,376 bytes of sm_86 hold once, and those of sm_90 twice.
template <typename Math, int kRegionGroups>
OCNET_KERNEL(kGatherThreads, 2)
spatial_gather_mma_fwd_kernel(GatherFwdParams<typename Math::storage_t> params) {
  using storage_t = typename Math::storage_t;
  constexpr int kWidth = GatherMma<Math>::kWidth;
  constexpr int kChannels = kGatherWarps / kRegionGroups * kWidth;
  constexpr int kColumns = kGatherPositions / 8;
  constexpr int kPitch = tile_pitch(kChannels, sizeof(storage_t));
  auto* const shared = device::shared_memory<unsigned char>();

  const BlockPlace place = locate_block(params.plan, device::block_index(), params.partial.length);
  const auto features = params.features.image(place.image);
  const auto logits = params.logits.image(place.image);
  const int slices = static_cast<int>(ceil_div(features.channels, kChannels));
  const int first_channel = place.slice % slices * kChannels;
  const int warp = device::warp_index();
  const int lane = device::lane_index();
  const int own_channel = first_channel + warp / kRegionGroups * kWidth;
  const int region =
      (place.slice / slices * kRegionGroups + warp % kRegionGroups) * kMmaRows + lane / 4;
  const int end = min_of(place.first_row + params.partial.length, features.tokens);
  const int block_channels = min_of(kChannels, padded_channels(features.channels - first_channel));
  const int warp_channels =
      max_of(0, min_of(kWidth, padded_channels(features.channels - own_channel)));

  const auto load = [&](int tile, int at) {
    load_tile(SharedTile{shared + at * kGatherPositions * kPitch, kPitch}, kGatherPositions,
              features, place.first_row + tile * kGatherPositions, first_channel, block_channels,
              device::thread_index(), kGatherThreads);
  };
  const int tiles = static_cast<int>(ceil_div(end - place.first_row, kGatherPositions));
  const auto pipeline = make_pipeline<kGatherFwdStages>(load, tiles);
  pipeline.start();

  const float scale = params.scale * kLog2E;
  float highest[2] = {negative_infinity<float>(), negative_infinity<float>()};
  float totals[2] = {0, 0};
  float sums[kWidth / 8][4];
  clear_sums(sums);
  for (int tile = 0; tile < tiles; ++tile) {
    const int first = place.first_row + tile * kGatherPositions + lane % 4 * 2;
    float weights[kColumns][4];
    OCNET_UNROLL
    for (int n = 0; n < kColumns; ++n) {
      OCNET_UNROLL
      for (int i = 0; i < 4; ++i) {
        const int position = first + n * 8 + i % 2;
        const int row = region + i / 2 * 8;
        const bool valid = position < end && row < logits.channels;
        weights[n][i] =
            valid ? to_accumulator(*logits.at(position, row)) * scale : negative_infinity<float>();
      }
    }
    float rescale[2];
    OCNET_UNROLL
    for (int half = 0; half < 2; ++half) {
      float raised = highest[half];
      OCNET_UNROLL
      for (int n = 0; n < kColumns; ++n) {
        raised = maximum(maximum(raised, weights[n][2 * half]), weights[n][2 * half + 1]);
      }
      raised = quad_maximum(raised);
      const float reference = softmax_reference(raised);
      rescale[half] = ptx::exp2_approx(highest[half] - reference);
      highest[half] = raised;
      totals[half] *= rescale[half];
      OCNET_UNROLL
      for (int n = 0; n < kColumns; ++n) {
        OCNET_UNROLL
        for (int i = 2 * half; i < 2 * half + 2; ++i) {
          weights[n][i] = ptx::exp2_approx(weights[n][i] - reference);
          totals[half] += weights[n][i];
        }
      }
    }
    OCNET_UNROLL
    for (int n = 0; n < kWidth / 8; ++n) {
      OCNET_UNROLL
      for (int i = 0; i < 4; ++i) sums[n][i] *= rescale[i / 2];
    }
    // Pitch and offset are multiples of the swizzle's 128 bytes, so a slice of columns is a tile.
    const int at = pipeline.next(tile);
    const SharedTile own{shared + at * kGatherPositions * kPitch +
                             warp / kRegionGroups * kWidth * static_cast<int>(sizeof(storage_t)),
                         kPitch};
    accumulate_tokens<Math, kGatherPositions, kWidth>(sums, weights, own, warp_channels);
  }

  const int64_t row =
      (place.image * params.partial.parts + place.first_row / params.partial.length) *
      logits.channels;
  const TokenMatrix<float> to{params.partial.sums + row * features.channels,
                              0,
                              features.channels,
                              1,
                              logits.channels,
                              features.channels};
  const float one[2] = {1, 1};
  store_sums(sums, to, region - lane / 4, own_channel, one);
  OCNET_UNROLL
  for (int half = 0; half < 2; ++half) {
    const float total = quad_total(totals[half]);
    const int own_region = region + half * 8;
    if (own_channel == 0 && lane % 4 == 0 && own_region < logits.channels) {
      params.partial.maxima[row + own_region] = highest[half];
      params.partial.totals[row + own_region] = total;
    }
  }
}

// Weights of 16 positions (this lane's rows: `position` and 8 more) and kCols regions from `region`
// on, times `factor`; 0 past either end.
template <int kCols, typename scalar_t>
OCNET_DEVICE void region_weights(float (&weights)[kCols / 8][4],
                                 const TokenMatrix<const scalar_t>& logits, const float* lse,
                                 float scale, float log2_factor, int position, int region) {
  OCNET_UNROLL
  for (int n = 0; n < kCols / 8; ++n) {
    OCNET_UNROLL
    for (int i = 0; i < 4; ++i) {
      const int own_position = position + i / 2 * 8;
      const int own_region = region + n * 8 + device::lane_index() % 4 * 2 + i % 2;
      weights[n][i] = 0;
      if (own_position < logits.tokens && own_region < logits.channels) {
        const float score = to_accumulator(*logits.at(own_position, own_region)) * scale;
        weights[n][i] = ptx::exp2_approx(score - (lse[own_region] * kLog2E - log2_factor));
      }
    }
  }
}

// grad_logits of 128 positions and kCols regions.
//
// Grid: (image, tile of positions, tile of regions), regions fastest; 256 threads. A warp has 16
// positions and all kCols regions. Channels pass by in rows of 128 bytes.
// grad_out (N, K, C), features (N, L, C), logits and grad_logits (N, L, K); sums are fp32.
// Shared memory: 3 * (128 + kCols) * 128 bytes, at most 86,016.
template <typename Math, int kCols>
OCNET_KERNEL(kGatherThreads, 2)
spatial_gather_mma_bwd_logits_kernel(GatherBwdParams<typename Math::storage_t> params) {
  using storage_t = typename Math::storage_t;
  constexpr int kRows = kGatherWarps * kMmaRows;
  constexpr int kDepth = GatherMma<Math>::kDepth;
  constexpr int kStageBytes = (kRows + kCols) * 128;
  auto* const shared = device::shared_memory<unsigned char>();
  const BlockPlace place = locate_block(params.plan, device::block_index(), kRows);
  const auto features = params.features.image(place.image);
  const auto grad_out = params.grad_out.image(place.image);
  const int first_region = place.slice * kCols;
  const int warp_row = device::warp_index() * kMmaRows;
  const int lane = device::lane_index();

  const auto rows_at = [&](int at) { return SharedTile{shared + at * kStageBytes, 128}; };
  const auto cols_at = [&](int at) {
    return SharedTile{shared + at * kStageBytes + kRows * 128, 128};
  };
  const auto load = [&](int tile, int at) {
    const int thread = device::thread_index();
    load_tile(rows_at(at), kRows, features, place.first_row, tile * kDepth, kDepth, thread,
              kGatherThreads);
    load_tile(cols_at(at), kCols, grad_out, first_region, tile * kDepth, kDepth, thread,
              kGatherThreads);
  };
  const int tiles = static_cast<int>(ceil_div(features.channels, kDepth));
  const auto pipeline = make_pipeline<kGatherStages>(load, tiles);
  pipeline.start();
  float products[kCols / 8][4];
  clear_sums(products);
  for (int tile = 0; tile < tiles; ++tile) {
    const int at = pipeline.next(tile);
    multiply_rows<Math, kCols>(products, rows_at(at), warp_row, cols_at(at), 0, kDepth);
  }

  const auto logits = params.logits.image(place.image);
  const auto target = params.grad_logits.image(place.image);
  const int64_t row = place.image * logits.channels;
  OCNET_UNROLL
  for (int n = 0; n < kCols / 8; ++n) {
    OCNET_UNROLL
    for (int j = 0; j < 2; ++j) {
      const int region = first_region + n * 8 + lane % 4 * 2 + j;
      if (region >= logits.channels) continue;
      const float lse = params.lse[row + region] * kLog2E;
      const float delta = params.delta[row + region];
      OCNET_UNROLL
      for (int half = 0; half < 2; ++half) {
        const int position = place.first_row + warp_row + lane / 4 + half * 8;
        if (position >= logits.tokens) continue;
        const float score = to_accumulator(*logits.at(position, region)) * (params.scale * kLog2E);
        const float weight = ptx::exp2_approx(score - lse);
        *target.at(position, region) = from_accumulator<storage_t>(
            params.scale * weight * (products[n][2 * half + j] - delta));
      }
    }
  }
}

// grad_features of 128 positions and kWidth channels.
//
// Grid: (image, tile of positions, slice of channels), channels fastest; 256 threads. A warp has 16
// positions and all kWidth channels. Tiles of 32 regions pass by.
// grad_out (N, K, C), logits (N, L, K), grad_features (N, L, C); sums are fp32.
// Weights over many positions are small numbers: they are multiplied as 2^15 times what they are,
// so that fp16 keeps their digits.
// Shared memory: 3 * 32 * 256 bytes.
template <typename Math>
OCNET_KERNEL(kGatherThreads, 2)
spatial_gather_mma_bwd_features_kernel(GatherBwdParams<typename Math::storage_t> params) {
  constexpr int kRows = kGatherWarps * kMmaRows;
  constexpr int kRegions = 32;
  constexpr int kWidth = GatherMma<Math>::kWidth;
  constexpr int kPitch = tile_pitch(kWidth, sizeof(typename Math::storage_t));
  constexpr float kLog2Factor = 15;
  constexpr float kInverseFactor = 1.0f / (1 << 15);
  auto* const shared = device::shared_memory<unsigned char>();
  const BlockPlace place = locate_block(params.plan, device::block_index(), kRows);
  const auto grad_out = params.grad_out.image(place.image);
  const auto logits = params.logits.image(place.image);
  const int channel = place.slice * kWidth;
  const int channels = min_of(kWidth, padded_channels(grad_out.channels - channel));
  const int row = place.first_row + device::warp_index() * kMmaRows;

  const auto at_place = [&](int at) { return SharedTile{shared + at * kRegions * kPitch, kPitch}; };
  const auto load = [&](int tile, int at) {
    load_tile(at_place(at), kRegions, grad_out, tile * kRegions, channel, channels,
              device::thread_index(), kGatherThreads);
  };
  const int tiles = static_cast<int>(ceil_div(logits.channels, kRegions));
  const auto pipeline = make_pipeline<kGatherStages>(load, tiles);
  pipeline.start();
  float sums[kWidth / 8][4];
  clear_sums(sums);
  for (int tile = 0; tile < tiles; ++tile) {
    float weights[kRegions / 8][4];
    region_weights<kRegions>(weights, logits, params.lse + place.image * logits.channels,
                             params.scale * kLog2E, kLog2Factor, row + device::lane_index() / 4,
                             tile * kRegions);
    const int at = pipeline.next(tile);
    accumulate_tokens<Math, kRegions, kWidth>(sums, weights, at_place(at), channels);
  }
  const float factors[2] = {kInverseFactor, kInverseFactor};
  store_sums(sums, params.grad_features.image(place.image), row, channel, factors);
}

// Region groups of a block of the forward kernel: as few as hold all regions, and channels beside
// each other in the other warps, so that every feature is read once where it can be.
inline int gather_region_groups(int regions) { return regions <= 32 ? 2 : regions <= 64 ? 4 : 8; }

// Blocks that one part needs.
template <typename Math>
int64_t gather_mma_slices(int regions, int channels) {
  const int groups = gather_region_groups(regions);
  return ceil_div(regions, groups * kMmaRows) *
         ceil_div(channels, kGatherWarps / groups * GatherMma<Math>::kWidth);
}

// Needs partial.parts and partial.length, which is a multiple of kGatherPositions.
template <typename Math, typename Launch>
void launch_spatial_gather_mma_fwd(GatherFwdParams<typename Math::storage_t> params, int64_t images,
                                   const Launch& launch) {
  const int groups = gather_region_groups(params.logits.channels);
  const int64_t slices = gather_mma_slices<Math>(params.logits.channels, params.features.channels);
  const size_t bytes = static_cast<size_t>(kGatherFwdStages) * kGatherPositions *
                       (kGatherWarps / groups) * GatherMma<Math>::kWidth * GatherMma<Math>::kBytes;
  params.plan = plan_slices(images, params.partial.parts, slices, bytes);
  const auto run = [&](void (*kernel)(GatherFwdParams<typename Math::storage_t>)) {
    launch(kernel, Grid{params.plan.blocks, kGatherThreads, bytes}, params);
  };
  if (groups == 2) {
    run(spatial_gather_mma_fwd_kernel<Math, 2>);
  } else if (groups == 4) {
    run(spatial_gather_mma_fwd_kernel<Math, 4>);
  } else {
    run(spatial_gather_mma_fwd_kernel<Math, 8>);
  }
}

template <typename Math, int kCols, typename Launch>
void launch_spatial_gather_mma_logits(GatherBwdParams<typename Math::storage_t> params,
                                      int64_t images, int64_t tiles, const Launch& launch) {
  constexpr size_t kStageBytes = (kGatherWarps * kMmaRows + kCols) * 128;
  params.plan = plan_slices(images, tiles, ceil_div(params.logits.channels, kCols),
                            kGatherStages * kStageBytes);
  launch(spatial_gather_mma_bwd_logits_kernel<Math, kCols>,
         Grid{params.plan.blocks, kGatherThreads, params.plan.shared_bytes}, params);
}

// Computes the gradients whose data is not null. `params` has all but the plan, delta among it.
template <typename Math, typename Launch>
void launch_spatial_gather_mma_bwd(GatherBwdParams<typename Math::storage_t> params, int64_t images,
                                   const Launch& launch) {
  const int64_t tiles = ceil_div(params.logits.tokens, kGatherWarps * kMmaRows);
  if (params.grad_logits.data != nullptr) {
    if (params.logits.channels <= 32) {
      launch_spatial_gather_mma_logits<Math, 32>(params, images, tiles, launch);
    } else if (params.logits.channels <= 64) {
      launch_spatial_gather_mma_logits<Math, 64>(params, images, tiles, launch);
    } else {
      launch_spatial_gather_mma_logits<Math, 96>(params, images, tiles, launch);
    }
  }
  if (params.grad_features.data != nullptr) {
    constexpr int kWidth = GatherMma<Math>::kWidth;
    constexpr size_t kBytes = kGatherStages * 32 * kWidth * GatherMma<Math>::kBytes;
    params.plan =
        plan_slices(images, tiles, ceil_div(params.grad_features.channels, kWidth), kBytes);
    launch(spatial_gather_mma_bwd_features_kernel<Math>,
           Grid{params.plan.blocks, kGatherThreads, kBytes}, params);
  }
}

}  // namespace ocnet
