// SPDX-License-Identifier: MIT
// How the Hopper forward kernel deals its work, as Python functions, for the tests.
#include <optional>
#include <tuple>
#include <vector>

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "common/math.h"
#include "oc_attention_hopper_plan.h"

namespace py = pybind11;

namespace {

using ocnet::HopperPlan;
using ocnet::WorkTable;

// Source, channels, values, keys of a step; blocks of a cluster, bytes of shared memory, registers.
using RowTuple = std::tuple<int, int, int, int, int, int, int>;

template <typename Tile>
RowTuple row() {
  return {static_cast<int>(Tile::kSource),
          Tile::kChannels,
          Tile::kValues,
          Tile::kCols,
          Tile::kCluster,
          Tile::kSharedBytes,
          Tile::kConsumerRegisters};
}

std::vector<RowTuple> rows() {
  using ocnet::HopperSource;
  std::vector<RowTuple> found;
#define OCNET_LIST(kind, ...) \
  found.push_back(row<ocnet::HopperTile<ocnet::BFloat16, __VA_ARGS__, HopperSource::kind>>());
  OCNET_HOPPER_ROWS(OCNET_LIST)
#undef OCNET_LIST
  return found;
}

// Tile, first step, steps, and part or -1, of each job of a worker.
std::vector<std::tuple<int, int, int, int>> jobs(const HopperPlan& plan, int worker) {
  std::vector<std::tuple<int, int, int, int>> found;
  ocnet::HopperWalk walk(plan, worker);
  ocnet::HopperJob job;
  while (walk.next(job)) {
    found.emplace_back(job.tile, job.first_step, job.steps, job.is_part ? walk.part(job) : -1);
  }
  return found;
}

// The tile that the combination finds at a worker, and its parts.
std::optional<std::tuple<int, std::vector<int>>> cut_tile(const HopperPlan& plan, int worker) {
  ocnet::TileParts tile;
  if (!ocnet::cut_tile(plan, worker, tile)) return std::nullopt;
  std::vector<int> parts;
  for (int i = 0; i < tile.workers; ++i) parts.push_back(tile.part(i));
  return std::make_tuple(tile.tile, parts);
}

// Family, image, first token of the group, tile of queries, slice, tiles of keys in their order,
// and part or -1, of each job of a worker.
using TaskTuple = std::tuple<int, int64_t, int64_t, int, int, std::vector<int>, int>;

std::vector<TaskTuple> tasks(const HopperPlan& plan, const WorkTable& work, int worker,
                             int tile_rows, int cols) {
  std::vector<TaskTuple> found;
  ocnet::HopperWalk walk(plan, worker);
  ocnet::HopperJob job;
  while (walk.next(job)) {
    const ocnet::HopperTask task(plan, work, walk, job, tile_rows, cols);
    std::vector<int> keys;
    ocnet::KeyWalk at = task.keys;
    for (int i = 0; i < task.steps; ++i, at.advance()) keys.push_back(at.tile);
    found.emplace_back(task.family, task.image, task.origin, task.row_tile, task.slice, keys,
                       task.part);
  }
  return found;
}

}  // namespace

void bind_hopper(py::module_& module) {
  py::class_<HopperPlan>(module, "HopperPlan")
      .def(py::init([](int tiles, int workers, int steps, int range, int longer) {
             return HopperPlan{tiles, workers, steps, range, longer};
           }),
           py::arg("tiles"), py::arg("workers"), py::arg("steps"), py::arg("range"),
           py::arg("longer"))
      .def_readonly("tiles", &HopperPlan::tiles)
      .def_readonly("workers", &HopperPlan::workers)
      .def_readonly("steps", &HopperPlan::steps)
      .def_readonly("slices", &HopperPlan::slices)
      .def_readonly("own_keys_first", &HopperPlan::own_keys_first)
      .def("jobs", &jobs)
      .def("cut_tile", &cut_tile)
      .def("tasks", &tasks);
  module.def("hopper_rows", &rows);
  module.attr("hopper_part_steps") = ocnet::kHopperPartSteps;
  module.def("deal_tiles", &ocnet::deal_tiles, py::arg("tiles"), py::arg("steps"),
             py::arg("slices"), py::arg("most"));
  // Of attention without groups, which `deal_hopper` cuts.
  module.def("whole_maps", [](int images, int queries, int keys) {
    return ocnet::list_work({{images, ocnet::one_group(queries), keys}});
  });
  module.def("deal_hopper", [](WorkTable work, bool has_groups, int rows, int cols, int slices,
                               int most_workers) {
    const auto plan = ocnet::deal_hopper(work, has_groups, rows, cols, slices, most_workers);
    return std::make_tuple(plan, work);
  });
}
