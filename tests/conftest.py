# SPDX-License-Identifier: MIT
"""Seeding, NaN in uninitialised memory, the emulator, and skips that say why."""

import importlib.util
import os
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch

# Deterministic algorithms on a GPU need it, and cuBLAS reads it once.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run tests marked slow")
    parser.addoption("--require-gpu", action="store_true", help="fail where a GPU is missing")


def pytest_configure(config: pytest.Config) -> None:
    """Leave the other processes of pytest-xdist their share of the processors."""
    count = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    torch.set_num_threads(max(1, torch.get_num_threads() // count))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    skips: dict[str, str] = {}
    if not config.getoption("--slow"):
        skips["slow"] = "slow: run with --slow"
    if not torch.cuda.is_available() and not config.getoption("--require-gpu"):
        skips["gpu"] = "no CUDA device"
    if importlib.util.find_spec("triton") is None:
        skips["triton"] = "triton is not installed"
    for item in items:
        for mark, reason in skips.items():
            if item.get_closest_marker(mark) is not None:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def _seeded_and_poisoned() -> Iterator[None]:
    """Make results repeatable and ``torch.empty`` (C++ too) full of NaN."""
    torch.manual_seed(0)
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Compute on one thread: on tiny maps, threads would wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def emulator() -> ModuleType:
    """The module of tests/emulator, built on first use; its ops are torch.ops.ocnet_emulated."""
    from tests.emulator.build import UnavailableError, load_emulator

    try:
        return load_emulator()
    except UnavailableError as missing:
        pytest.skip(str(missing))


@pytest.fixture(autouse=True)
def _emulator_as_new(request: pytest.FixtureRequest) -> None:
    """Undo what the last test has set, and forget its launches."""
    if "emulator" in request.fixturenames:
        request.getfixturevalue("emulator").configure()
