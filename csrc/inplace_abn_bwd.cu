// SPDX-License-Identifier: MIT
// Host side of activated batch norm on CUDA, backward: workspace, launches. As forward, the sums of
// a channel and their use are one kernel or two.
#include "inplace_abn.h"
#include "inplace_abn_host.h"
#include "inplace_abn_merge.cuh"
#include "inplace_abn_planes.cuh"
#include "inplace_abn_rows.cuh"
#include "inplace_abn_slab.cuh"

namespace ocnet {
namespace {

using namespace abn;

// The tensors of a backward pass, in all three forms of it.
struct Backward {
  const char* function;
  const Tensor& out;
  const Maybe& residual;
  const Tensor& grad_out;
  const Maybe &weight, &bias, &slope;
  double scale_eps;
  int64_t activation;
  double param;
  bool signed_scale;
  Maybe grad_x, grad_residual, grad_weight, grad_bias, grad_slope;

  Checked check(bool batch) const {
    const Checked checked(function, "out", out);
    checked.map("residual", residual);
    checked.map("grad_out", grad_out);
    checked.vector("weight", weight);
    checked.vector("bias", bias);
    checked.vector("slope", slope);
    checked.activation(activation, batch);
    checked.map("grad_x", grad_x);
    checked.map("grad_residual", grad_residual);
    checked.vector("grad_weight", grad_weight);
    checked.vector("grad_bias", grad_bias);
    checked.vector("grad_slope", grad_slope);
    checked.given("weight", "with grad_weight", weight.has_value() || !grad_weight.has_value());
    return checked;
  }
  bool wants_vectors() const {
    return grad_weight.has_value() || grad_bias.has_value() || grad_slope.has_value();
  }
  bool wants_maps() const { return grad_x.has_value() || grad_residual.has_value(); }

