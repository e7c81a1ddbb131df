# SPDX-License-Identifier: MIT
"""The back ends under test, each on its device."""

import pytest
import torch

from ocnet.ops import _extension

DEVICES = {"reference": "cpu", "cpu": "cpu", "triton": "cuda", "cuda": "cuda"}
BACKENDS = [
    "reference",
    pytest.param("cpu", marks=pytest.mark.native),
    pytest.param("triton", marks=[pytest.mark.gpu, pytest.mark.triton]),
    pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.native]),
]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "backend" in metafunc.fixturenames:
        metafunc.parametrize("backend", BACKENDS)


@pytest.fixture
def device(backend: str, request: pytest.FixtureRequest) -> str:
    if backend in ("cpu", "cuda"):
        library = _extension.load(backend)
        if library.path is None and not request.config.getoption("--require-gpu"):
            pytest.skip(str(library.problem))
        assert library.problem is None, library.problem
    return DEVICES[backend]


@pytest.fixture
def dtypes(backend: str) -> tuple[torch.dtype, ...]:
    """The dtypes that the back end takes."""
    narrow = (torch.float32, torch.bfloat16, torch.float16)
    return narrow if backend == "triton" else (*narrow, torch.float64)
