// SPDX-License-Identifier: MIT
// Every probe, for the emulator.
#include <string>
#include <vector>

#include "delta_probes.cuh"
#include "fault_probes.cuh"
#include "mma_tile_probes.cuh"
#include "primitive_probes_copies.cuh"
#include "primitive_probes_matrix.cuh"
#include "primitive_probes_tensor.cuh"
#include "primitive_probes_threads.cuh"
#include "primitive_probes_wgmma.cuh"
#include "probe_tables.h"
#include "tiled_product.cuh"

namespace ocnet::probes {

const Probe* find_probe(const char* name) {
  return find_in_tables(name, kThreadProbes, kMatrixProbes, kCopyProbes, kTensorProbes,
                        kWgmmaProbes, kTiledProductProbes, kMmaTileProbes, kDeltaProbes,
                        kFaultProbes);
}

std::vector<std::string> primitive_probe_names() {
  return names_in_tables(kThreadProbes, kMatrixProbes, kCopyProbes, kTensorProbes, kWgmmaProbes);
}

}  // namespace ocnet::probes
