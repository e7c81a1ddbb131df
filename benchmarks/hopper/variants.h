// SPDX-License-Identifier: MIT
// The Hopper forward kernel without torch, as it is shipped and with other choices, as probes
// (tests/emulator/probe.h). library.py reads the table, and calls them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "oc_attention_hopper_fwd.cuh"
#include "oc_attention_hopper_launch.cuh"
#include "oc_attention_hopper_plan.h"
#include "probe_tables.h"

// Source, room for channels and values, keys of a step, blocks of a cluster, growth (a power of
// two) that raises a reference, whether consumers take turns. The shipped tiles first.
// clang-format off
#define OCNET_HOPPER_VARIANTS(VARIANT)            \
  VARIANT(kTokenMajor, 256, 256, 80, 2, 8, 0)     \
  VARIANT(kTokenMajor, 128, 256, 96, 2, 8, 0)     \
  VARIANT(kTokenMajor, 256, 128, 96, 2, 8, 0)     \
  VARIANT(kTokenMajor, 128, 128, 128, 2, 8, 0)    \
  VARIANT(kTokenMajor, 64, 64, 128, 2, 8, 0)      \
  VARIANT(kChannelMajor, 256, 256, 64, 2, 8, 0)   \
  VARIANT(kChannelMajor, 128, 128, 128, 2, 8, 0)  \
  VARIANT(kGroups, 256, 256, 64, 1, 8, 0)         \
  VARIANT(kGroups, 128, 128, 128, 1, 8, 0)        \
  VARIANT(kGroups, 64, 64, 128, 1, 8, 0)          \
  VARIANT(kTokenMajor, 256, 256, 80, 1, 8, 0)     \
  VARIANT(kTokenMajor, 256, 256, 80, 2, 0, 0)     \
  VARIANT(kTokenMajor, 256, 256, 80, 2, 8, 1)     \
  VARIANT(kTokenMajor, 256, 256, 80, 1, 8, 1)     \
  VARIANT(kTokenMajor, 256, 256, 64, 2, 8, 0)     \
  VARIANT(kTokenMajor, 256, 256, 64, 1, 8, 0)     \
  VARIANT(kTokenMajor, 256, 256, 64, 2, 8, 1)     \
  VARIANT(kTokenMajor, 128, 256, 96, 1, 8, 0)     \
  VARIANT(kTokenMajor, 128, 256, 96, 2, 8, 1)     \
  VARIANT(kTokenMajor, 128, 256, 80, 2, 8, 0)
// clang-format on

namespace ocnet {
namespace variants {

template <HopperSource kSource, int kChannels, int kValues, int kCols, int kCluster_, int kGrowth,
          int kTurns>
struct Variant : HopperTile<BFloat16, kChannels, kValues, kCols, kSource> {
  static constexpr int kCluster = kCluster_;
};

}  // namespace variants

template <HopperSource kSource, int kChannels, int kValues, int kCols, int kCluster, int kGrowth_,
          int kTurns>
struct HopperChoices<
    variants::Variant<kSource, kChannels, kValues, kCols, kCluster, kGrowth_, kTurns>> {
  static constexpr int kGrowth = kGrowth_;
  static constexpr bool kTakesTurns = kTurns != 0;
};

namespace variants {

using probes::ProbeCall;

// The numbers of a call, in the order of library.py. Maps are dense in the layout of the source.
struct Numbers {
  int64_t images, queries;
  int64_t keys;  // 0: the queries
  int64_t channels, values;
  int64_t scale;           // the bits of a double
  int64_t workers;         // at most; 0: what the device has
  int64_t own_keys_first;  // 0 or 1; -1: as planned
  int64_t whole_tiles;     // 1: tiles are never cut; 0: as planned
  int64_t partition[8];    // of rows, then of columns: size, count, step, stride; 0: none
};
enum Buffer { kQuery, kKey, kValue, kOut, kResidual, kLse, kPlan, kTimes };

// Results that the host writes into a buffer of the caller.
template <typename T>
void give(const ProbeCall& call, int buffer, const std::vector<T>& numbers) {
  const auto count = std::min<size_t>(numbers.size(), call.elements<T>(buffer));
  if (count == 0) return;
#if defined(__CUDACC__)
  probes::check("variant", cudaMemcpy(call.buffer<T>(buffer), numbers.data(), count * sizeof(T),
                                      cudaMemcpyHostToDevice));
#else
  std::memcpy(call.buffer<T>(buffer), numbers.data(), count * sizeof(T));
#endif
}

// Memory of a launch, full of NaN.
class Workspace {
 public:
  explicit Workspace(int64_t words) {
    const size_t bytes = static_cast<size_t>(words) * sizeof(float);
#if defined(__CUDACC__)
    if (words > 0) probes::check("workspace", cudaMalloc(&data_, bytes));
    if (words > 0) probes::check("workspace", cudaMemset(data_, 0xff, bytes));
#else
    room_.assign(static_cast<size_t>(words), std::numeric_limits<float>::quiet_NaN());
    data_ = room_.data();
    if (words > 0) emulator::attach("workspace", data_, bytes, true);
#endif
  }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
#if defined(__CUDACC__)
  ~Workspace() { cudaFree(data_); }
#endif
  float* data() const { return static_cast<float*>(data_); }

