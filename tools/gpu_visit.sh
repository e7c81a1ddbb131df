#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# A short visit to a machine with an H200 or H100: what is asked of it, most telling first. Every stage
# has a limit and none stops the next, so that one visit brings back as much as it can.
#
#   tools/gpu_visit.sh                      all stages, or
#   tools/gpu_visit.sh ladder experiments   those named
#
# PYTHON         an interpreter with torch, numpy and pytest (python3)
# PACK           what tools/gpu_pack.sh has built elsewhere, if it is there (build/gpu.tar.gz)
# OUT            folder of what comes back (benchmarks/results/visit): eight files
# VISIT_SECONDS  after which no stage goes on (560)
set -u
cd "$(dirname "$0")/.."
export PYTHON=${PYTHON:-python3} OUT=${OUT:-benchmarks/results/visit}
mkdir -p "$OUT" && OUT=$(cd "$OUT" && pwd)
: >"$OUT/summary.txt"
pack=${PACK:-build/gpu.tar.gz}
[[ ! -f $pack ]] || tar -xzf "$pack" --keep-newer-files
export PYTHONUNBUFFERED=1 PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
deadline=$((SECONDS + ${VISIT_SECONDS:-560}))
wanted=" $* "

say() { printf '%s\n' "$*" | tee -a "$OUT/summary.txt"; }

# stage NAME LIMIT: runs the function of that name in a shell of its own, for LIMIT seconds at most.
stage() {
  local name=$1 limit=$2 began=$SECONDS left=$((deadline - SECONDS))
  [[ $wanted == "  " || $wanted == *" $name "* ]] || return 0
  if ((left < 5)); then
    say "$name: not tried, no time is left"
    return 0
  fi
  ((limit <= left)) || limit=$left
  printf '\n=== %s, at most %s s\n' "$name" "$limit"
  timeout --kill-after=10 "$limit" bash -c "set -u; $name"
  local status=$?
  local words="failed ($status)"
  ((status == 0)) && words="passed"
  ((status == 3)) && words="not possible here"
  ((status == 124 || status == 137)) && words="stopped at its limit"
  say "$name: $words after $((SECONDS - began)) s"
}

facts() {
  nvidia-smi
  nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.max.sm,power.limit --format=csv
  nvcc --version | tail -2
  "$PYTHON" -c 'import torch; print("torch", torch.__version__, torch.cuda.get_device_name())'
}

# The libraries of probes and of variants, the emulator and the CUDA library, side by side.
build() {
  local jobs=() job failed=0
  "$PYTHON" -c 'from tests.emulator.device import build; print(build()[0])' & jobs+=($!)
  "$PYTHON" -c 'from tests.emulator.device import build; from benchmarks.hopper.library import VARIANTS; print(build(VARIANTS)[0])' & jobs+=($!)
  "$PYTHON" -c 'from tests.emulator.device import build; from benchmarks.hopper.backward_library import VARIANTS; print(build(VARIANTS)[0])' & jobs+=($!)
  "$PYTHON" -m tests.emulator.build & jobs+=($!)
  library & jobs+=($!)
  for job in "${jobs[@]}"; do wait "$job" || failed=1; done
  return "$failed"
}
# The one that is there, if this torch loads it.
library() {
  local loads='from ocnet.ops._extension import load; found = load("cuda"); print(found); raise SystemExit(found.problem is not None)'
  "$PYTHON" -c "$loads" && return 0
  OCNET_BUILD=cuda OCNET_CUDA_ARCHS=90a "$PYTHON" setup.py -q build_ext --inplace && "$PYTHON" -c "$loads"
}

# A file at a time: an error that CUDA does not recover from, or a kernel that hangs, costs no more.
tests() {
  local failed=0 file status
  for file in "$@"; do
    timeout --kill-after=5 100 "$PYTHON" -m pytest -q -m gpu --require-gpu -p no:cacheprovider \
      --tb=short --maxfail=20 -o faulthandler_timeout=60 "${only[@]}" "$file"
    status=$?
    ((status == 0 || status == 5)) || failed=1 # 5: it has none
    printf '%s: %s\n' "$file" "$status"
  done
  return "$failed"
}

