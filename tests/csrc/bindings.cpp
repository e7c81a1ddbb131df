// SPDX-License-Identifier: MIT
// Python module of the tests: functions of csrc/common, and the kernels on the block executor.
#include <cstdint>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "block_executor.h"
#include "common/math.h"
#include "common/tokens.h"
#include "oc_attention_bwd.cuh"
#include "oc_attention_fwd.cuh"

namespace py = pybind11;

namespace {

using ocnet::testing::BlockExecutor;
using Launches = std::vector<std::tuple<int64_t, size_t>>;

// (address, image stride, token stride, channel stride, tokens, channels); address 0 means absent.
using MatrixTuple = std::tuple<uintptr_t, int64_t, int64_t, int64_t, int, int>;

template <typename T>
ocnet::TokenMatrix<T> matrix(const MatrixTuple& fields) {
  const auto [address, image, token, channel, tokens, channels] = fields;
  return {reinterpret_cast<T*>(address), image, token, channel, tokens, channels};
}

Launches launches_of(const BlockExecutor& executor) {
  Launches launches;
  for (const auto& record : executor.launches()) {
    launches.emplace_back(record.blocks, record.shared_bytes);
  }
  return launches;
}

template <typename scalar_t>
Launches attention_fwd(int64_t images, const MatrixTuple& query, const MatrixTuple& key,
                       const MatrixTuple& value, const MatrixTuple& out, uintptr_t lse,
                       const MatrixTuple& residual, double scale, size_t shared_limit,
                       uint64_t seed) {
  using acc_t = ocnet::accumulator_t<scalar_t>;
  BlockExecutor executor(seed, shared_limit);
  ocnet::FwdParams<scalar_t> params;
  params.query = matrix<const scalar_t>(query);
  params.key = matrix<const scalar_t>(key);
  params.value = matrix<const scalar_t>(value);
  params.out = matrix<scalar_t>(out);
  params.residual = matrix<scalar_t>(residual);
  params.lse = reinterpret_cast<acc_t*>(lse);
  params.scale = static_cast<acc_t>(scale);
  ocnet::launch_oc_attention_fwd(params, images, executor);
  return launches_of(executor);
}

template <typename scalar_t>
Launches attention_bwd(int64_t images, bool shared_keys, const MatrixTuple& grad_out,
                       const MatrixTuple& query, const MatrixTuple& key, const MatrixTuple& value,
                       const MatrixTuple& out, uintptr_t lse, const MatrixTuple& residual,
                       uintptr_t delta, double scale, const MatrixTuple& grad_query,
                       const MatrixTuple& grad_key, const MatrixTuple& grad_value,
                       size_t shared_limit, uint64_t seed) {
  using acc_t = ocnet::accumulator_t<scalar_t>;
  BlockExecutor executor(seed, shared_limit);
  ocnet::BwdParams<scalar_t> params;
  params.query = matrix<const scalar_t>(query);
  params.key = matrix<const scalar_t>(key);
  params.value = matrix<const scalar_t>(value);
  params.out = matrix<const scalar_t>(out);
  params.residual = matrix<const scalar_t>(residual);
  params.grad_out = matrix<const scalar_t>(grad_out);
  params.lse = reinterpret_cast<const acc_t*>(lse);
  params.delta = reinterpret_cast<acc_t*>(delta);
  params.scale = static_cast<acc_t>(scale);
  params.grad_value = matrix<scalar_t>(grad_value);
  ocnet::launch_oc_attention_bwd(params, images, shared_keys, matrix<scalar_t>(grad_query),
                                 matrix<scalar_t>(grad_key), executor);
  return launches_of(executor);
}

template <typename scalar_t>
void bind_kernels(py::module_& module, const std::string& suffix) {
  module.def(("attention_fwd_" + suffix).c_str(), &attention_fwd<scalar_t>);
  module.def(("attention_bwd_" + suffix).c_str(), &attention_bwd<scalar_t>);
}

template <typename acc_t>
void bind_math(py::module_& module, const std::string& suffix) {
  const auto name = [&](const char* function) { return function + ("_" + suffix); };
  module.def(name("masked_maximum").c_str(), &ocnet::masked_maximum<acc_t>);
  module.def(name("softmax_reference").c_str(), &ocnet::softmax_reference<acc_t>);
  module.def(name("masked_exponential").c_str(), &ocnet::masked_exponential<acc_t>);
  module.def(name("log_sum_exp").c_str(), &ocnet::log_sum_exp<acc_t>);
  using Softmax = ocnet::OnlineSoftmax<acc_t>;
  py::class_<Softmax>(module, ("OnlineSoftmax_" + suffix).c_str())
      .def(py::init<>())
      .def("raise_maximum", &Softmax::raise)
      .def("reference", &Softmax::reference)
      .def_readwrite("maximum", &Softmax::maximum)
      .def_readwrite("total", &Softmax::total);
}

template <typename scalar_t>
void bind_storage(py::module_& module, const std::string& suffix) {
  module.def(("widen_" + suffix).c_str(),
             py::vectorize([](uint16_t bits) { return ocnet::to_accumulator(scalar_t{bits}); }));
  module.def(("narrow_" + suffix).c_str(), py::vectorize([](float value) {
               return ocnet::from_accumulator<scalar_t>(value).bits;
             }));
}

// Kernels with the faults that the executor exists to catch.
struct FaultParams {
  float* result;
};

void read_before_barrier(FaultParams params) {
  float* const shared = ocnet::device::shared_memory<float>();
  const int thread = ocnet::device::thread_index();
  shared[thread] = static_cast<float>(thread);
  params.result[thread] = shared[thread ^ 1];
}

void read_uninitialised(FaultParams params) {
  const int thread = ocnet::device::thread_index();
  params.result[thread] = ocnet::device::shared_memory<float>()[thread];
}

void write_past_end(FaultParams params) {
  const int thread = ocnet::device::thread_index();
  ocnet::device::shared_memory<float>()[thread + 1] = 0;
  params.result[thread] = 0;
}

void skip_barrier(FaultParams params) {
  const int thread = ocnet::device::thread_index();
  if (thread != 0) ocnet::device::barrier();
  params.result[thread] = 0;
}

void shuffle_in_half_a_warp(FaultParams params) {
  const int thread = ocnet::device::thread_index();
  params.result[thread] = 0;
  if (thread % 32 < 16) params.result[thread] = ocnet::device::shuffle_xor(1.0f, 1);
}

void exchange_lanes(FaultParams params) {
  const int thread = ocnet::device::thread_index();
  float sum = static_cast<float>(thread);
  for (int mask = 16; mask > 0; mask /= 2) sum += ocnet::device::shuffle_xor(sum, mask);
  params.result[thread] = sum;
}

std::vector<float> run_fault(const std::string& name, uint64_t seed) {
  constexpr int kThreads = 64;
  void (*kernel)(FaultParams) = nullptr;
  if (name == "read_before_barrier") kernel = read_before_barrier;
  if (name == "read_uninitialised") kernel = read_uninitialised;
  if (name == "write_past_end") kernel = write_past_end;
  if (name == "skip_barrier") kernel = skip_barrier;
  if (name == "shuffle_in_half_a_warp") kernel = shuffle_in_half_a_warp;
  if (name == "exchange_lanes") kernel = exchange_lanes;
  if (kernel == nullptr) throw std::invalid_argument("unknown kernel " + name);
  std::vector<float> result(kThreads);
  BlockExecutor executor(seed, kThreads * sizeof(float));
  executor(kernel, 1, kThreads, kThreads * sizeof(float), FaultParams{result.data()});
  return result;
}

}  // namespace

