// SPDX-License-Identifier: MIT
// Forward kernels of spatial gathering without tensor cores, and what both ways to sum share: the
// parts, and their combination. No torch headers.
//
// The positions of an image are cut into parts. A block sums one part, with its own running
// softmax; a second kernel adds the parts of a region in their order. How many parts there are
// depends on the call alone, so results repeat bit for bit, on every device.
#pragma once

#include "common/launch.cuh"
#include "common/tile.cuh"

namespace ocnet {

// Sums of the parts, (N, parts, K, C), and the statistics of their softmax, (N, parts, K). Maxima
// are in a unit of which `natural` natural ones make one: 1, or ln 2 where weights are powers of 2.
template <typename acc_t>
struct GatherParts {
  acc_t* sums = nullptr;
  acc_t* maxima = nullptr;
  acc_t* totals = nullptr;
  acc_t natural = 1;
  int parts = 0;
  int length = 0;  // positions of a part
};

template <typename scalar_t>
struct GatherFwdParams {
  TokenMatrix<const scalar_t> features;  // (N, L, C)
  TokenMatrix<const scalar_t> logits;    // (N, L, K)
  GatherParts<accumulator_t<scalar_t>> partial;
  accumulator_t<scalar_t> scale;
  BlockPlan plan;
};

// Into how many parts to cut, where a part needs `slices` blocks. Enough blocks for two on each
// multiprocessor of the largest device at hand (132), but no part shorter than 256 positions: then
// what is read of the features outweighs what is written of the sums.
inline int gather_parts(int64_t images, int positions, int64_t slices, int tile, int* length) {
  constexpr int64_t kBlocks = 264;
  constexpr int64_t kShortest = 256;
  const int64_t wanted = ceil_div(kBlocks, images * slices);
  const int64_t most = ceil_div(positions, kShortest);
  const int64_t parts = wanted < most ? wanted : most;
  *length = static_cast<int>(ceil_div(positions, parts * tile)) * tile;
  return static_cast<int>(ceil_div(positions, *length));
}

// The blocks of `tiles` tiles of every image, each in `slices` slices, which are neighbours.
inline BlockPlan plan_slices(int64_t images, int64_t tiles, int64_t slices, size_t shared_bytes) {
  BlockPlan plan;
  plan.row_tiles = tiles;
  plan.slices = static_cast<int>(slices);
  plan.blocks = images * tiles * slices;
  plan.shared_bytes = shared_bytes;
  return plan;
}

// Sums kSide channels of kSide regions over one part. kSide is 64, and 32 for fp64.
//
// Grid: (image, part, slice of regions and channels), slice fastest, channels fastest within it;
// 256 threads. Every slice of channels computes the weights of its regions again. features
// (N, L, C), logits (N, L, K): any strides. Sums are fp32 (fp64 for fp64 storage).
// Shared memory: sizeof(acc) * 2 * kSide * kPitch bytes, a tile of features and one of weights.
template <typename scalar_t>
OCNET_KERNEL(256, 2)
spatial_gather_fwd_kernel(GatherFwdParams<scalar_t> params) {
  using acc_t = accumulator_t<scalar_t>;
  using TileT = Tile<acc_t>;
  constexpr int kMicro = TileT::kMicro;
  constexpr int kSide = TileT::kSide;
  acc_t* const stage = device::shared_memory<acc_t>();
  acc_t* const weights = stage + TileT::kTileElements;

  const BlockPlace place = locate_block(params.plan, device::block_index(), params.partial.length);
  const auto features = params.features.image(place.image);
  const auto logits = params.logits.image(place.image);
  const int chunks = TileT::chunks(features.channels);
  const int channel = place.slice % chunks * kSide;
  const int region = place.slice / chunks * kSide;
  const int end = min_of(place.first_row + params.partial.length, features.tokens);

  // All 16 threads of a region know its maximum; their totals are added up at the end.
  OnlineSoftmax<acc_t> softmax[kMicro];
  acc_t sums[kMicro][kMicro];
  OCNET_UNROLL
  for (int i = 0; i < kMicro; ++i) {
    OCNET_UNROLL
    for (int j = 0; j < kMicro; ++j) sums[i][j] = 0;
  }
  for (int first = place.first_row; first < end; first += kSide) {
    device::barrier();
    load_tile<TileT, kSide>(weights, logits.at(first, region), logits.token_stride,
                            logits.channel_stride, end - first, logits.channels - region);
    load_tile<TileT, kSide>(stage, features.at(first, channel), features.token_stride,
                            features.channel_stride, end - first, features.channels - channel);
    device::barrier();
    // This thread's weights: kMicro regions by kMicro positions.
    acc_t* const own = weights + TileT::thread_col() * TileT::kPitch + TileT::thread_row();
    const int left = end - first - TileT::thread_col();
    OCNET_UNROLL
    for (int i = 0; i < kMicro; ++i) {
      acc_t scores[kMicro];
      acc_t highest = negative_infinity<acc_t>();
      OCNET_UNROLL
      for (int j = 0; j < kMicro; ++j) {
        scores[j] = own[j * TileT::kPitch + i] * params.scale;
        highest = masked_maximum(highest, scores[j], j < left);
      }
      const acc_t rescale = softmax[i].raise(row_maximum<TileT>(highest));
      OCNET_UNROLL
      for (int j = 0; j < kMicro; ++j) {
        const acc_t weight = masked_exponential(scores[j], softmax[i].reference(), j < left);
        softmax[i].total += weight;
        own[j * TileT::kPitch + i] = weight;
        sums[i][j] *= rescale;
      }
    }
    device::barrier();
    multiply_tiles<TileT, kSide>(sums, weights, stage);
  }

  const int64_t row =
      (place.image * params.partial.parts + place.first_row / params.partial.length) *
      logits.channels;
  const int own_channel = channel + TileT::thread_col();
  OCNET_UNROLL
  for (int i = 0; i < kMicro; ++i) {
    const int own_region = region + TileT::thread_row() + i;
    const acc_t total = row_total<TileT>(softmax[i].total);
    if (own_region >= logits.channels) continue;
    acc_t* const to = params.partial.sums + (row + own_region) * features.channels;
    OCNET_UNROLL
    for (int j = 0; j < kMicro; ++j) {
      if (own_channel + j < features.channels) to[own_channel + j] = sums[i][j];
    }
    if (own_channel == 0) {
      params.partial.maxima[row + own_region] = softmax[i].maximum;
      params.partial.totals[row + own_region] = total;
    }
  }
}

// `launch` is a KernelLauncher, or launches as one does. Needs partial.parts and partial.length.
template <typename scalar_t, typename Launch>
void launch_spatial_gather_fwd(GatherFwdParams<scalar_t> params, int64_t images,
                               const Launch& launch) {
  using TileT = Tile<accumulator_t<scalar_t>>;
  const int64_t slices = static_cast<int64_t>(TileT::chunks(params.logits.channels)) *
                         TileT::chunks(params.features.channels);
  params.plan = plan_slices(images, params.partial.parts, slices, TileT::kFixedBytes);
  launch(spatial_gather_fwd_kernel<scalar_t>,
         Grid{params.plan.blocks, TileT::kThreads, params.plan.shared_bytes}, params);
}

template <typename scalar_t>
struct GatherCombineParams {
  GatherParts<accumulator_t<scalar_t>> partial;
  TokenMatrix<scalar_t> out;       // (N, K, C)
  TokenMatrix<scalar_t> residual;  // (N, K, C); data is null where it is not wanted
  accumulator_t<scalar_t>* lse;    // (N, K), contiguous
  BlockPlan plan;
};

constexpr int kCombineThreads = 128;

// out, lse and residual of one region: its parts, in their order.
//
// Grid: (image, region, slice of 128 channels), slice fastest; a thread has one channel. Sums are
// fp32 (fp64). No shared memory.
template <typename scalar_t>
OCNET_KERNEL(kCombineThreads, 4)
spatial_gather_combine_kernel(GatherCombineParams<scalar_t> params) {
  using acc_t = accumulator_t<scalar_t>;
  const BlockPlace place = locate_block(params.plan, device::block_index(), 1);
  const int region = place.first_row;
  const int regions = params.out.tokens;
  const int channels = params.out.channels;
  const int channel = place.slice * kCombineThreads + device::thread_index();
  const int64_t first = place.image * params.partial.parts * regions + region;

  acc_t top = negative_infinity<acc_t>();
  for (int part = 0; part < params.partial.parts; ++part) {
    top = maximum(top, params.partial.maxima[first + static_cast<int64_t>(part) * regions]);
  }
  acc_t total = 0;
  acc_t sum = 0;
  OCNET_UNROLL_BY_4
  for (int part = 0; part < params.partial.parts; ++part) {
    const int64_t row = first + static_cast<int64_t>(part) * regions;
    const acc_t factor =
        std::exp((params.partial.maxima[row] - softmax_reference(top)) * params.partial.natural);
    total += factor * params.partial.totals[row];
    if (channel < channels) sum += factor * params.partial.sums[row * channels + channel];
  }
  if (channel < channels) {
    const acc_t exact = sum / total;
    const scalar_t rounded = from_accumulator<scalar_t>(exact);
    *params.out.image(place.image).at(region, channel) = rounded;
    if (params.residual.data != nullptr) {
      const acc_t kept = to_accumulator(rounded);
      // Of an infinity nothing is left: the difference would be NaN.
      const acc_t rest = zero_if_finite(kept) == 0 ? exact - kept : acc_t(0);
      *params.residual.image(place.image).at(region, channel) = from_accumulator<scalar_t>(rest);
    }
  }
  if (channel == 0) {
    params.lse[place.image * regions + region] = log_sum_exp(top * params.partial.natural, total);
  }
}

template <typename scalar_t, typename Launch>
void launch_spatial_gather_combine(GatherCombineParams<scalar_t> params, int64_t images,
                                   const Launch& launch) {
  params.plan =
      plan_slices(images, params.out.tokens, ceil_div(params.out.channels, kCombineThreads), 0);
  launch(spatial_gather_combine_kernel<scalar_t>, Grid{params.plan.blocks, kCombineThreads},
         params);
}

}  // namespace ocnet
