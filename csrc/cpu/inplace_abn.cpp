// SPDX-License-Identifier: MIT
// Host side of in-place activated batch norm on the CPU: checks, then the passes.
#include "../inplace_abn.h"

#include "../common/checks.h"
#include "../common/dispatch.h"
#include "dispatch.h"
#include "inplace_abn_bwd.h"
#include "inplace_abn_fwd.h"

namespace ocnet {
namespace {

using torch::stable::Tensor;
using Maybe = std::optional<Tensor>;

// Checks of what a call is given, all like one map.
struct Checked {
  const char* function;
  const Tensor& map;

  Checked(const char* name, const char* argument, const Tensor& tensor)
      : function(name), map(tensor) {
    if (!map.is_cpu()) {
      fail_argument(function, argument, "be on the CPU", device_text(map));
    }
    if (map.dim() != 2) {
      check_dim(function, argument, 3, map);
    }
    check_sizes(function, argument, std::numeric_limits<int64_t>::max(), map);
    check_contiguous(function, argument, map);
  }

  void other_map(const char* argument, const Tensor& tensor) const {
    check_dim(function, argument, map.dim(), tensor);
    if (map.dim() == 2) {
      check_shape(function, argument, {map.size(0), map.size(1)}, tensor);
    } else {
      check_shape(function, argument, {map.size(0), map.size(1), map.size(2)}, tensor);
    }
    check_dtype(function, argument, map.scalar_type(), tensor);
    check_same_device(function, argument, map, tensor);
    check_contiguous(function, argument, tensor);
  }
  void values(const char* argument, std::initializer_list<int64_t> shape,
              const Tensor& tensor) const {
    check_shape(function, argument, shape, tensor);
    check_dtype(function, argument, accumulator_dtype(map.scalar_type()), tensor);
    check_same_device(function, argument, map, tensor);
    check_contiguous(function, argument, tensor);
  }
  void other_map(const char* argument, const Maybe& tensor) const {
    if (tensor) other_map(argument, *tensor);
  }
  void vector(const char* argument, const Maybe& tensor) const {
    if (tensor) values(argument, {channels()}, *tensor);
  }
  void needed(const char* argument, const char* because, bool present) const {
    if (!present) fail_argument(function, argument, std::string("be given ") + because, "none");
  }
  void activation(int64_t code) const {
    if (code < 0 || code > cpu::kAbnReluCode) {
      fail_argument(function, "activation", "be a code from 0 to 3", std::to_string(code));
    }
  }
  void invertible(int64_t code, bool of_batch) const {
    if (code == cpu::kAbnReluCode && of_batch) {
      fail_argument(function, "activation",
                    "have an inverse where statistics are those of the batch", "3 (ReLU)");
    }
  }
  int64_t channels() const { return map.size(1); }
};

template <typename T>
double count_of(const Maybe& count) {
  return count ? static_cast<double>(*static_cast<const T*>(count->const_data_ptr())) : 0.0;
}

template <typename T, typename Pass>
void run(const Tensor& map, const cpu::AbnLayout& layout, const Pass& pass) {
  cpu::AbnSchedule<T, Pass>(map, layout, pass).run();
}

// The tensors of a backward pass, in all three forms of it.
struct Backward {
  const Tensor& out;
  const Maybe& residual;
  const Tensor& grad_out;
  const Maybe &weight, &bias, &slope;
  double scale_eps;
  int64_t activation;
  double param;
  bool signed_scale;
  const Maybe &grad_x, &grad_residual, &grad_weight, &grad_bias, &grad_slope;

  Checked check(const char* function) const {
    const Checked checked(function, "out", out);
    checked.other_map("residual", residual);
    checked.other_map("grad_out", grad_out);
    checked.vector("weight", weight);
    checked.vector("bias", bias);
    checked.vector("slope", slope);
    checked.activation(activation);
    checked.other_map("grad_x", grad_x);
    checked.other_map("grad_residual", grad_residual);
    checked.vector("grad_weight", grad_weight);
    checked.vector("grad_bias", grad_bias);
    checked.vector("grad_slope", grad_slope);
    checked.needed("weight", "with grad_weight", weight || !grad_weight);
    checked.needed("slope", "for a leaky ReLU with grad_slope",
                   (slope && activation == cpu::kAbnLeakyCode) || !grad_slope);
    return checked;
  }