  // Of frozen statistics.
  template <typename scalar_t>
  BackwardCall<scalar_t> call() const {
    using acc_t = accumulator_t<scalar_t>;
    BackwardCall<scalar_t> call;
    call.out = kernel_input<scalar_t>("out", out);
    call.residual = input<scalar_t>("residual", residual);
    call.grad_out = kernel_input<scalar_t>("grad_out", grad_out);
    call.grad_x = output<scalar_t>("grad_x", grad_x);
    call.grad_residual = output<scalar_t>("grad_residual", grad_residual);
    call.readable = size_of(out);
    call.pointwise =
        pointwise_of<scalar_t>(weight, bias, slope, scale_eps, activation, param, signed_scale);
    call.vectors.weight = output<acc_t>("grad_weight", grad_weight);
    call.vectors.bias = output<acc_t>("grad_bias", grad_bias);
    call.vectors.slope = output<acc_t>("grad_slope", grad_slope);
    return call;
  }
  // Calls body(launcher, what kernels are told but for the tensors of one form).
  template <typename Body>
  void dispatch(const Body& body) const {
    dispatch_floating(out.scalar_type(), function, "out", [&](auto tag) {
      const TensorLauncher launch(function, out);
      body(launch, call<typename decltype(tag)::type>());
    });
  }
};

// Sums of parts of the map; with frozen statistics also the gradients of the maps that are wanted.
template <typename scalar_t, typename Cut>
Tensor reduce(const TensorLauncher& launch, const Tensor& out, BackwardCall<scalar_t>& call,
              const Cut& cut) {
  using acc_t = accumulator_t<scalar_t>;
  const Tensor room = workspace(out, {kSums, cut.records(), cut.channels});
  call.records = kernel_output<acc_t>("records", room);
  launch_reduce(BackwardParams<scalar_t, Cut>{call, cut}, launch);
  call.sums = {call.records, cut.records(), cut.channels};
  return room;
}

template <typename scalar_t>
void finish(const TensorLauncher& launch, const BackwardCall<scalar_t>& call) {
  launch_finish(FinishParams<accumulator_t<scalar_t>>{call.sums, call.pointwise, call.vectors},
                launch);
}

template <typename scalar_t, typename Cut>
void apply(const TensorLauncher& launch, BackwardCall<scalar_t> call, const Cut& cut) {
  // The identity has one derivative, wherever it is taken.
  const bool frozen = call.sums.data == nullptr;
  if (frozen && call.pointwise.activation == kIdentity) call.out = nullptr;
  launch_apply(BackwardParams<scalar_t, Cut>{call, cut}, launch);
}

template <typename scalar_t, typename Cut>
void stream_training(const TensorLauncher& launch, const Backward& tensors,
                     BackwardCall<scalar_t> call, const Cut& cut) {
  using acc_t = accumulator_t<scalar_t>;
  const Tensor& out = tensors.out;
  const bool wants_x = tensors.grad_x.has_value();
  Maybe room, one;
  if (wants_x || tensors.wants_vectors()) {
    BackwardCall<scalar_t> sums_only = call;
    sums_only.grad_x = sums_only.grad_residual = nullptr;
    room = reduce(launch, out, sums_only, cut);
    call.sums = sums_only.sums;
    if (!wants_x || call.sums.count > Cut::kOwnRecords) {
      one = workspace(out, {2, out.size(1)});
      call.vectors.sums = kernel_output<acc_t>("sums", *one);
      finish(launch, call);
      call.sums = {call.vectors.sums, 1, cut.channels, false};
      call.vectors = {};
    }
  }
  if (!wants_x) call.sums = {};
  if (tensors.wants_maps()) apply(launch, call, cut);
}

template <typename scalar_t>
void backward_training(const TensorLauncher& launch, const Backward& tensors,
                       BackwardCall<scalar_t> call) {
  const Tensor& out = tensors.out;
  call.count = static_cast<accumulator_t<scalar_t>>(numbers_of(out));
  if (tensors.grad_x.has_value()) {
    const SlabPlan plan = slab_of<scalar_t>(out, tensors.residual.has_value() ? 3 : 2, launch);
    if (plan.cluster > 0) {
      launch_slab(SlabBackwardParams<scalar_t>{call, plan}, launch);
      return;
    }
  }
  with_cut<scalar_t>(out, [&](const auto& cut) { stream_training(launch, tensors, call, cut); });
}

// Gradients of maps need no sums, so one pass makes everything.
template <typename scalar_t>
void backward_frozen(const TensorLauncher& launch, const Backward& tensors,
                     BackwardCall<scalar_t> call) {
  with_cut<scalar_t>(tensors.out, [&](const auto& cut) {
    if (tensors.wants_vectors()) {
      const Tensor room = reduce(launch, tensors.out, call, cut);
      finish(launch, call);
    } else if (tensors.wants_maps()) {
      apply(launch, call, cut);
    }
  });
}

}  // namespace

void inplace_abn_bwd_reduce(Tensor out, Maybe residual, Tensor grad_out, Maybe weight, Maybe bias,
                            Maybe slope, Maybe count, double scale_eps, int64_t activation,
                            double param, bool signed_scale, Tensor sums, Maybe grad_weight,
                            Maybe grad_bias, Maybe grad_slope) {
  const Backward tensors{"inplace_abn_bwd_reduce",
                         out,
                         residual,
                         grad_out,
                         weight,
                         bias,
                         slope,
                         scale_eps,
                         activation,
                         param,
                         signed_scale,
                         {},
                         {},
                         grad_weight,
                         grad_bias,
                         grad_slope};
  const Checked checked = tensors.check(count.has_value());
  checked.values("count", {1}, count);
  checked.values("sums", {2, checked.channels()}, sums);
  tensors.dispatch([&](const TensorLauncher& launch, auto call) {
    using acc_t = typename decltype(call)::acc_t;
    using scalar_t = std::decay_t<decltype(*call.out)>;
    call.counted = input<acc_t>("count", count);
    call.vectors.sums = kernel_output<acc_t>("sums", sums);
    with_cut<scalar_t>(out, [&](const auto& cut) {
      const Tensor room = reduce(launch, out, call, cut);
      finish(launch, call);
    });
  });
}

void inplace_abn_bwd_apply(Tensor out, Maybe residual, Tensor grad_out, Maybe weight, Maybe bias,
                           Maybe slope, Tensor var, Maybe sums, Maybe count, double eps,
                           double scale_eps, int64_t activation, double param, bool signed_scale,
                           Maybe grad_x, Maybe grad_residual) {
  const Backward tensors{"inplace_abn_bwd_apply",
                         out,
                         residual,
                         grad_out,
                         weight,
                         bias,
                         slope,
                         scale_eps,
                         activation,
                         param,
                         signed_scale,
                         grad_x,
                         grad_residual,
                         {},
                         {},
                         {}};
  const Checked checked = tensors.check(count.has_value());
  checked.vector("var", var);
  checked.values("sums", {2, checked.channels()}, sums);
  checked.values("count", {1}, count);
  checked.given("count", "with sums", count.has_value() || !sums.has_value());
  if (!tensors.wants_maps()) return;
  tensors.dispatch([&](const TensorLauncher& launch, auto call) {
    using acc_t = typename decltype(call)::acc_t;
    using scalar_t = std::decay_t<decltype(*call.out)>;
    call.var = kernel_input<acc_t>("var", var);
    call.eps = static_cast<acc_t>(eps);
    call.counted = input<acc_t>("count", count);
    if (sums.has_value()) {
      call.sums = {kernel_input<acc_t>("sums", *sums), 1, checked.channels(), false};
    }
    with_cut<scalar_t>(out, [&](const auto& cut) { apply(launch, call, cut); });
  });
}

void inplace_abn_bwd(Tensor out, Maybe residual, Tensor grad_out, Maybe weight, Maybe bias,
                     Maybe slope, Tensor var, bool training, double eps, double scale_eps,
                     int64_t activation, double param, bool signed_scale, Maybe grad_x,
                     Maybe grad_residual, Maybe grad_weight, Maybe grad_bias, Maybe grad_slope) {
  const Backward tensors{
      "inplace_abn_bwd", out,        residual, grad_out,     weight, bias,          slope,
      scale_eps,         activation, param,    signed_scale, grad_x, grad_residual, grad_weight,
      grad_bias,         grad_slope};
  tensors.check(training).vector("var", var);
  tensors.dispatch([&](const TensorLauncher& launch, auto call) {
    using acc_t = typename decltype(call)::acc_t;
    call.var = kernel_input<acc_t>("var", var);
    call.eps = static_cast<acc_t>(eps);
    if (training) {
      backward_training(launch, tensors, call);
    } else {
      backward_frozen(launch, tensors, call);
    }
  });
}

}  // namespace ocnet
