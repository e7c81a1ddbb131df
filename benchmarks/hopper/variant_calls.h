// SPDX-License-Identifier: MIT
// What the probes of the variants of Hopper's kernels share: the numbers of a call, memory, plans,
// times. library.py calls them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "common/groups.h"
#include "oc_attention_hopper_plan.h"
#include "probe_tables.h"

namespace ocnet {
namespace variants {

using probes::ProbeCall;

// The numbers of a call, in the order of library.py. Maps are dense in the layout of the source.
struct Numbers {
  int64_t images, queries;
  int64_t keys;  // 0: the queries
  int64_t channels, values;
  int64_t scale_bits;      // of a double
  int64_t workers;         // at most; 0: what the device has
  int64_t own_keys_first;  // 0 or 1; -1: as planned
  int64_t whole_tiles;     // 1: tiles are never cut; 0: as planned
  int64_t partition[8];    // of rows, then of columns: size, count, step, stride; 0: none

  explicit Numbers(const ProbeCall& call) { std::memcpy(this, call.arguments, sizeof(*this)); }
  int64_t key_tokens() const { return keys > 0 ? keys : queries; }
  double scale() const {
    double value;
    std::memcpy(&value, &scale_bits, sizeof(value));
    return value;
  }
  Partition groups() const { return {axis(partition), axis(partition + 4)}; }

 private:
  static GroupAxis axis(const int64_t* numbers) {
    return {static_cast<int>(numbers[0]), static_cast<int>(numbers[1]),
            static_cast<int>(numbers[2]), static_cast<int>(numbers[3])};
  }
};

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

// A buffer that may be empty, for what is not there.
template <typename T>
T* optional_buffer(const ProbeCall& call, int buffer) {
  return call.bytes[buffer] > 0 ? call.buffer<T>(buffer) : nullptr;
}

// Clusters at most.
template <typename Tile>
int most_workers(const ProbeCall& call, const Numbers& numbers) {
  return numbers.workers > 0 ? static_cast<int>(numbers.workers)
                             : call.launch.multiprocessors() / Tile::kCluster;
}

// What a call asks for instead of what was planned.
inline void change_plan(HopperPlan& plan, const Numbers& numbers, int most) {
  if (numbers.own_keys_first >= 0) plan.own_keys_first = numbers.own_keys_first != 0;
  if (numbers.whole_tiles != 0) {
    plan.steps = 0;
    plan.workers = std::min(plan.tiles, most);
  }
}

// How many clusters of a kernel the device runs at once; 0 in the emulator.
template <typename Tile, typename Kernel>
int64_t clusters_at_once(Kernel kernel, int threads) {
  int count = 0;
#if defined(__CUDACC__)
  probes::check("shared memory",
                cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                     static_cast<int>(Tile::kSharedBytes)));
  cudaLaunchAttribute cluster = {};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {static_cast<unsigned>(Tile::kCluster), 1, 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(Tile::kCluster));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = Tile::kSharedBytes;
  config.attrs = &cluster;
  config.numAttrs = 1;
  probes::check("occupancy", cudaOccupancyMaxActiveClusters(&count, kernel, &config));
#else
  (void)kernel;
  (void)threads;
#endif
  return count;
}

// The numbers of library.py's Plan.
template <typename Tile, typename Kernel>
std::vector<int64_t> plan_numbers(const HopperPlan& plan, const WorkTable& work, Kernel kernel,
                                  int threads) {
  return {plan.tiles,         plan.workers,
          plan.steps,         work.families[0].col_tiles,
          Tile::kSharedBytes, clusters_at_once<Tile>(kernel, threads)};
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

}  // namespace variants
}  // namespace ocnet
