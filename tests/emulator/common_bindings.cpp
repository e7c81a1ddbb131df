// SPDX-License-Identifier: MIT
// Functions of csrc/common as Python functions, for the tests.
#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "common/groups.h"
#include "common/math.h"
#include "common/segments.h"
#include "common/tensor_map_cache.h"
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
  module.def(("widen_" + suffix).c_str(), py::vectorize([](decltype(scalar_t::bits) bits) {
               return ocnet::to_accumulator(scalar_t{bits});
             }));
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
      .def_readonly("queries_are_keys", &Plan::queries_are_keys)
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

struct PlannedBackward {
  ocnet::BwdPlan plan;
  ocnet::WorkTable work;
};

void bind_backward(py::module_& module) {
  py::class_<ocnet::BwdTile>(module, "BwdTile")
      .def_readonly("rows", &ocnet::BwdTile::rows)
      .def_readonly("cols", &ocnet::BwdTile::cols)
      .def_readonly("width", &ocnet::BwdTile::width)
      .def_readonly("resident", &ocnet::BwdTile::resident);
  py::class_<ocnet::BwdLayout>(module, "BwdLayout").def_readonly("bytes", &ocnet::BwdLayout::bytes);
  py::class_<PlannedBackward>(module, "BwdPlan")
      .def_property_readonly("tile", [](const PlannedBackward& all) { return all.plan.tile; })
      .def_property_readonly("blocks", [](const PlannedBackward& all) { return all.plan.blocks; })
      .def_property_readonly("slices", [](const PlannedBackward& all) { return all.plan.slices; })
      .def_property_readonly("splits", [](const PlannedBackward& all) { return all.plan.splits; })
      .def_property_readonly(
          "steps", [](const PlannedBackward& all) { return all.work.families[0].col_tiles; })
      .def_property_readonly("layout", [](const PlannedBackward& all) { return all.plan.layout; });
  // None where no tile fits.
  module.def("plan_bwd",
             [](int element_bytes, int channels, int value_channels, const std::string& role,
                bool tokens, bool value, size_t shared_limit, int images, int own, int other,
                int multiprocessors) -> std::optional<PlannedBackward> {
               const auto work =
                   backward_work(element_bytes, channels, value_channels, role, tokens);
               const ocnet::BwdTile* const tile = ocnet::find_bwd_tile(work, shared_limit);
               if (tile == nullptr) return std::nullopt;
               PlannedBackward all;
               all.work = ocnet::list_work({{images, ocnet::one_group(own), other}});
               all.plan = ocnet::plan_bwd(*tile, work, value, true, multiprocessors, all.work);
               return all;
             });
  module.def("locate_bwd_block", [](const PlannedBackward& all, int64_t block) {
    const auto place = ocnet::locate_bwd_block(all.plan, all.work, block);
    return std::make_tuple(place.image, place.first_row, place.slice, place.split, place.first_step,
                           place.end_step);
  });
  module.def("bwd_tile_count", [] { return ocnet::kBwdTileCount; });
  module.def("bwd_splits", &ocnet::bwd_splits);
}

// As `Axes.flat`: size, count, step and stride of rows, then of columns.
ocnet::Partition partition_of(const std::vector<int>& numbers) {
  return {{numbers[0], numbers[1], numbers[2], numbers[3]},
          {numbers[4], numbers[5], numbers[6], numbers[7]}};
}

void bind_segments(py::module_& module) {
  using Axis = ocnet::GroupAxis;
  py::class_<Axis>(module, "GroupAxis")
      .def(py::init([](int size, int count, int step, int stride) {
        return Axis{size, count, step, stride};
      }))
      .def("extent", &Axis::extent)
      .def("position", &Axis::position)
      .def("group_of", &Axis::group_of)
      .def("index_of", &Axis::index_of)
      .def("like_first", &Axis::like_first);
  module.def("quotients", [](uint32_t divisor, const std::vector<uint32_t>& numbers) {
    std::vector<uint32_t> quotients;
    for (const uint32_t number : numbers) {
      quotients.push_back(ocnet::Divisor(divisor).quotient(number));
    }
    return quotients;
  });
  // The tokens of the map, of all tokens of a group.
  module.def("map_tokens", [](const std::vector<int>& numbers, int row, int column) {
    const auto partition = partition_of(numbers);
    const ocnet::Divisor width(static_cast<uint32_t>(partition.columns.extent(column)));
    const auto segment = partition.segment(row, column, width);
    std::vector<int64_t> tokens;
    for (int i = 0; i < segment.tokens; ++i) tokens.push_back(segment.map_token(i));
    return tokens;
  });
  module.def("group_shapes", [](const std::vector<int>& numbers) {
    ocnet::GroupShape shapes[ocnet::kMostShapes];
    const int count = partition_of(numbers).shapes(shapes);
    std::vector<std::tuple<int, int, int, int, int, int>> found;
    for (int i = 0; i < count; ++i) {
      const ocnet::GroupShape& shape = shapes[i];
      found.emplace_back(shape.first_row, shape.first_column, shape.rows, shape.columns,
                         shape.height, shape.width);
    }
    return found;
  });
}

// Images and partition of each stage.
using StageNumbers = std::vector<std::tuple<int, std::vector<int>>>;