PYBIND11_MODULE(ocnet_csrc_tests, module) {
  bind_math<float>(module, "float32");
  bind_math<double>(module, "float64");
  bind_storage<ocnet::Float16>(module, "float16");
  bind_storage<ocnet::BFloat16>(module, "bfloat16");
  bind_kernels<float>(module, "float32");
  bind_kernels<double>(module, "float64");
  bind_kernels<ocnet::BFloat16>(module, "bfloat16");
  bind_kernels<ocnet::Float16>(module, "float16");
  module.def("run_fault", &run_fault);

  module.def("ceil_div", &ocnet::ceil_div);
  module.def("offset",
             [](const MatrixTuple& fields, int64_t image, int64_t token, int64_t channel) {
               const auto whole = matrix<const char>(fields);
               return reinterpret_cast<uintptr_t>(whole.image(image).at(token, channel));
             });
  py::class_<ocnet::BlockPlan>(module, "BlockPlan")
      .def_readonly("blocks", &ocnet::BlockPlan::blocks)
      .def_readonly("chunks_per_block", &ocnet::BlockPlan::chunks_per_block)
      .def_readonly("slices", &ocnet::BlockPlan::slices)
      .def_readonly("shared_bytes", &ocnet::BlockPlan::shared_bytes);
  module.def("plan_blocks", &ocnet::plan_blocks);
  module.def("locate_block", [](const ocnet::BlockPlan& plan, int64_t block, int rows_per_tile) {
    const auto place = ocnet::locate_block(plan, block, rows_per_tile);
    return std::make_tuple(place.image, place.first_row, place.slice);
  });
  module.def("tile_bytes", [](bool fp64) {
    using Single = ocnet::Tile<float>;
    using Double = ocnet::Tile<double>;
    return fp64 ? std::make_tuple(Double::kSide, Double::kFixedBytes, Double::kChunkBytes)
                : std::make_tuple(Single::kSide, Single::kFixedBytes, Single::kChunkBytes);
  });
}
