// SPDX-License-Identifier: MIT
// The Hopper backward kernels without torch, as they are shipped and with other choices, as probes
// (tests/emulator/probe.h), one pass each: backward_library.py reads the table, and calls them.
#pragma once

#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "oc_attention_hopper_bwd_launch.cuh"
#include "oc_attention_hopper_bwd_wide.cuh"
#include "variant_calls.h"

// Pass, source, room for channels and values, rows that stream past in a step, blocks of a cluster,
// whether weights are handed over, scores issued first, the product of keys issued first. The
// shipped tiles first; kNumbers is the kernel before any pass, alone, and kWide owns 128 rows.
// clang-format off
#define OCNET_HOPPER_BACKWARD_VARIANTS(VARIANT)            \
  VARIANT(kNumbers, kTokenMajor, 256, 256, 64, 2, 0, 0, 0) \
  VARIANT(kBoth, kTokenMajor, 256, 256, 64, 2, 0, 0, 0)    \
  VARIANT(kBoth, kTokenMajor, 128, 256, 64, 2, 0, 0, 0)    \
  VARIANT(kWide, kTokenMajor, 128, 128, 48, 2, 0, 0, 0)    \
  VARIANT(kWide, kTokenMajor, 64, 64, 64, 2, 0, 0, 0)      \
  VARIANT(kBoth, kGroups, 256, 256, 64, 1, 0, 0, 0)        \
  VARIANT(kBoth, kGroups, 128, 128, 64, 1, 0, 0, 0)        \
  VARIANT(kKeys, kTokenMajor, 256, 256, 64, 2, 0, 0, 0)    \
  VARIANT(kKeys, kTokenMajor, 128, 256, 64, 2, 0, 0, 0)    \
  VARIANT(kKeys, kTokenMajor, 128, 128, 64, 2, 0, 0, 0)    \
  VARIANT(kKeys, kTokenMajor, 64, 64, 64, 2, 0, 0, 0)      \
  VARIANT(kKeys, kGroups, 256, 256, 64, 1, 0, 0, 0)        \
  VARIANT(kQueries, kTokenMajor, 256, 256, 48, 2, 0, 0, 0) \
  VARIANT(kQueries, kTokenMajor, 128, 256, 64, 2, 0, 0, 0) \
  VARIANT(kQueries, kTokenMajor, 128, 128, 64, 2, 0, 0, 0) \
  VARIANT(kQueries, kTokenMajor, 64, 64, 64, 2, 0, 0, 0)   \
  VARIANT(kQueries, kGroups, 256, 256, 48, 1, 0, 0, 0)     \
  VARIANT(kBoth, kTokenMajor, 128, 128, 64, 2, 0, 0, 0)    \
  VARIANT(kBoth, kTokenMajor, 64, 64, 64, 2, 0, 0, 0)      \
  VARIANT(kWide, kTokenMajor, 128, 128, 48, 1, 0, 0, 0)    \
  VARIANT(kBoth, kTokenMajor, 256, 256, 64, 1, 0, 0, 0)    \
  VARIANT(kBoth, kTokenMajor, 256, 256, 64, 2, 1, 0, 0)    \
  VARIANT(kBoth, kTokenMajor, 256, 256, 64, 2, 0, 1, 0)    \
  VARIANT(kBoth, kTokenMajor, 256, 256, 64, 2, 0, 0, 1)    \
  VARIANT(kBoth, kTokenMajor, 256, 256, 64, 2, 1, 0, 1)    \
  VARIANT(kBoth, kTokenMajor, 256, 256, 64, 2, 0, 1, 1)    \
  VARIANT(kBoth, kTokenMajor, 128, 256, 64, 1, 0, 0, 0)    \
  VARIANT(kBoth, kTokenMajor, 128, 256, 64, 2, 1, 0, 0)    \
  VARIANT(kBoth, kTokenMajor, 128, 256, 64, 2, 0, 1, 0)    \
  VARIANT(kKeys, kTokenMajor, 256, 256, 64, 1, 0, 0, 0)    \
  VARIANT(kKeys, kTokenMajor, 256, 256, 64, 2, 1, 0, 0)    \
  VARIANT(kKeys, kTokenMajor, 256, 256, 64, 2, 0, 1, 0)    \
  VARIANT(kQueries, kTokenMajor, 256, 256, 48, 1, 0, 0, 0)
