# SPDX-License-Identifier: MIT
"""Trials of primitives: the inputs of a probe, and what must come of it by the tables of the PTX ISA.

A trial runs on the emulator and on a GPU alike. Whatever it expects is stated in numpy, without the
headers of the hardware layer.
"""

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Rounding:
    """How far a result may be from the exact one, element by element, on a GPU and emulated."""

    device: np.ndarray
    emulated: np.ndarray

    def of(self, target) -> np.ndarray:
        return self.emulated if target.is_emulator else self.device


@dataclass
class Trial:
    """Buffers that are expected nowhere are inputs. What is not rounded is equal bit for bit."""

    buffers: list[np.ndarray]
    expected: Mapping[int, np.ndarray]
    arguments: list[int] = field(default_factory=list)
    rounding: Mapping[int, Rounding] = field(default_factory=dict)
    # Patterns of which the ISA leaves some bits open, brought to one form; by buffer.
    canonical: Mapping[int, Callable[[np.ndarray], np.ndarray]] = field(default_factory=dict)

    def run(self, target, probe: str) -> dict[int, np.ndarray]:
        buffers = [np.array(buffer) for buffer in self.buffers]
        for index, buffer in enumerate(buffers):
            buffer.flags.writeable = index in self.expected
        target.run_probe(probe, buffers, self.arguments)
        return {index: self.form(index, buffers[index]) for index in self.expected}

    def form(self, index: int, array: np.ndarray) -> np.ndarray:
        return self.canonical[index](array) if index in self.canonical else array


@dataclass(frozen=True)
class Case:
    """One way to use a primitive: ``make`` draws a trial."""

    primitive: str  # its line in the table of what a GPU has confirmed
    probe: str
    make: Callable[[np.random.Generator], Trial]
    variant: str = ""

    def __str__(self) -> str:
        return f"{self.probe}-{self.variant}" if self.variant else self.probe

    def trial(self) -> Trial:
        return self.make(np.random.default_rng(zlib.crc32(str(self).encode())))


def same_bits(left: np.ndarray, right: np.ndarray) -> bool:
    return left.dtype == right.dtype and left.tobytes() == right.tobytes()


def check(trial: Trial, target, results: Mapping[int, np.ndarray]) -> None:
    """Fail unless the results are the expected ones."""
    for index, expected in trial.expected.items():
        result = results[index]
        if index not in trial.rounding:
            exact = trial.form(index, expected)
            assert result.dtype == exact.dtype
            words = f"uint{8 * result.itemsize}"
            np.testing.assert_array_equal(result.view(words), exact.view(words))
            continue
        # Infinities and NaN are what they are; numbers are near.
        finite = np.isfinite(expected)
        np.testing.assert_array_equal(result[~finite], expected[~finite].astype(result.dtype))
        error = np.abs(result[finite].astype(np.float64) - expected[finite])
        excess = error - trial.rounding[index].of(target)[finite]
        assert not np.isnan(error).any()
        assert excess.max() <= 0, f"off by {error[excess.argmax()]:.3e} where less is allowed"
