# SPDX-License-Identifier: MIT
"""What scoring keeps in memory: one sum, one batch of tiles, whatever is asked."""

import gc
import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from ocnet.evaluation import InferenceOptions, Predictor
from ocnet.evaluation.options import Merge
from tests.evaluation.restated import Result


class LiveBytes(TorchDispatchMode):
    """Follow the bytes of all tensors that are made, while they live."""

    def __init__(self) -> None:
        super().__init__()
        self.owners: dict[int, int] = {}
        self.now = self.peak = self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            # Memory of NumPy, such as that of a mapped file, cannot be resized.
            if isinstance(tensor, Tensor) and tensor.untyped_storage().resizable():
                storage = tensor.untyped_storage()
                self._add(storage.data_ptr(), storage.nbytes(), tensor)
        return result

    def _add(self, place: int, size: int, tensor: Tensor) -> None:
        if self.owners.get(place, 0) == 0:
            self.now += size
            self.peak = max(self.peak, self.now)
            self.largest = max(self.largest, size)
        self.owners[place] = self.owners.get(place, 0) + 1
        weakref.finalize(tensor, self._drop, place, size)

    def _drop(self, place: int, size: int) -> None:
        self.owners[place] -= 1
        if self.owners[place] == 0:
            self.now -= size


def peak_bytes(image: Tensor, options: InferenceOptions, host_limit: int = 1 << 40) -> int:
    predictor = Predictor(Half(), options, num_classes=32, host_limit=host_limit)
    gc.collect()
    with LiveBytes() as live:
        result = predictor.classes(image)
    assert result.shape == image.shape[1:]
    return live.peak


class Half(nn.Module):
    """Logits of 32 classes at half the resolution."""

    def forward(self, images: Tensor) -> Result:
        return Result(F.avg_pool2d(images, 2).mean(1, keepdim=True).expand(-1, 32, -1, -1) * 1.0)


SUM = 32 * 4  # bytes of all classes of one pixel
PICTURE = 3 * 4
TILE = 16 * 16 * SUM
TILES = InferenceOptions("slide", (16, 16), scales=(1.5,), flip=True)


def test_memory_does_not_grow_with_the_number_of_scales() -> None:
    image = torch.randn(3, 64, 64)
    one = peak_bytes(image, TILES)
    assert peak_bytes(image, replace(TILES, scales=(1.5, 1.5, 1.5))) == one
    # A tile at scale 0.75 covers 22 x 22 pixels of the sum; there are at most six copies of it.
    five = peak_bytes(image, replace(TILES, scales=(0.75, 1.0, 1.25, 1.5, 0.75)))
    assert five <= one + 6 * (22 * 22 - 16 * 16) * SUM
    # The picture, that of scale 1.5 and its mirror image, one sum, and six copies of a tile.
    assert one <= 64 * 64 * (SUM + (1 + 2 * 1.5**2) * PICTURE) + 6 * TILE


@pytest.mark.parametrize("options", [TILES, replace(TILES, scales=(1.0,), tile_batch=4)])
def test_a_larger_picture_needs_a_larger_sum_and_nothing_else(options: InferenceOptions) -> None:
    small, large = torch.randn(3, 48, 48), torch.randn(3, 96, 96)
    growth = peak_bytes(large, options) - peak_bytes(small, options)
    pictures = (1 + 2 * options.scales[0] ** 2) * PICTURE
    assert growth <= (96 * 96 - 48 * 48) * (SUM + pictures) + 1024  # plans of the tiles


@pytest.mark.parametrize("merge", ["mean_logits", "exp_logits"])
def test_the_device_holds_one_batch_of_tiles(merge: Merge) -> None:
    largest: list[int] = []
    for side in (24, 48):
        # The sum lies in a file, which is no memory of torch; pictures of one channel are smaller
        # than a tile with all classes.
        options = replace(TILES, merge=merge)
        predictor = Predictor(Half(), options, num_classes=32, host_limit=0)
        image = torch.randn(1, side, side)
        with LiveBytes() as live:
            predictor.logits(image)
        largest.append(live.largest)
    assert largest == [TILE, TILE]


@pytest.mark.parametrize("options", [TILES, InferenceOptions(flip=True, resize_to=(9, 9))])
def test_a_sum_past_the_limit_is_a_file_and_the_same(options: InferenceOptions) -> None:
    image = torch.randn(3, 24, 30)
    whole = Predictor(Half(), options, num_classes=32).logits(image)
    filed = Predictor(Half(), options, num_classes=32, host_limit=0)
    assert torch.equal(filed.logits(image), whole)
    assert torch.equal(filed.classes(image), whole.argmax(0))
    pixels = 24 * 30 if options.resize_to is None else 9 * 9
    assert peak_bytes(image, options) - peak_bytes(image, options, 0) >= pixels * SUM


def test_the_limit_is_in_bytes() -> None:
    image = torch.randn(3, 24, 30)
    held = [peak_bytes(image, TILES, 24 * 30 * SUM - less) for less in (0, 1)]
    assert held[0] - held[1] >= 24 * 30 * SUM
