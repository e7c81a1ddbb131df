// SPDX-License-Identifier: MIT
// Backward kernels of spatial gathering without tensor cores, and what both ways share. No torch
// headers.
//
// With P[l][k] = exp(scale * logits[l][k] - lse[k]), recomputed, and
// delta[k] = <grad_out[k], out[k] + residual[k]>:
//   grad_logits[l][k] = scale * P[l][k] * (<grad_out[k], features[l]> - delta[k])
//   grad_features[l]  = sum over k of P[l][k] grad_out[k]
// Every tile of positions writes its own gradients: nothing is added across blocks. The features
// are read once, for grad_logits.
#pragma once

#include "common/launch.cuh"
#include "common/ptx/arithmetic.cuh"
#include "common/tile.cuh"
#include "spatial_gather_fwd.cuh"

namespace ocnet {

template <typename scalar_t>
struct GatherBwdParams {
  TokenMatrix<const scalar_t> grad_out;  // (N, K, C)
  TokenMatrix<const scalar_t> features;  // (N, L, C)
  TokenMatrix<const scalar_t> logits;    // (N, L, K)
  TokenMatrix<const scalar_t> out;       // (N, K, C)
  TokenMatrix<const scalar_t> residual;  // (N, K, C); data is null where there is none
  const accumulator_t<scalar_t>* lse;    // (N, K), contiguous
  accumulator_t<scalar_t>* delta;        // (N, K), contiguous; unused without grad_logits
  accumulator_t<scalar_t> scale;
  bool tf32 = false;  // whether the products that delta is taken from have rounded fp32 operands
  // Outputs; data is null where a gradient is not wanted.
  TokenMatrix<scalar_t> grad_features;  // (N, L, C)
  TokenMatrix<scalar_t> grad_logits;    // (N, L, K)
  BlockPlan plan;
};

constexpr int kDeltaThreads = 128;

// A number as the products over channels see it.
OCNET_DEVICE double product_operand(double value, bool) { return value; }
OCNET_DEVICE float product_operand(float value, bool tf32) {
  return tf32 ? detail::bit_cast<float>(ptx::round_to_tf32(value)) : value;
}

// delta of one region, but NaN when grad_out has an infinity there: then <grad_out, features> has
// one at every position, and their weighted mean, for which delta stands, is NaN in the formula.
// It is a mean of the very products it is taken from: of rounded gradients where those are.
//
// Grid: (image, region); 128 threads, of which each sums every 128th channel in fp32 (fp64).
// Shared memory: sizeof(acc) * 4 bytes.
template <typename scalar_t>
OCNET_KERNEL(kDeltaThreads, 4)
spatial_gather_delta_kernel(GatherBwdParams<scalar_t> params) {
  using acc_t = accumulator_t<scalar_t>;
  acc_t* const partial = device::shared_memory<acc_t>();
  const BlockPlace place = locate_block(params.plan, device::block_index(), 1);
  const auto grad_out = params.grad_out.image(place.image);
  const auto out = params.out.image(place.image);
  const auto residual = params.residual.image(place.image);
  const int region = place.first_row;
  const int thread = device::thread_index();
  acc_t sum = 0;
  for (int channel = thread; channel < out.channels; channel += kDeltaThreads) {
    const acc_t gradient = to_accumulator(*grad_out.at(region, channel));
    acc_t context = to_accumulator(*out.at(region, channel));
    if (residual.data != nullptr) context += to_accumulator(*residual.at(region, channel));
    sum += product_operand(gradient, params.tf32) * context + zero_if_finite(gradient);
  }
  OCNET_UNROLL
  for (int mask = device::kWarpThreads / 2; mask > 0; mask /= 2) {
    sum += device::shuffle_xor(sum, mask);
  }
  if (device::lane_index() == 0) partial[device::warp_index()] = sum;
  device::barrier();
  if (thread == 0) {
    acc_t total = 0;
    OCNET_UNROLL
    for (int warp = 0; warp < kDeltaThreads / device::kWarpThreads; ++warp) total += partial[warp];
    params.delta[place.image * out.tokens + region] = total;
  }
}

// grad_logits of kSide positions and kSide regions; kSide is 64, and 32 for fp64.
//
// Grid: (image, tile of positions, tile of regions), regions fastest; 256 threads. Matrices have
// any strides. Sums are fp32 (fp64).
// Shared memory: sizeof(acc) * 2 * kSide * kPitch bytes: the staging tile, and one of logits.
template <typename scalar_t>
OCNET_KERNEL(256, 2)
spatial_gather_bwd_logits_kernel(GatherBwdParams<scalar_t> params) {
  using acc_t = accumulator_t<scalar_t>;
  using TileT = Tile<acc_t>;
  constexpr int kMicro = TileT::kMicro;
  constexpr int kSide = TileT::kSide;
  acc_t* const stage = device::shared_memory<acc_t>();
  acc_t* const tile = stage + TileT::kTileElements;
  const BlockPlace place = locate_block(params.plan, device::block_index(), kSide);
  const auto logits = params.logits.image(place.image);
  const auto target = params.grad_logits.image(place.image);
  const int first = place.first_row;
  const int region = place.slice * kSide;
  const int positions = logits.tokens - first;
  const int regions = logits.channels - region;

  load_tile<TileT, kSide>(tile, logits.at(first, region), logits.token_stride,
                          logits.channel_stride, positions, regions);
  acc_t products[kMicro][kMicro];
  inner_products<TileT>(products, stage, params.features.image(place.image), first,
                        params.grad_out.image(place.image), region);
  device::barrier();
  acc_t* const own = tile + TileT::thread_row() * TileT::kPitch + TileT::thread_col();
  const int64_t row = place.image * logits.channels + region + TileT::thread_col();
  OCNET_UNROLL
  for (int j = 0; j < kMicro; ++j) {
    const bool valid = TileT::thread_col() + j < regions;
    const acc_t lse = valid ? params.lse[row + j] : acc_t(0);
    const acc_t delta = valid ? params.delta[row + j] : acc_t(0);
    OCNET_UNROLL
    for (int i = 0; i < kMicro; ++i) {
      acc_t& element = own[i * TileT::kPitch + j];
      const acc_t weight = masked_exponential(element * params.scale, lse, valid);
      element = params.scale * weight * (products[i][j] - delta);
    }
  }
  device::barrier();
  store_tile<TileT>(target.at(first, region), target.token_stride, target.channel_stride, positions,
                    regions, tile);
}

// grad_features of kSide positions and kSide channels; kSide is 64, and 32 for fp64.
//
// Grid: (image, tile of positions, chunk of channels), channels fastest; 256 threads. The regions
// pass by. Matrices have any strides. Sums are fp32 (fp64).
// Shared memory: as in the kernel above.
template <typename scalar_t>
OCNET_KERNEL(256, 2)
spatial_gather_bwd_features_kernel(GatherBwdParams<scalar_t> params) {
  using acc_t = accumulator_t<scalar_t>;
  using TileT = Tile<acc_t>;
  constexpr int kMicro = TileT::kMicro;
  constexpr int kSide = TileT::kSide;
  acc_t* const stage = device::shared_memory<acc_t>();
  acc_t* const weights = stage + TileT::kTileElements;
  const BlockPlace place = locate_block(params.plan, device::block_index(), kSide);
  const auto logits = params.logits.image(place.image);
  const auto grad_out = params.grad_out.image(place.image);
  const auto target = params.grad_features.image(place.image);
  const acc_t* const lse = params.lse + place.image * logits.channels;
  const int first = place.first_row;
  const int channel = place.slice * kSide;
  const int positions = logits.tokens - first;
  const int channels = target.channels - channel;

  acc_t sums[kMicro][kMicro];
  OCNET_UNROLL
  for (int i = 0; i < kMicro; ++i) {
    OCNET_UNROLL
    for (int j = 0; j < kMicro; ++j) sums[i][j] = 0;
  }
  for (int region = 0; region < logits.channels; region += kSide) {
    const int regions = logits.channels - region;
    device::barrier();
    load_tile<TileT, kSide>(weights, logits.at(first, region), logits.channel_stride,
                            logits.token_stride, regions, positions);
    load_tile<TileT, kSide>(stage, grad_out.at(region, channel), grad_out.token_stride,
                            grad_out.channel_stride, regions, channels);
    device::barrier();
    acc_t* const own = weights + TileT::thread_row() * TileT::kPitch + TileT::thread_col();
    OCNET_UNROLL
    for (int i = 0; i < kMicro; ++i) {
      const int own_region = TileT::thread_row() + i;
      const bool valid = own_region < regions;
      const acc_t reference = valid ? lse[region + own_region] : acc_t(0);
      OCNET_UNROLL
      for (int j = 0; j < kMicro; ++j) {
        acc_t& element = own[i * TileT::kPitch + j];
        element = masked_exponential(element * params.scale, reference, valid);
      }
    }
    device::barrier();
    multiply_tiles<TileT, kSide>(sums, weights, stage);
  }
  // Through the staging tile to coalesce the stores.
  device::barrier();
  OCNET_UNROLL
  for (int i = 0; i < kMicro; ++i) {
    Pack<acc_t> pack;
    OCNET_UNROLL
    for (int j = 0; j < kMicro; ++j) pack.at[j] = sums[i][j];
    store_pack(stage + (TileT::thread_row() + i) * TileT::kPitch + TileT::thread_col(), pack);
  }
  device::barrier();
  store_tile<TileT>(target.at(first, channel), target.token_stride, target.channel_stride,
                    positions, channels, stage);
}

template <typename scalar_t, typename Launch>
void launch_spatial_gather_delta(GatherBwdParams<scalar_t> params, int64_t images,
                                 const Launch& launch) {
  constexpr int kWarps = kDeltaThreads / device::kWarpThreads;
  params.plan = plan_slices(images, params.out.tokens, 1, kWarps * sizeof(accumulator_t<scalar_t>));
  launch(spatial_gather_delta_kernel<scalar_t>,
         Grid{params.plan.blocks, kDeltaThreads, params.plan.shared_bytes}, params);
}

// Computes the gradients whose data is not null. `params` has all but the plan, delta among it.
template <typename scalar_t, typename Launch>
void launch_spatial_gather_bwd(GatherBwdParams<scalar_t> params, int64_t images,
                               const Launch& launch) {
  using TileT = Tile<accumulator_t<scalar_t>>;
  const int64_t tiles = ceil_div(params.logits.tokens, TileT::kSide);
  const auto run = [&](void (*kernel)(GatherBwdParams<scalar_t>), int channels) {
    params.plan = plan_slices(images, tiles, TileT::chunks(channels), TileT::kFixedBytes);
    launch(kernel, Grid{params.plan.blocks, TileT::kThreads, params.plan.shared_bytes}, params);
  };
  if (params.grad_logits.data != nullptr) {
    run(spatial_gather_bwd_logits_kernel<scalar_t>, params.logits.channels);
  }
  if (params.grad_features.data != nullptr) {
    run(spatial_gather_bwd_features_kernel<scalar_t>, params.grad_features.channels);
  }
}

}  // namespace ocnet
