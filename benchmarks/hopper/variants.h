// SPDX-License-Identifier: MIT
// The Hopper forward kernel without torch, as it is shipped and with other choices, as probes
// (tests/emulator/probe.h). library.py reads the table, and calls them.
#pragma once

#include "oc_attention_hopper_fwd.cuh"
#include "oc_attention_hopper_launch.cuh"
#include "variant_calls.h"

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

enum Buffer { kQuery, kKey, kValue, kOut, kResidual, kLse, kPlan, kTimes };

template <typename Tile>
FwdStage<BFloat16> stage_of(const ProbeCall& call, const Numbers& numbers) {
  constexpr HopperSource kSource = Tile::kSource;
  const auto in = [&](Buffer buffer, int64_t tokens, int64_t channels) {
    return dense<const BFloat16>(kSource, call.buffer<BFloat16>(buffer), tokens, channels);
  };
  const auto out = [&](Buffer buffer) {
    return dense(kSource, optional_buffer<BFloat16>(call, buffer), numbers.queries, numbers.values);
  };
  FwdStage<BFloat16> stage;
  stage.query = in(kQuery, numbers.queries, numbers.channels);
  stage.key = numbers.keys > 0 ? in(kKey, numbers.keys, numbers.channels) : stage.query;
  stage.value = in(kValue, numbers.key_tokens(), numbers.values);
  stage.out = out(kOut);
  stage.residual = out(kResidual);
  const auto tokens = static_cast<int>(numbers.queries);
  stage.lse = {call.buffer<float>(kLse), tokens, 1, 1, tokens, 1};
  return stage;
}

template <typename Tile>
void set_plan(HopperFwdParams<BFloat16>& params, const Numbers& numbers, int most) {
  constexpr bool kHasGroups = Tile::kSource == HopperSource::kGroups;
  const FwdStage<BFloat16>& stage = params.stages[0];
  const Partition groups = kHasGroups ? numbers.groups() : one_group(stage.query.tokens);
  params.work = list_work({{static_cast<int>(numbers.images), groups, stage.value.tokens}});
  const int slices = static_cast<int>(ceil_div(numbers.values, Tile::kValues));
  params.plan =
      deal_hopper(params.work, kHasGroups, Tile::kCluster * Tile::kRows, Tile::kCols, slices, most);
  change_plan(params.plan, numbers, most);
}

// One call, and as many more as there is room for times.
template <typename Tile>
void run_variant(const ProbeCall& call) {
  const Numbers numbers(call);
  const auto kernel = oc_attention_hopper_fwd_kernel<Tile>;
  HopperFwdParams<BFloat16> params;
  params.stages[0] = stage_of<Tile>(call, numbers);
  params.scale_log2 = static_cast<float>(numbers.scale() * kLog2E);
  set_plan<Tile>(params, numbers, most_workers<Tile>(call, numbers));
  const HopperPlan& plan = params.plan;
  const Workspace workspace(hopper_part_words(plan, Tile::kCluster * Tile::kRows, Tile::kValues));
  params.partial = workspace.data();
  params.maps = tensor_maps<Tile>("variant", params.stages[0], numbers.images);
  const auto run = [&] { launch_hopper<Tile>(params, kernel, call.launch); };
  run();
  give(call, kPlan, plan_numbers<Tile>(plan, params.work, kernel, Tile::kThreads));
  give(call, kTimes, time_calls(call.elements<float>(kTimes), run));
}

#define OCNET_VARIANT_PROBE(source, channels, values, cols, cluster, growth, turns) \
  {#source "-" #channels "-" #values "-" #cols "-" #cluster "-" #growth "-" #turns, \
   &run_variant<Variant<HopperSource::source, channels, values, cols, cluster, growth, turns>>},
constexpr probes::Probe kVariants[] = {OCNET_HOPPER_VARIANTS(OCNET_VARIANT_PROBE)};
#undef OCNET_VARIANT_PROBE

}  // namespace variants
}  // namespace ocnet
