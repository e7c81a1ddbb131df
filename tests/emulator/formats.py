# SPDX-License-Identifier: MIT
"""Number formats of tensor cores, and how far their sums may be from exact ones."""

from dataclasses import dataclass

import numpy as np
import torch

from tests.emulator.trials import Rounding


@dataclass(frozen=True)
class Format:
    name: str
    bits: int  # of its storage
    channels: int  # that one product sums over
    sum_bits: int = 23  # after the first, of the sums of a device


BFLOAT16 = Format("bfloat16", 16, 16)
FLOAT16 = Format("float16", 16, 16)
TFLOAT32 = Format("tfloat32", 32, 8)
# Hopper sums its products in 14 bits.
FLOAT8 = Format("float8", 8, 32, 13)


def encode(values: np.ndarray, form: Format) -> tuple[np.ndarray, np.ndarray]:
    """Return the patterns nearest to the values, and their values as a tensor core takes them.

    TF32 patterns are those of fp32: a tensor core leaves out the low 13 of 23 bits.
    """
    wide = torch.from_numpy(np.ascontiguousarray(values, np.float32))
    if form is TFLOAT32:
        patterns = wide.numpy().view(np.uint32)
        kept = (patterns & np.uint32(0xFFFFE000)).view(np.float32)
        return patterns, kept.astype(np.float64)
    if form is FLOAT8:  # torch makes NaN of what is too large
        narrow = wide.clamp(-448, 448).to(torch.float8_e4m3fn)
        return narrow.view(torch.uint8).numpy(), narrow.double().numpy()
    narrow = wide.to(torch.bfloat16 if form is BFLOAT16 else torch.float16)
    return narrow.view(torch.int16).numpy().view(np.uint16), narrow.double().numpy()


def sum_rounding(
    magnitudes: np.ndarray, channels: int, instructions: int = 1, sum_bits: int = 23
) -> Rounding:
    """Bound the error of sums of exact products in fp32; ``magnitudes`` sum those of all terms.

    The emulator rounds the sum of an instruction once, by at most 2^-24 of it; 2^-20 of slack covers
    what is lost in float64. A device aligns each product to the largest of a partial sum and cuts it
    below 2^-sum_bits of that, and cuts each partial sum: at most twice for each channel, and once
    more.
    """

    def bound(unit: float) -> np.ndarray:
        return magnitudes * ((1 + unit) ** instructions - 1)

    device = bound((2 * channels + 1) * 2.0**-sum_bits)
    return Rounding(device, bound((1 + 2.0**-20) * 2.0**-24))