ocnet::WorkTable work_of(const StageNumbers& stages) {
  std::vector<ocnet::StageWork> work;
  for (const auto& [images, numbers] : stages) {
    const auto partition = partition_of(numbers);
    work.push_back({images, partition, partition.rows.size * partition.columns.size});
  }
  return ocnet::list_work(work);
}

void bind_work(py::module_& module) {
  using ocnet::Family;
  using ocnet::WorkTable;
  py::class_<Family>(module, "Family")
      .def_readonly("stage", &Family::stage)
      .def_readonly("images", &Family::images)
      .def_readonly("groups", &Family::groups)
      .def_readonly("tokens", &Family::owned)
      .def_readonly("is_run", &Family::is_run)
      .def_readonly("row_tiles", &Family::row_tiles)
      .def_readonly("col_tiles", &Family::col_tiles)
      .def_readonly("first_block", &Family::first_block);
  py::class_<WorkTable>(module, "WorkTable")
      .def_property_readonly("families",
                             [](const WorkTable& work) {
                               return std::vector<Family>(work.families,
                                                          work.families + work.count);
                             })
      // Stage, image, block of the group, and the tokens of the group.
      .def("locate", [](const WorkTable& work, int64_t block) {
        const auto place = ocnet::locate_work(work, block);
        const Family& family = work.families[place.family];
        // A matrix that starts at 0, of one byte for each token: addresses are tokens.
        const ocnet::TokenMatrix<const char> map{nullptr, 0, 1, 1, 0, 1};
        const auto span = ocnet::span_of(map, place, family, family.owned);
        const ocnet::GroupMatrix<const char> matrix(span, family.steps);
        std::vector<uintptr_t> tokens;
        for (int i = 0; i < matrix.tokens; ++i) {
          tokens.push_back(reinterpret_cast<uintptr_t>(matrix.at(i, 0)));
        }
        return std::make_tuple(family.stage, place.image, place.block, tokens);
      });
  module.def("deal_work", [](const StageNumbers& stages, int rows, int cols, int slices) {
    WorkTable work = work_of(stages);
    const int64_t blocks = ocnet::deal_work(
        work, [&](Family& family) { return ocnet::cut_family(family, rows, cols, slices); });
    return std::make_tuple(work, blocks);
  });
  module.def(
      "plan_groups",
      [](const StageNumbers& stages, int channels, int value_channels, ocnet::Arithmetic arithmetic,
         bool shared_keys, size_t shared_limit, int multiprocessors) {
        WorkTable work = work_of(stages);
        auto plan = ocnet::plan_groups({0, 0, 0, channels, value_channels, arithmetic}, shared_keys,
                                       work, shared_limit, multiprocessors);
        if (plan.warps > 0) ocnet::deal_forward(work, plan);
        return std::make_tuple(plan, work);
      },
      py::arg("stages"), py::arg("channels"), py::arg("value_channels"), py::arg("arithmetic"),
      py::arg("shared_keys"), py::arg("shared_limit"), py::arg("multiprocessors"));
}

// Address, element, axes, swizzle, then sizes, strides in bytes and box sides of four axes.
using MapNumbers = std::array<uint64_t, 16>;

ocnet::TensorMapRequest request_of(const MapNumbers& numbers) {
  ocnet::TensorMapRequest request;
  request.data = reinterpret_cast<void*>(numbers[0]);
  request.element = static_cast<ocnet::MapElement>(numbers[1]);
  request.rank = static_cast<int>(numbers[2]);
  request.swizzle = numbers[3] != 0;
  for (size_t axis = 0; axis < 4; ++axis) {
    request.sizes[axis] = numbers[4 + axis];
    request.stride_bytes[axis] = numbers[8 + axis];
    request.box[axis] = static_cast<uint32_t>(numbers[12 + axis]);
  }
  return request;
}

auto words_of(const ocnet::TensorMap& map) {
  return std::vector<uint64_t>(std::begin(map.words), std::end(map.words));
}

void bind_tensor_maps(py::module_& module) {
  using ocnet::TensorMapCache;
  py::class_<TensorMapCache>(module, "TensorMapCache")
      .def(py::init<size_t>())
      // The map, and whether it had to be encoded.
      .def(
          "get",
          [](TensorMapCache& cache, const MapNumbers& numbers) {
            bool encoded = false;
            const auto request = request_of(numbers);
            const auto map = cache.get(request, [&] {
              encoded = true;
              return ocnet::encode_tensor_map("get", request);
            });
            return std::make_pair(words_of(map), encoded);
          },
          py::call_guard<py::gil_scoped_release>());
  module.def("encode_tensor_map", [](const MapNumbers& numbers) {
    return words_of(ocnet::encode_tensor_map("encode", request_of(numbers)));
  });
  module.def("cached_tensor_map", [](const MapNumbers& numbers) {
    return words_of(ocnet::cached_tensor_map("cached", request_of(numbers)));
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
  bind_storage<ocnet::Float8>(module, "float8");
  module.def("offset", &offset);
  bind_plan(module);
  bind_backward(module);
  bind_attention_plans(module);
  bind_segments(module);
  bind_work(module);
  bind_tensor_maps(module);
  module.attr("group_bytes") = ocnet::kGroupBytes;
  module.def("tile_sizes_float32", &tile_sizes<float>);
  module.def("tile_sizes_float64", &tile_sizes<double>);
}
