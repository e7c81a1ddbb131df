// SPDX-License-Identifier: MIT
// Probes of the products of a warp with tiles in shared memory.
#pragma once

#include "common/mma_tile.cuh"
#include "primitive_probes_common.cuh"

namespace ocnet::probes {

constexpr int kTileCols = 32;
constexpr int kTileWidth = 64;

template <typename T>
struct MmaTileParams {
  TokenMatrix<const T> rows;   // (tokens, channels), tokens from first_token on
  TokenMatrix<const T> cols;   // (tokens, channels), its first kTileCols
  TokenMatrix<float> scores;   // (16, kTileCols)
  TokenMatrix<float> context;  // (16, channels)
  int first_token;
};

// scores = rows cols^T, context = scores cols.
template <typename Math>
OCNET_KERNEL(kOneWarp, 1)
mma_tile_kernel(MmaTileParams<typename Math::storage_t> params) {
  using storage_t = typename Math::storage_t;
  const int channels = padded_channels(params.rows.channels);
  const int pitch = tile_pitch(channels, sizeof(storage_t));
  auto* const shared = device::shared_memory<unsigned char>();
  const SharedTile rows{shared, pitch};
  const SharedTile cols{shared + kMmaRows * pitch, pitch};
  const int lane = device::lane_index();
  load_tile(rows, kMmaRows, params.rows, params.first_token, 0, channels, lane, kOneWarp);
  load_tile(cols, kTileCols, params.cols, 0, 0, channels, lane, kOneWarp);
  ptx::copy_async_commit();
  ptx::copy_async_wait<0>();
  device::barrier();

  const float one[2] = {1, 1};
  float scores[kTileCols / 8][4];
  clear_sums(scores);
  multiply_rows<Math, kTileCols>(scores, rows, 0, cols, 0, channels);
  store_sums(scores, params.scores, 0, 0, one);
  float context[kTileWidth / 8][4];
  clear_sums(context);
  accumulate_tokens<Math, kTileCols, kTileWidth>(context, scores, cols, channels);
  store_sums(context, params.context, 0, 0, one);
}

template <typename Math>
void run_mma_tile(const ProbeCall& call) {
  using storage_t = typename Math::storage_t;
  const int channels = static_cast<int>(call.arguments[0]);
  const int pitch = static_cast<int>(call.arguments[1]);  // elements between rows
  const auto matrix = [&](auto* data, int64_t stride, int tokens, int columns) {
    return TokenMatrix<std::remove_pointer_t<decltype(data)>>{data, 0, stride, 1, tokens, columns};
  };
  const MmaTileParams<storage_t> params{
      matrix(call.buffer<const storage_t>(0), pitch, static_cast<int>(call.arguments[2]), channels),
      matrix(call.buffer<const storage_t>(1), pitch, static_cast<int>(call.arguments[3]), channels),
      matrix(call.buffer<float>(2), kTileCols, kMmaRows, kTileCols),
      matrix(call.buffer<float>(3), channels, kMmaRows, channels),
      static_cast<int>(call.arguments[4])};
  const size_t bytes = static_cast<size_t>(kMmaRows + kTileCols) *
                       tile_pitch(padded_channels(channels), sizeof(storage_t));
  call.launch(&mma_tile_kernel<Math>, {1, kOneWarp, bytes}, params);
}

inline const Probe kMmaTileProbes[] = {
    {"mma_tile_bfloat16", &run_mma_tile<NarrowMath<BFloat16>>},
    {"mma_tile_float16", &run_mma_tile<NarrowMath<Float16>>},
    {"mma_tile_tfloat32", &run_mma_tile<TF32Math>},
    {"mma_tile_split", &run_mma_tile<SplitMath>},
};

}  // namespace ocnet::probes
