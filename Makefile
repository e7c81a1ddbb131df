# SPDX-License-Identifier: MIT
# `make demo` and `make test` need python >= 3.10, make and a C++ compiler; nothing else.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
NATIVE := $(wildcard csrc/*.* csrc/*/*.* csrc/*/*/*.*) setup.py tools/native_build.py
CXX_FILES := $(foreach folder,csrc tests benchmarks,$(foreach end,h cpp cu cuh,'$(folder)/*.$(end)'))

SIDE_BY_SIDE := -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

.PHONY: install demo test slow lint types format gpu-check gpu-pack gpu-visit doctor clean

install: $(READY)

demo: $(READY)
	$(BIN)/ocnet demo

# Files of tests side by side, one for each processor: most of them keep one busy. In their order, which
# ends with short ones.
test: $(READY)
	$(BIN)/python -m pytest $(SIDE_BY_SIDE)

slow: $(READY)
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) --slow

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	git ls-files $(CXX_FILES) | xargs $(BIN)/clang-format --dry-run --Werror

types: $(READY)
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	git ls-files $(CXX_FILES) | xargs $(BIN)/clang-format -i

doctor: $(READY)
	$(BIN)/ocnet doctor

# On a machine with a GPU, in an environment that has ocnet installed: every test marked gpu, from the
# smallest parts up, then the benchmarks. PYTHON names that environment's interpreter; rows go to
# benchmarks/results/, those of the primitives that the GPU confirms to benchmarks/results/primitives/.
gpu-check:
	$(PYTHON) -m pytest -m gpu --require-gpu tests/emulator
	$(PYTHON) -m benchmarks.hopper.ladder
	$(PYTHON) -m benchmarks.hopper.backward_ladder
	$(PYTHON) -m pytest -m gpu --require-gpu --ignore tests/emulator
	$(PYTHON) -m benchmarks.run --device cuda

# What such a machine would compile first, built where there is nvcc: build/gpu.tar.gz.
gpu-pack: $(READY)
	PYTHON=$(BIN)/python tools/gpu_pack.sh

# The same in ten minutes, and what the Hopper kernels are asked besides (docs/kernels.md).
gpu-visit:
	PYTHON=$(PYTHON) tools/gpu_visit.sh

# torch first, so that the extensions are built against the headers of the torch they will run with.
$(READY): pyproject.toml constraints.txt $(NATIVE)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	touch $(READY)

clean:
	rm -rf build $(VENV) ocnet/_C_*.so
