// SPDX-License-Identifier: MIT
// Functions of csrc/common as Python functions, for the tests.
#include <cstdint>
#include <string>
#include <tuple>

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "common/math.h"
#include "common/tile.cuh"
#include "common/tokens.h"

namespace py = pybind11;

namespace {

template <typename acc_t>
void bind_math(py::module_& module, const std::string& suffix) {
  const auto name = [&](const char* function) { return function + ("_" + suffix); };
  module.def(name("masked_maximum").c_str(), &ocnet::masked_maximum<acc_t>);
  module.def(name("masked_exponential").c_str(), &ocnet::masked_exponential<acc_t>);
  module.def(name("log_sum_exp").c_str(), &ocnet::log_sum_exp<acc_t>);
  using Softmax = ocnet::OnlineSoftmax<acc_t>;
  py::class_<Softmax>(module, name("OnlineSoftmax").c_str())
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

// Address, image stride, token stride, channel stride, tokens, channels.
using MatrixTuple = std::tuple<uintptr_t, int64_t, int64_t, int64_t, int, int>;

uintptr_t offset(const MatrixTuple& fields, int64_t image, int64_t token, int64_t channel) {
  const auto [address, image_stride, token_stride, channel_stride, tokens, channels] = fields;
  const ocnet::TokenMatrix<const char> matrix{reinterpret_cast<const char*>(address),
                                              image_stride,
                                              token_stride,
                                              channel_stride,
                                              tokens,
                                              channels};
  return reinterpret_cast<uintptr_t>(matrix.image(image).at(token, channel));
}

void bind_plan(py::module_& module) {
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
}

template <typename acc_t>
auto tile_sizes() {
  using TileT = ocnet::Tile<acc_t>;
  return std::make_tuple(TileT::kSide, TileT::kFixedBytes, TileT::kChunkBytes);
}

}  // namespace

void bind_common(py::module_& module) {
  bind_math<float>(module, "float32");
  bind_math<double>(module, "float64");
  bind_storage<ocnet::Float16>(module, "float16");
  bind_storage<ocnet::BFloat16>(module, "bfloat16");
  module.def("offset", &offset);
  bind_plan(module);
  module.def("tile_sizes_float32", &tile_sizes<float>);
  module.def("tile_sizes_float64", &tile_sizes<double>);
}
