// SPDX-License-Identifier: MIT
// How activated batch norm cuts its maps, as Python functions, for the tests.
#include <cstdint>
#include <tuple>

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "inplace_abn_plan.h"

namespace py = pybind11;

namespace {

using ocnet::abn::PlaneCut;
using ocnet::abn::RowCut;
using ocnet::abn::SlabPlan;
using ocnet::abn::Slot;

// The number of the map that a vector starts with, and the mask of its numbers that are meant.
using SlotTuple = std::tuple<int64_t, uint32_t>;

template <typename Cut, typename... Where>
SlotTuple slot_of(const Cut& cut, int width, const Where&... where) {
  const Slot slot = width == 2   ? cut.template slot<2>(where...)
                    : width == 4 ? cut.template slot<4>(where...)
                                 : cut.template slot<8>(where...);
  return {slot.at, slot.mask};
}

void bind_planes(py::module_& module) {
  py::class_<PlaneCut>(module, "PlaneCut")
      .def_readonly("planes", &PlaneCut::planes)
      .def_readonly("segments", &PlaneCut::segments)
      .def_readonly("segment", &PlaneCut::segment)
      .def_readonly("parts", &PlaneCut::parts)
      .def_property_readonly("blocks", &PlaneCut::blocks)
      // First number, numbers to the next run, runs, their length, and slots.
      .def("share",
           [](const PlaneCut& cut, int64_t channel, int part) {
             const auto share = cut.share(channel, part);
             return std::make_tuple(share.first, share.step, share.runs, share.length,
                                    cut.slots(share));
           })
      .def("slot", [](const PlaneCut& cut, int width, int64_t channel, int part, int index) {
        return slot_of(cut, width, cut.share(channel, part), index);
      });
  module.def("abn_cut_stream", &ocnet::abn::cut_stream, py::arg("images"), py::arg("channels"),
             py::arg("length"), py::arg("width"));
  py::class_<SlabPlan>(module, "SlabPlan")
      .def_readonly("cluster", &SlabPlan::cluster)
      .def_readonly("teams", &SlabPlan::teams)
      .def_readonly("team_threads", &SlabPlan::team_threads)
      .def_readonly("team_slots", &SlabPlan::team_slots)
      .def_readonly("blocks", &SlabPlan::blocks)
      .def_readonly("shared_bytes", &SlabPlan::shared_bytes)
      .def_readonly("cut", &SlabPlan::cut);
  module.def("abn_plan_slab", &ocnet::abn::plan_slab, py::arg("images"), py::arg("channels"),
             py::arg("length"), py::arg("width"), py::arg("maps"), py::arg("shared_limit"),
             py::arg("has_clusters"));
}

void bind_rows(py::module_& module) {
  py::class_<RowCut>(module, "RowCut")
      .def_readonly("repeats", &RowCut::repeats)
      .def_readonly("vectors", &RowCut::vectors)
      .def_readonly("columns", &RowCut::columns)
      .def_readonly("tiles", &RowCut::tiles)
      .def_readonly("lanes", &RowCut::lanes)
      .def_readonly("parts", &RowCut::parts)
      .def_readonly("super_rows", &RowCut::super_rows)
      .def_property_readonly("blocks", &RowCut::blocks)
      .def_property_readonly("records", &RowCut::records)
      .def("first_row", &RowCut::first_row)
      .def("end_row", &RowCut::end_row)
      .def("end_of_whole", &RowCut::end_of_whole)
      .def("count", &RowCut::count)
      .def("channel_at",
           [](const RowCut& cut, int place) {
             const auto at = cut.channel_at(place);
             return std::make_tuple(at.channel, at.repeat);
           })
      .def("slot", [](const RowCut& cut, int width, int64_t row, int column) {
        return slot_of(cut, width, row, column);
      });
  module.def("abn_cut_rows", &ocnet::abn::cut_rows, py::arg("rows"), py::arg("channels"),
             py::arg("width"));
}

}  // namespace

void bind_abn(py::module_& module) {
  bind_planes(module);
  bind_rows(module);
}