 private:
  void* data_ = nullptr;
#if !defined(__CUDACC__)
  std::vector<float> room_;
#endif
};

template <typename T>
TokenMatrix<T> dense(HopperSource source, T* data, int64_t tokens, int64_t channels) {
  const bool by_tokens = source == HopperSource::kChannelMajor;
  return {data,
          tokens * channels,
          by_tokens ? 1 : channels,
          by_tokens ? tokens : 1,
          static_cast<int>(tokens),
          static_cast<int>(channels)};
}

template <typename Tile>
FwdStage<BFloat16> stage_of(const ProbeCall& call, const Numbers& numbers) {
  constexpr HopperSource kSource = Tile::kSource;
  const int64_t keys = numbers.keys > 0 ? numbers.keys : numbers.queries;
  const auto in = [&](Buffer buffer, int64_t tokens, int64_t channels) {
    return dense<const BFloat16>(kSource, call.buffer<BFloat16>(buffer), tokens, channels);
  };
  const auto out = [&](Buffer buffer) {
    BFloat16* const data = call.bytes[buffer] > 0 ? call.buffer<BFloat16>(buffer) : nullptr;
    return dense(kSource, data, numbers.queries, numbers.values);
  };
  FwdStage<BFloat16> stage;
  stage.query = in(kQuery, numbers.queries, numbers.channels);
  stage.key = numbers.keys > 0 ? in(kKey, keys, numbers.channels) : stage.query;
  stage.value = in(kValue, keys, numbers.values);
  stage.out = out(kOut);
  stage.residual = out(kResidual);
  const auto tokens = static_cast<int>(numbers.queries);
  stage.lse = {call.buffer<float>(kLse), tokens, 1, 1, tokens, 1};
  return stage;
}

inline GroupAxis axis_of(const int64_t* numbers) {
  return {static_cast<int>(numbers[0]), static_cast<int>(numbers[1]), static_cast<int>(numbers[2]),
          static_cast<int>(numbers[3])};
}

template <typename Tile>
void set_plan(HopperFwdParams<BFloat16>& params, const Numbers& numbers, int multiprocessors) {
  constexpr bool kHasGroups = Tile::kSource == HopperSource::kGroups;
  const FwdStage<BFloat16>& stage = params.stages[0];
  const Partition groups =
      kHasGroups ? Partition{axis_of(numbers.partition), axis_of(numbers.partition + 4)}
                 : one_group(stage.query.tokens);
  params.work = list_work({{static_cast<int>(numbers.images), groups, stage.value.tokens}});
  const int most =
      numbers.workers > 0 ? static_cast<int>(numbers.workers) : multiprocessors / Tile::kCluster;
  const int slices = static_cast<int>(ceil_div(numbers.values, Tile::kValues));
  params.plan =
      deal_hopper(params.work, kHasGroups, Tile::kCluster * Tile::kRows, Tile::kCols, slices, most);
  if (numbers.own_keys_first >= 0) params.plan.own_keys_first = numbers.own_keys_first != 0;
  if (numbers.whole_tiles != 0) {
    params.plan.steps = 0;
    params.plan.workers = std::min(params.plan.tiles, most);
  }
}

// How many clusters of the kernel the device runs at once; 0 in the emulator.
template <typename Tile>
int64_t clusters_at_once() {
  int count = 0;
#if defined(__CUDACC__)
  const auto kernel = oc_attention_hopper_fwd_kernel<Tile>;
  probes::check("shared memory",
                cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                     static_cast<int>(Tile::kSharedBytes)));
  cudaLaunchAttribute cluster = {};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {static_cast<unsigned>(Tile::kCluster), 1, 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(Tile::kCluster));
  config.blockDim = dim3(Tile::kThreads);
  config.dynamicSmemBytes = Tile::kSharedBytes;
  config.attrs = &cluster;
  config.numAttrs = 1;
  probes::check("occupancy", cudaOccupancyMaxActiveClusters(&count, kernel, &config));
#endif
  return count;
}

// Milliseconds of each of `repeats` calls of `run`, with another L2 cache before each.
template <typename Run>
std::vector<float> time_calls(int64_t repeats, const Run& run) {
  std::vector<float> times;
#if defined(__CUDACC__)
  if (repeats == 0) return times;
  constexpr int64_t kWarmUps = 3;
  constexpr int64_t kFlushWords = 64 << 20;  // several times the L2 cache
  const Workspace flush(kFlushWords);
  cudaEvent_t start, stop;
  probes::check("event", cudaEventCreate(&start));
  probes::check("event", cudaEventCreate(&stop));
  for (int64_t i = 0; i < kWarmUps + repeats; ++i) {
    probes::check("flush", cudaMemsetAsync(flush.data(), 0, kFlushWords * sizeof(float)));
    probes::check("event", cudaEventRecord(start));
    run();
    probes::check("event", cudaEventRecord(stop));
    probes::check("timed call", cudaEventSynchronize(stop));
    float milliseconds = 0;
    probes::check("event", cudaEventElapsedTime(&milliseconds, start, stop));
    if (i >= kWarmUps) times.push_back(milliseconds);
  }
  cudaEventDestroy(start);
  cudaEventDestroy(stop);
#else
  (void)repeats;
  (void)run;
#endif
  return times;
}

// One call, and as many more as there is room for times.
template <typename Tile>
void run_variant(const ProbeCall& call) {
  Numbers numbers;
  std::memcpy(&numbers, call.arguments, sizeof(numbers));
  double scale;
  std::memcpy(&scale, &numbers.scale, sizeof(scale));
  HopperFwdParams<BFloat16> params;
  params.stages[0] = stage_of<Tile>(call, numbers);
  params.scale_log2 = static_cast<float>(scale * kLog2E);
  set_plan<Tile>(params, numbers, call.launch.multiprocessors());
  const HopperPlan& plan = params.plan;
  const Workspace workspace(hopper_part_words(plan, Tile::kCluster * Tile::kRows, Tile::kValues));
  params.partial = workspace.data();
  params.maps = tensor_maps<Tile>("variant", params.stages[0], numbers.images);
  const auto run = [&] {
    launch_hopper<Tile>(params, oc_attention_hopper_fwd_kernel<Tile>, call.launch);
  };
  run();
  give<int64_t>(call, kPlan,
                {plan.tiles, plan.workers, plan.steps, params.work.families[0].col_tiles,
                 Tile::kSharedBytes, clusters_at_once<Tile>()});
  give(call, kTimes, time_calls(call.elements<float>(kTimes), run));
}

#define OCNET_VARIANT_PROBE(source, channels, values, cols, cluster, growth, turns) \
  {#source "-" #channels "-" #values "-" #cols "-" #cluster "-" #growth "-" #turns, \
   &run_variant<Variant<HopperSource::source, channels, values, cols, cluster, growth, turns>>},
constexpr probes::Probe kVariants[] = {OCNET_HOPPER_VARIANTS(OCNET_VARIANT_PROBE)};
#undef OCNET_VARIANT_PROBE

}  // namespace variants
}  // namespace ocnet