  // `gradients` knows all but the vectors.
  template <typename T, typename Element>
  void run(cpu::AbnGradients<T> gradients) const {
    const cpu::AbnLayout layout(out, sizeof(T));
    const cpu::AbnParameters<T> parameters(weight, bias, slope, scale_eps, activation, param,
                                           signed_scale);
    gradients.weight = cpu::values_of<T>(grad_weight);
    gradients.bias = cpu::values_of<T>(grad_bias);
    gradients.slope = cpu::values_of<T>(grad_slope);
    const cpu::AbnGradientMaps<T, Element> maps{
        static_cast<const Element*>(out.const_data_ptr()), cpu::values_of<const Element>(residual),
        static_cast<const Element*>(grad_out.const_data_ptr()), cpu::values_of<Element>(grad_x),
        cpu::values_of<Element>(grad_residual)};
    const cpu::AbnBackwardPass<T, Element> pass(layout, out, maps, parameters, gradients);
    ocnet::run<T>(out, layout, pass);
  }
};

const Maybe kNone;

}  // namespace

void inplace_abn_stats(Tensor x, Tensor packed) {
  constexpr const char* kFunction = "inplace_abn_stats";
  const Checked checked(kFunction, "x", x);
  checked.values("packed", {2 * checked.channels() + 1}, packed);
  cpu::dispatch(kFunction, "x", x, [&](auto wide, auto element) {
    using T = decltype(wide);
    const cpu::AbnLayout layout(x, sizeof(T));
    const cpu::AbnStats<T, decltype(element)> pass(layout, x,
                                                   static_cast<T*>(packed.mutable_data_ptr()));
    run<T>(x, layout, pass);
  });
}

void inplace_abn_fwd(Tensor x, Maybe residual, Maybe weight, Maybe bias, Maybe slope, Maybe packed,
                     Maybe running_mean, Maybe running_var, bool training, double momentum,
                     double eps, double scale_eps, int64_t activation, double param,
                     bool signed_scale, Tensor out, Maybe mean, Maybe var, Maybe new_mean,
                     Maybe new_var) {
  constexpr const char* kFunction = "inplace_abn_fwd";
  const Checked checked(kFunction, "x", x);
  checked.other_map("residual", residual);
  checked.vector("weight", weight);
  checked.vector("bias", bias);
  checked.vector("slope", slope);
  if (packed) {
    check_dim(kFunction, "packed", 2, *packed);
    checked.values("packed", {packed->size(0), 2 * checked.channels() + 1}, *packed);
  }
  checked.vector("running_mean", running_mean);
  checked.vector("running_var", running_var);
  checked.needed("running_mean", "where training is false", training || running_mean);
  checked.needed("running_var", "where training is false", training || running_var);
  checked.activation(activation);
  checked.other_map("out", out);
  checked.vector("mean", mean);
  checked.vector("var", var);
  checked.vector("new_mean", new_mean);
  checked.vector("new_var", new_var);
  cpu::dispatch(kFunction, "x", x, [&](auto wide, auto element) {
    using T = decltype(wide);
    const cpu::AbnLayout layout(x, sizeof(T));
    const cpu::AbnParameters<T> parameters(weight, bias, slope, scale_eps, activation, param,
                                           signed_scale);
    const cpu::AbnStatistics<T> statistics{cpu::values_of<const T>(packed),
                                           packed ? packed->size(0) : 0,
                                           cpu::values_of<const T>(running_mean),
                                           cpu::values_of<const T>(running_var),
                                           training,
                                           momentum,
                                           static_cast<T>(eps),
                                           cpu::values_of<T>(mean),
                                           cpu::values_of<T>(var),
                                           cpu::values_of<T>(new_mean),
                                           cpu::values_of<T>(new_var)};
    const cpu::AbnForward<T, decltype(element)> pass(layout, x, residual, out, parameters,
                                                     statistics);
    run<T>(x, layout, pass);
  });
}

void inplace_abn_bwd_reduce(Tensor out, Maybe residual, Tensor grad_out, Maybe weight, Maybe bias,
                            Maybe slope, Maybe count, double scale_eps, int64_t activation,
                            double param, bool signed_scale, Tensor sums, Maybe grad_weight,
                            Maybe grad_bias, Maybe grad_slope) {
  constexpr const char* kFunction = "inplace_abn_bwd_reduce";
  const Backward call{out,   residual,  grad_out,    weight,    bias,
                      slope, scale_eps, activation,  param,     signed_scale,
                      kNone, kNone,     grad_weight, grad_bias, grad_slope};
  const Checked checked = call.check(kFunction);
  checked.invertible(activation, count.has_value());
  if (count) checked.values("count", {1}, *count);
  checked.values("sums", {2, checked.channels()}, sums);
  cpu::dispatch(kFunction, "out", out, [&](auto wide, auto element) {
    using T = decltype(wide);
    cpu::AbnGradients<T> gradients{};
    gradients.count = count_of<T>(count);
    gradients.sums = static_cast<T*>(sums.mutable_data_ptr());
    call.run<T, decltype(element)>(gradients);
  });
}

void inplace_abn_bwd_apply(Tensor out, Maybe residual, Tensor grad_out, Maybe weight, Maybe bias,
                           Maybe slope, Tensor var, Maybe sums, Maybe count, double eps,
                           double scale_eps, int64_t activation, double param, bool signed_scale,
                           Maybe grad_x, Maybe grad_residual) {
  constexpr const char* kFunction = "inplace_abn_bwd_apply";
  const Backward call{out,    residual,      grad_out,   weight, bias,
                      slope,  scale_eps,     activation, param,  signed_scale,
                      grad_x, grad_residual, kNone,      kNone,  kNone};
  const Checked checked = call.check(kFunction);
  checked.vector("var", var);
  if (sums) checked.values("sums", {2, checked.channels()}, *sums);
  if (count) checked.values("count", {1}, *count);
  checked.needed("sums", "with count", sums || !count);
  checked.invertible(activation, count.has_value());
  cpu::dispatch(kFunction, "out", out, [&](auto wide, auto element) {
    using T = decltype(wide);
    cpu::AbnGradients<T> gradients{};
    gradients.var = static_cast<const T*>(var.const_data_ptr());
    gradients.eps = static_cast<T>(eps);
    gradients.count = count_of<T>(count);
    gradients.given = cpu::values_of<const T>(sums);
    call.run<T, decltype(element)>(gradients);
  });
}

void inplace_abn_bwd(Tensor out, Maybe residual, Tensor grad_out, Maybe weight, Maybe bias,
                     Maybe slope, Tensor var, bool training, double eps, double scale_eps,
                     int64_t activation, double param, bool signed_scale, Maybe grad_x,
                     Maybe grad_residual, Maybe grad_weight, Maybe grad_bias, Maybe grad_slope) {
  constexpr const char* kFunction = "inplace_abn_bwd";
  const Backward call{out,    residual,      grad_out,    weight,    bias,
                      slope,  scale_eps,     activation,  param,     signed_scale,
                      grad_x, grad_residual, grad_weight, grad_bias, grad_slope};
  const Checked checked = call.check(kFunction);
  checked.vector("var", var);
  checked.invertible(activation, training);
  cpu::dispatch(kFunction, "out", out, [&](auto wide, auto element) {
    using T = decltype(wide);
    cpu::AbnGradients<T> gradients{};
    gradients.var = static_cast<const T*>(var.const_data_ptr());
    gradients.eps = static_cast<T>(eps);
    gradients.count = training ? static_cast<double>(out.numel() / out.size(1)) : 0.0;
    call.run<T, decltype(element)>(gradients);
  });
}

}  // namespace ocnet
