# SPDX-License-Identifier: MIT
"""What probes run on: the emulator, and a GPU where there is one."""

from collections.abc import Iterator, Sequence
from types import ModuleType

import numpy as np
import pytest

from tests.emulator.device import Device, UnavailableError, UnsupportedError


class Emulated:
    """The emulator, as a target of trials."""

    is_emulator = True

    def __init__(self, module: ModuleType) -> None:
        self.module = module

    def run_probe(
        self, name: str, buffers: Sequence[np.ndarray], arguments: Sequence[int] = ()
    ) -> None:
        self.module.run_probe(name, list(buffers), [int(number) for number in arguments])


@pytest.fixture
def emulated(emulator: ModuleType) -> Emulated:
    return Emulated(emulator)


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> Iterator[Device]:
    try:
        found = Device()
    except UnavailableError as reason:
        missing = not isinstance(reason, UnsupportedError)
        if missing and request.config.getoption("--require-gpu"):
            pytest.fail(str(reason))
        pytest.skip(str(reason))
    yield found
    found.close()


@pytest.fixture(params=["emulated", pytest.param("device", marks=pytest.mark.gpu)])
def target(request: pytest.FixtureRequest) -> Emulated | Device:
    """Each in turn; a test that takes it runs on both."""
    return request.getfixturevalue(request.param)
