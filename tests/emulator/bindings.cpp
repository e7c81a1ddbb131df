// SPDX-License-Identifier: MIT
// The Python module of the emulator: its settings, what it recorded, and what tests run on it.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "emulator.h"

namespace py = pybind11;

void bind_abn(py::module_& module);
void bind_common(py::module_& module);
void bind_hopper(py::module_& module);
void bind_probes(py::module_& module);

PYBIND11_MODULE(ocnet_emulator, module) {
  using namespace ocnet::emulator;
  module.def(
      "configure",
      [](uint64_t seed, size_t shared_limit, int64_t traced_block, int multiprocessors,
         bool clusters) {
        settings() = {seed, shared_limit, traced_block, multiprocessors, clusters};
        launch_records().clear();
        trace_lines().clear();
        detach_all();
      },
      py::arg("seed") = Settings{}.seed, py::arg("shared_limit") = Settings{}.shared_limit,
      py::arg("traced_block") = Settings{}.traced_block,
      py::arg("multiprocessors") = Settings{}.multiprocessors,
      py::arg("clusters") = Settings{}.clusters,
      "Sets how later launches run, and forgets those before.");
  py::class_<LaunchRecord>(module, "LaunchRecord")
      .def_readonly("kernel", &LaunchRecord::kernel)
      .def_readonly("blocks", &LaunchRecord::blocks)
      .def_readonly("threads", &LaunchRecord::threads)
      .def_readonly("shared_bytes", &LaunchRecord::shared_bytes)
      .def_readonly("cluster_blocks", &LaunchRecord::cluster_blocks);
  module.def("launches", &launch_records);
  module.def("trace", &trace_lines);
  module.def(
      "attach",
      [](const char* name, uintptr_t address, size_t bytes, bool writable) {
        attach(name, reinterpret_cast<const void*>(address), bytes, writable);
      },
      "Lets kernels touch memory of the caller until the next launch of a tensor op.");
  module.def("detach_all", &detach_all);
  bind_abn(module);
  bind_common(module);
  bind_hopper(module);
  bind_probes(module);
}