primitives() {
  local status
  only=() && tests tests/emulator/test_on_device.py tests/emulator/test_tiled_product.py \
    tests/emulator/test_mma_tile.py
  status=$?
  cat benchmarks/results/primitives/*.jsonl >"$OUT/primitives.jsonl"
  return "$status"
}

ladder() { "$PYTHON" -m benchmarks.hopper.ladder --most 150 --out "$OUT/ladder.jsonl"; }
ladder_backward() {
  "$PYTHON" -m benchmarks.hopper.backward_ladder --most 150 --out "$OUT/ladder.jsonl"
}

hopper_tests() {
  shopt -s nullglob
  only=(-k hopper) && tests tests/ops/test_hopper*.py tests/ops/test_accuracy.py \
    tests/ops/test_oc_attention.py tests/ops/test_partitioned_attention.py
}

experiments() {
  "$PYTHON" -m benchmarks.hopper.experiments --most 140 --out "$OUT/experiments.jsonl"
}
experiments_backward() {
  "$PYTHON" -m benchmarks.hopper.backward_experiments --most 140 --out "$OUT/experiments.jsonl"
}

dense="base-97-n4 base-97-n2 base-97-n8 base-97-n1 base-97-v512-n4 asp-97-n4 whole-129x257 pooled-48-n8 \
pooled-48-n1 pyramid-97-n4"
rows() {
  "$PYTHON" -m benchmarks.run --device cuda --dtypes bfloat16 --out "$OUT/benchmarks.jsonl" "$@"
}
benchmarks() {
  rows --phases forward --cases $dense \
    --forms fused fused:hopper fused:fp8 fused:portable sdpa:flash sdpa:cudnn sdpa:efficient sdpa naive published
}
# What has to be compiled, or is slow.
peers() { rows --phases forward --cases base-97-n4 pyramid-97-n4 --forms flex compile sdpa:math; }
steps() { rows --phases backward step --cases base-97-n4 pyramid-97-n4 --forms fused fused:hopper sdpa naive published; }

find_tool() { command -v "$1" || ls "${CUDA_HOME:-/usr/local/cuda}/bin/$1" 2>/dev/null; }

profile() {
  local tool section sections=() failed=0
  tool=$(find_tool ncu) || { echo "no ncu here"; return 3; }
  for section in SpeedOfLight ComputeWorkloadAnalysis MemoryWorkloadAnalysis \
    MemoryWorkloadAnalysis_Tables WarpStateStats SchedulerStats LaunchStats Occupancy; do
    sections+=(--section "$section")
  done
  # Clocks stay as they are: they are not ours to set.
  profiled() { # KERNEL PROGRAM
    local log status
    log=$(mktemp)
    "$tool" --clock-control none --target-processes all --kernel-name "regex:$1" --launch-count 1 \
      --print-details all "${sections[@]}" --log-file "$log" \
      "$PYTHON" -m "benchmarks.hopper.$2" --questions shipped --batches 4 --repeats 0
    status=$?
    cat "$log" >>"$OUT/ncu.txt"
    rm "$log"
    return "$status"
  }
  profiled hopper_fwd experiments || failed=1
  profiled hopper_bwd_kernel backward_experiments || failed=1
  return "$failed"
}

sanitize() {
  local tool check failed=0
  tool=$(find_tool compute-sanitizer) || { echo "no compute-sanitizer here"; return 3; }
  sanitized() { # LADDER RUNGS...
    timeout --kill-after=5 60 "$tool" --tool "$check" --target-processes all --print-limit 20 \
      --error-exitcode 9 "$PYTHON" -m "benchmarks.hopper.$1" --seconds 55 --most 45 \
      --rungs "${@:2}" >>"$OUT/sanitizer.txt" 2>&1
    local status=$?
    ((status == 0)) || failed=1
    printf '%s of the %s: %s\n' "$check" "$1" "$status" | tee -a "$OUT/sanitizer.txt"
  }
  for check in memcheck synccheck racecheck; do
    sanitized ladder "one step" "two steps" "tiles cut anywhere" "groups: cells"
    sanitized backward_ladder "one step" "two steps" "tiles cut anywhere" "groups: cells"
  done
  return "$failed"
}

all_tests() {
  local files
  mapfile -t files < <(grep -lrE "mark.gpu|subject" tests --include='test_*.py' | grep -v tests/emulator)
  only=(-k "not hopper") && tests "${files[@]}"
}

export -f facts build library tests primitives ladder ladder_backward hopper_tests experiments \
  experiments_backward rows benchmarks peers steps find_tool profile sanitize all_tests
export dense

visit() {
  stage facts 30
  stage build 300
  stage primitives 120
  stage ladder 170
  stage ladder_backward 170
  stage hopper_tests 200
  stage experiments 170
  stage experiments_backward 170
  stage benchmarks 180
  stage profile 120
  stage sanitize 370
  stage peers 120
  stage steps 60
  stage all_tests 400
}
visit 2>&1 | tee -a "$OUT/visit.log"
printf '\n' && cat "$OUT/summary.txt"
! grep -qE ': (failed|stopped|not tried)' "$OUT/summary.txt"
