// SPDX-License-Identifier: MIT
// Functions of csrc/common as Python functions, for the tests.
#include <cstdint>
#include <optional>
#include <string>
#include <tuple>

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "common/math.h"
#include "common/tile.cuh"
#include "common/tokens.h"
#include "oc_attention_bwd_tiles.h"
#include "oc_attention_tiles.h"

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

void bind_attention_plans(py::module_& module) {
  using ocnet::Arithmetic;
  using Plan = ocnet::ForwardPlan;
  py::enum_<Arithmetic>(module, "Arithmetic")
      .value("narrow", Arithmetic::kNarrow)
      .value("tf32", Arithmetic::kTF32)
      .value("split", Arithmetic::kSplit);
  py::class_<Plan>(module, "ForwardPlan")
      .def_readonly("warps", &Plan::warps)
      .def_readonly("cols", &Plan::cols)
      .def_readonly("width", &Plan::width)
      .def_readonly("resident", &Plan::resident)
      .def_readonly("row_tiles", &Plan::row_tiles)
      .def_readonly("key_tiles", &Plan::key_tiles)
      .def_readonly("slices", &Plan::slices)
      .def_readonly("splits", &Plan::splits)
      .def_readonly("walkers", &Plan::walkers)
      .def_readonly("blocks", &Plan::blocks)
      .def_readonly("shared_bytes", &Plan::shared_bytes);
  module.def(
      "plan_forward",
      [](int64_t images, int queries, int keys, int channels, int value_channels,
         Arithmetic arithmetic, size_t shared_limit, int multiprocessors) {
        return ocnet::plan_forward({images, queries, keys, channels, value_channels, arithmetic},
                                   shared_limit, multiprocessors);
      },
      py::arg("images"), py::arg("queries"), py::arg("keys"), py::arg("channels"),
      py::arg("value_channels"), py::arg("arithmetic"), py::arg("shared_limit"),
      py::arg("multiprocessors"));
  module.def("split_count", &ocnet::split_count);
}

ocnet::BwdWork backward_work(int element_bytes, int channels, int value_channels,
                             const std::string& role, bool tokens) {
  return {element_bytes, channels, value_channels, role != "keys", role != "queries", tokens};
}

void bind_backward(py::module_& module) {
  py::class_<ocnet::BwdTile>(module, "BwdTile")
      .def_readonly("rows", &ocnet::BwdTile::rows)
      .def_readonly("cols", &ocnet::BwdTile::cols)
      .def_readonly("width", &ocnet::BwdTile::width)
      .def_readonly("resident", &ocnet::BwdTile::resident);
  py::class_<ocnet::BwdLayout>(module, "BwdLayout").def_readonly("bytes", &ocnet::BwdLayout::bytes);
  py::class_<ocnet::BwdPlan>(module, "BwdPlan")
      .def_readonly("tile", &ocnet::BwdPlan::tile)
      .def_readonly("blocks", &ocnet::BwdPlan::blocks)
      .def_readonly("slices", &ocnet::BwdPlan::slices)
      .def_readonly("splits", &ocnet::BwdPlan::splits)
      .def_readonly("steps", &ocnet::BwdPlan::steps)
      .def_readonly("layout", &ocnet::BwdPlan::layout);
  // None where no tile fits.
  module.def("plan_bwd",
             [](int element_bytes, int channels, int value_channels, const std::string& role,
                bool tokens, bool value, size_t shared_limit, int64_t images, int own, int other,
                int multiprocessors) -> std::optional<ocnet::BwdPlan> {
               const auto work =
                   backward_work(element_bytes, channels, value_channels, role, tokens);
               const ocnet::BwdTile* const tile = ocnet::find_bwd_tile(work, shared_limit);
               if (tile == nullptr) return std::nullopt;
               return ocnet::plan_bwd(*tile, work, value, images, own, other, multiprocessors);
             });
  module.def("locate_bwd_block", [](const ocnet::BwdPlan& plan, int64_t block) {
    const auto place = ocnet::locate_bwd_block(plan, block);
    return std::make_tuple(place.image, place.first_row, place.slice, place.split, place.first_step,
                           place.end_step);
  });
  module.def("bwd_tile_count", [] { return ocnet::kBwdTileCount; });
  module.def("bwd_splits", &ocnet::bwd_splits);
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
  bind_backward(module);
  bind_attention_plans(module);
  module.def("tile_sizes_float32", &tile_sizes<float>);
  module.def("tile_sizes_float64", &tile_sizes<double>);
}
