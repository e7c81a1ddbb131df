// SPDX-License-Identifier: MIT
// Probes run from Python, in the emulator, on the memory of numpy arrays.
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "probe.h"

namespace py = pybind11;

namespace ocnet::probes {

const Probe* find_probe(const char* name);
std::vector<std::string> primitive_probe_names();

namespace {

// Forgets the arrays of a call when it ends.
struct Detacher {
  ~Detacher() { emulator::detach_all(); }
};

void run_probe(const std::string& name, const std::vector<py::array>& arrays,
               const std::vector<int64_t>& arguments) {
  const Probe* const probe = find_probe(name.c_str());
  if (probe == nullptr) {
    throw std::invalid_argument("run_probe: name must be that of a probe, got " + name);
  }
  const Detacher detacher;
  std::vector<void*> buffers;
  std::vector<int64_t> bytes;
  for (const py::array& array : arrays) {
    if ((array.flags() & py::array::c_style) == 0) {
      throw std::invalid_argument("run_probe: buffers must be contiguous, got one that is not");
    }
    buffers.push_back(const_cast<void*>(array.data()));
    bytes.push_back(array.nbytes());
    const std::string label = "buffer " + std::to_string(buffers.size() - 1);
    emulator::attach(label.c_str(), array.data(), static_cast<size_t>(array.nbytes()),
                     array.writeable());
  }
  const KernelLauncher launch(probe->name);
  probe->run({buffers.data(), bytes.data(), arguments.data(), launch});
}

}  // namespace
}  // namespace ocnet::probes

void bind_probes(py::module_& module) {
  module.def("run_probe", &ocnet::probes::run_probe, py::arg("name"), py::arg("buffers"),
             py::arg("arguments") = std::vector<int64_t>{},
             "Runs a probe on contiguous arrays, in place; it may write those that are writeable.");
  module.def("primitive_probe_names", &ocnet::probes::primitive_probe_names);
}
