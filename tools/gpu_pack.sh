#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Builds what a machine with a GPU would have to compile first, and packs it: build/gpu.tar.gz, which
# tools/gpu_visit.sh unpacks there. It serves a machine with the same release of nvcc.
#
# PYTHON  an interpreter in whose environment ocnet is installed with its CUDA library (python3)
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
if [[ ! -f ocnet/_C_cuda.abi3.so ]]; then
  echo "gpu_pack: there is no CUDA library to pack; install ocnet where nvcc is" >&2
  exit 2
fi
"$python" -c '
from benchmarks.hopper.backward_library import VARIANTS as BACKWARD
from benchmarks.hopper.library import VARIANTS as FORWARD
from tests.emulator.device import PROBES, build
for source in (PROBES, FORWARD, BACKWARD):
    print(build(source)[0])
'
tar -czf build/gpu.tar.gz ocnet/_C_*.so build/probes build/variants build/backward_variants
ls -l build/gpu.tar.gz