// clang-format on

namespace ocnet {
namespace backward_variants {

enum class Pass { kNumbers, kBoth, kWide, kKeys, kQueries };

template <Pass kPass, HopperSource kSource, int kChannels, int kValues, int kCols>
struct TileOf {
  static_assert(kCols == kHopperBwdCols, "keys stream in tiles of one size");
  static constexpr HopperRole kRole = kPass == Pass::kKeys ? HopperRole::kKeys : HopperRole::kBoth;
  using type = HopperBwdTile<BFloat16, kChannels, kValues, kRole, kSource>;
};
template <HopperSource kSource, int kChannels, int kValues, int kCols>
struct TileOf<Pass::kQueries, kSource, kChannels, kValues, kCols> {
  using type = HopperQueryTile<BFloat16, kChannels, kValues, kCols, kSource>;
};

template <HopperSource kSource, int kChannels, int kValues, int kCols>
struct TileOf<Pass::kWide, kSource, kChannels, kValues, kCols> {
  using type = HopperBwdWideTile<BFloat16, kChannels, kValues>;
  static_assert(kSource == type::kSource && kCols == type::kCols, "it has one of each");
};

template <Pass kPass_, HopperSource kSource, int kChannels, int kValues, int kCols, int kCluster_,
          int kHandsWeights, int kScoresFirst, int kKeyFirst>
struct Variant : TileOf<kPass_, kSource, kChannels, kValues, kCols>::type {
  static constexpr Pass kPass = kPass_;
  static constexpr int kCluster = kCluster_;
};

}  // namespace backward_variants

template <backward_variants::Pass kPass, HopperSource kSource, int kChannels, int kValues,
          int kCols, int kCluster, int kHandsWeights_, int kScoresFirst_, int kKeyFirst_>
struct HopperBwdChoices<
    backward_variants::Variant<kPass, kSource, kChannels, kValues, kCols, kCluster, kHandsWeights_,
                               kScoresFirst_, kKeyFirst_>> {
  static constexpr bool kHandsWeights = kHandsWeights_ != 0;
  static constexpr bool kScoresFirst = kScoresFirst_ != 0;
  static constexpr bool kKeyFirst = kKeyFirst_ != 0;
};

namespace backward_variants {

using probes::ProbeCall;
using variants::Numbers;
using variants::Workspace;

enum Buffer {
  kQuery,
  kKey,
  kValue,
  kGradOut,
  kOut,
  kResidual,
  kLse,
  kRowNumbers,
  kGradQuery,
  kGradKey,
  kGradValue,
  kPlan,
  kTimes
};

// Memory of a call.
class Room {
 public:
  float* floats(const char*, int64_t count) {
    rooms_.push_back(std::make_unique<Workspace>(count));
    return rooms_.back()->data();
  }

