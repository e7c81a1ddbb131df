// SPDX-License-Identifier: MIT
// Host side of activated batch norm on CUDA: checks, workspace, launches. Kernels are in the .cuh
// files. Channels of planes that fit stay on chip, in training; else one kernel leaves what parts
// of the map have, and another adds it up and streams the map once more.
#include "inplace_abn.h"
#include "inplace_abn_host.h"
#include "inplace_abn_merge.cuh"
#include "inplace_abn_planes.cuh"
#include "inplace_abn_rows.cuh"
#include "inplace_abn_slab.cuh"

namespace ocnet {
namespace {

using namespace abn;

template <typename acc_t>
Records<acc_t> merge(const TensorLauncher& launch, const Records<acc_t>& records, acc_t* merged) {
  launch_merge(MergeParams<acc_t>{records, merged}, launch);
  return {merged, 1, records.channels};
}

template <typename scalar_t>
void stats(const TensorLauncher& launch, const Tensor& x, const Tensor& packed) {
  using acc_t = accumulator_t<scalar_t>;
  const scalar_t* const from = kernel_input<scalar_t>("x", x);
  acc_t* const to = kernel_output<acc_t>("packed", packed);
  with_cut<scalar_t>(x, [&](const auto& cut) {
    const bool several = cut.records() > 1;
    Maybe room;
    if (several) room = workspace(x, {cut.records(), 2 * x.size(1) + 1});
    acc_t* const records = several ? kernel_output<acc_t>("records", *room) : to;
    launch_stats(StatsParams<scalar_t, std::decay_t<decltype(cut)>>{from, size_of(x), records, cut},
                 launch);
    if (several) merge<acc_t>(launch, {records, cut.records(), cut.channels}, to);
  });
}

// Where statistics are not given, they are made.
template <typename scalar_t, typename Cut>
void stream_forward(const TensorLauncher& launch, const Tensor& x, ForwardCall<scalar_t> call,
                    const Cut& cut) {
  using acc_t = accumulator_t<scalar_t>;
  auto& records = call.normalisation.records;
  Maybe room, one;
  if (call.normalisation.training && records.data == nullptr) {
    room = workspace(x, {cut.records(), 2 * x.size(1) + 1});
    acc_t* const to = kernel_output<acc_t>("records", *room);
    launch_stats(StatsParams<scalar_t, Cut>{call.x, size_of(x), to, cut}, launch);
    records = {to, cut.records(), cut.channels};
  }
  if (records.count > Cut::kOwnRecords) {
    one = workspace(x, {2 * x.size(1) + 1});
    records = merge(launch, records, kernel_output<acc_t>("merged", *one));
  }
  launch_forward(ForwardParams<scalar_t, Cut>{call, cut}, launch);
}

template <typename scalar_t>
void forward(const TensorLauncher& launch, const Tensor& x, const ForwardCall<scalar_t>& call) {
  const auto& normalisation = call.normalisation;
  if (normalisation.training && normalisation.records.data == nullptr) {
    const SlabPlan plan = slab_of<scalar_t>(x, 1, launch);
    if (plan.cluster > 0) {
      launch_slab(SlabForwardParams<scalar_t>{call, plan}, launch);
      return;
    }
  }
  with_cut<scalar_t>(x, [&](const auto& cut) { stream_forward(launch, x, call, cut); });
}

}  // namespace

void inplace_abn_stats(Tensor x, Tensor packed) {
  constexpr const char* kFunction = "inplace_abn_stats";
  const Checked checked(kFunction, "x", x);
  checked.values("packed", {2 * checked.channels() + 1}, packed);
  dispatch_floating(x.scalar_type(), kFunction, "x", [&](auto tag) {
    stats<typename decltype(tag)::type>(TensorLauncher(kFunction, x), x, packed);
  });
}

void inplace_abn_fwd(Tensor x, Maybe residual, Maybe weight, Maybe bias, Maybe slope, Maybe packed,
                     Maybe running_mean, Maybe running_var, bool training, double momentum,
                     double eps, double scale_eps, int64_t activation, double param,
                     bool signed_scale, Tensor out, Maybe mean, Maybe var, Maybe new_mean,
                     Maybe new_var) {
  constexpr const char* kFunction = "inplace_abn_fwd";
  const Checked checked(kFunction, "x", x);
  checked.map("residual", residual);
  checked.map("out", out);
  checked.vector("weight", weight);
  checked.vector("bias", bias);
  checked.vector("slope", slope);
  checked.vector("running_mean", running_mean);
  checked.vector("running_var", running_var);
  checked.vector("mean", mean);
  checked.vector("var", var);
  checked.vector("new_mean", new_mean);
  checked.vector("new_var", new_var);
  checked.activation(activation, training);
  if (packed.has_value()) {
    check_dim(kFunction, "packed", 2, *packed);
    checked.values("packed", {std::max<int64_t>(packed->size(0), 1), 2 * checked.channels() + 1},
                   packed);
  }
  checked.given("mean", "in training", mean.has_value() || !training);
  checked.given("var", "in training", var.has_value() || !training);
  checked.given("running_mean", "out of training", running_mean.has_value() || training);
  checked.given("running_var", "out of training", running_var.has_value() || training);
  checked.given("running_mean", "with new_mean", running_mean.has_value() || !new_mean.has_value());
  checked.given("running_var", "with new_var", running_var.has_value() || !new_var.has_value());

  dispatch_floating(x.scalar_type(), kFunction, "x", [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    using acc_t = accumulator_t<scalar_t>;
    const TensorLauncher launch(kFunction, x);
    ForwardCall<scalar_t> call;
    call.out = kernel_output<scalar_t>("out", out);
    call.x = input_beside("x", x, call.out);
    call.residual = input<scalar_t>("residual", residual);
    call.readable = call.out == call.x ? 0 : size_of(x);
    call.pointwise =
        pointwise_of<scalar_t>(weight, bias, slope, scale_eps, activation, param, signed_scale);
    auto& normalisation = call.normalisation;
    normalisation.training = training;
    if (training && packed.has_value()) {
      normalisation.records = {kernel_input<acc_t>("packed", *packed), packed->size(0),
                               checked.channels()};
    }
    normalisation.mean = output<acc_t>("mean", mean);
    normalisation.var = output<acc_t>("var", var);
    normalisation.new_mean = output<acc_t>("new_mean", new_mean);
    normalisation.new_var = output<acc_t>("new_var", new_var);
    normalisation.running_mean = input_beside("running_mean", running_mean, normalisation.new_mean);
    normalisation.running_var = input_beside("running_var", running_var, normalisation.new_var);
    normalisation.momentum = static_cast<acc_t>(momentum);
    normalisation.keep = static_cast<acc_t>(1 - momentum);
    normalisation.eps = static_cast<acc_t>(eps);
    forward(launch, x, call);
  });
}

}  // namespace ocnet