 private:
  std::vector<std::unique_ptr<Workspace>> rooms_;
};

inline HopperBwdMatrices<BFloat16> matrices_of(const ProbeCall& call, const Numbers& numbers,
                                               bool has_groups) {
  const auto in = [&](Buffer buffer, int64_t tokens, int64_t channels) {
    return variants::dense(HopperSource::kTokenMajor,
                           const_cast<const BFloat16*>(call.buffer<BFloat16>(buffer)), tokens,
                           channels);
  };
  const auto out = [&](Buffer buffer, int64_t tokens, int64_t channels) {
    return variants::dense(HopperSource::kTokenMajor,
                           variants::optional_buffer<BFloat16>(call, buffer), tokens, channels);
  };
  HopperBwdMatrices<BFloat16> all{};
  all.images = numbers.images;
  all.query = in(kQuery, numbers.queries, numbers.channels);
  all.key = numbers.keys > 0 ? in(kKey, numbers.keys, numbers.channels) : all.query;
  all.value = in(kValue, numbers.key_tokens(), numbers.values);
  all.grad_out = in(kGradOut, numbers.queries, numbers.values);
  all.out = in(kOut, numbers.queries, numbers.values);
  all.residual = in(kResidual, numbers.queries, numbers.values);
  all.lse = call.buffer<float>(kLse);
  all.grad_query = out(kGradQuery, numbers.queries, numbers.channels);
  all.grad_key = out(kGradKey, numbers.keys, numbers.channels);
  all.grad_value = out(kGradValue, numbers.key_tokens(), numbers.values);
  all.pitch = hopper_bwd_pitch(all.query.tokens, has_groups);
  all.numbers = call.buffer<RowNumbers>(kRowNumbers);
  const int64_t count = numbers.images * all.pitch;
  if (call.elements<RowNumbers>(kRowNumbers) != count) {
    throw std::runtime_error("variant: numbers must have room for " + std::to_string(count) +
                             " tokens, got " +
                             std::to_string(call.elements<RowNumbers>(kRowNumbers)));
  }
  return all;
}

template <typename Tile>
HopperBwdPass<Tile> pass_of(const HopperBwdSlice<BFloat16>& slice, int most) {
  if constexpr (Tile::kPass == Pass::kQueries) {
    return queries_pass<Tile>(slice, most);
  } else if constexpr (Tile::kPass == Pass::kWide) {
    return keys_pass<Tile>(slice, most, &oc_attention_hopper_bwd_wide_kernel<Tile>);
  } else {
    return keys_pass<Tile>(slice, most, &oc_attention_hopper_bwd_kernel<Tile>);
  }
}

// The launches of a call, as they are repeated.
using Launches = std::vector<std::function<void()>>;

// Adds those of a slice.
template <typename Tile>
void add_pass(Launches& launches, const ProbeCall& call, const Numbers& numbers,
              const HopperBwdSlice<BFloat16>& slice, Room& room) {
  const KernelLauncher& launch = call.launch;
  launches.push_back([slice, &launch] { launch_hopper_bwd_numbers(slice, launch); });
  if constexpr (Tile::kPass != Pass::kNumbers) {
    const int most = variants::most_workers<Tile>(call, numbers);
    HopperBwdPass<Tile> pass = pass_of<Tile>(slice, most);
    variants::change_plan(pass.params.plan, numbers, most);
    pass.params.parts = room.floats("parts", pass.part_words());
    launches.push_back([pass, &launch] { launch_pass(pass, launch); });
    variants::give(call, kPlan,
                   variants::plan_numbers<Tile>(pass.params.plan, pass.params.work, pass.kernel,
                                                kHopperThreads));
  }
}

// One call, and as many more as there is room for times.
template <typename Tile>
void run_variant(const ProbeCall& call) {
  constexpr bool kHasGroups = Tile::kSource == HopperSource::kGroups;
  const Numbers numbers(call);
  const auto slices = static_cast<int>(ceil_div(numbers.values, kHopperBwdSliceValues));
  std::vector<Partition> partitions;
  if (kHasGroups) partitions.push_back(numbers.groups());
  Room room;
  std::vector<HopperBwdMatrices<BFloat16>> stages{matrices_of(call, numbers, kHasGroups)};
  if (slices > 1) add_sums(stages[0], room);
  Launches launches;
  for (int i = 0; i < slices; ++i) {
    const auto slice = slice_of_call("variant", numbers.scale(), partitions, stages, i, slices);
    add_pass<Tile>(launches, call, numbers, slice, room);
  }
  const auto run = [&] {
    for (const auto& launch : launches) launch();
  };
  run();
  variants::give(call, kTimes, variants::time_calls(call.elements<float>(kTimes), run));
}

#define OCNET_BACKWARD_PROBE(pass, source, channels, values, cols, cluster, hands, scores, key)   \
  {#pass "-" #source "-" #channels "-" #values "-" #cols "-" #cluster "-" #hands "-" #scores      \
         "-" #key,                                                                                \
   &run_variant<Variant<Pass::pass, HopperSource::source, channels, values, cols, cluster, hands, \
                        scores, key>>},
constexpr probes::Probe kVariants[] = {OCNET_HOPPER_BACKWARD_VARIANTS(OCNET_BACKWARD_PROBE)};
#undef OCNET_BACKWARD_PROBE

}  // namespace backward_variants
}  // namespace ocnet
