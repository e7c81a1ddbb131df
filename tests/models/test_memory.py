# SPDX-License-Identifier: MIT
"""What networks keep for their backward pass, counted without a GPU: every map that autograd saves."""

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ocnet.models import create
from ocnet.modules import ABN, InPlaceABN

# Smaller ones are vectors of channels.
LEAST = 5000


def kept(model: nn.Module, call: Callable[[], Tensor]) -> list[int]:
    """Return the sizes of the maps that a call keeps, each storage once, parameters left out.

    In numbers of 4 bytes: the indices of a pooling are twice as long.
    """
    own = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
    sizes: dict[int, int] = {}
    alive = []

    def pack(t: Tensor) -> Tensor:
        address = t.untyped_storage().data_ptr()
        if t.numel() > LEAST and address not in own:
            sizes[address] = max(sizes.get(address, 0), t.numel() * t.element_size() // 4)
            alive.append(t)  # so that no address is used twice
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = call()
    assert out.requires_grad
    return list(sizes.values())


class Standard:
    """Batch norm, then an activation over its result."""

    def norm(self, channels: int) -> nn.Module:
        return ABN(channels, activation="relu")

    def linear(self, channels: int) -> nn.Module:
        return nn.BatchNorm2d(channels)

    def join(self, norm: nn.Module, y: Tensor, shortcut: Tensor) -> Tensor:
        return F.relu(norm(y) + shortcut, inplace=True)


class InPlace(Standard):
    """In-place norms everywhere; blocks end in an addition and an activation."""

    def norm(self, channels: int) -> nn.Module:
        return InPlaceABN(channels)

    def linear(self, channels: int) -> nn.Module:
        return InPlaceABN(channels, activation="identity")

    def join(self, norm: nn.Module, y: Tensor, shortcut: Tensor) -> Tensor:
        return F.leaky_relu(norm(y) + shortcut, 0.01, inplace=True)


class Fused(InPlace):
    """In-place norms, the last of a block with the addition."""

    def join(self, norm: nn.Module, y: Tensor, shortcut: Tensor) -> Tensor:
        norm.activation = "leaky_relu"
        return norm(y, shortcut)


class Block(nn.Module):
    """A bottleneck as torchvision has it: the stride in the 3x3 convolution."""

    def __init__(self, kind: Standard, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.kind = kind
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = kind.norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = kind.norm(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = kind.linear(4 * width)
        self.down = None
        if stride > 1 or channels != 4 * width:
            self.down = nn.Sequential(
                nn.Conv2d(channels, 4 * width, 1, stride, bias=False), kind.linear(4 * width)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.bn1(self.conv1(x))))
        return self.kind.join(self.bn3, self.conv3(y), x if self.down is None else self.down(x))


def resnet50(kind: Standard) -> nn.Sequential:
    """The classic one: 7x7 stem, stride 32, a pooled classifier."""
    blocks, channels = [], 64
    for index, count in enumerate((3, 4, 6, 3)):
        for number in range(count):
            stride = 2 if index > 0 and number == 0 else 1
            blocks.append(Block(kind, channels, 64 * 2**index, stride))
            channels = 256 * 2**index
    stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), kind.norm(64), nn.MaxPool2d(3, 2, 1)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2048, 10))


# Numbers of an image of 224 x 224. Of batch norm everywhere, in-place norms save the stem's map and
# those of the first two norms of every block; nothing of the third, whose result is only added.
STEM = 64 * 112**2
FIRST_TWO = sum(
    count * 2 * width * side**2
    for count, width, side in ((3, 64, 56), (4, 128, 28), (6, 256, 14), (3, 512, 7))
)
# The first block of a layer has its first convolution before the stride.
BEFORE_STRIDE = sum(width * (4 - 1) * side**2 for width, side in ((128, 28), (256, 14), (512, 7)))
# The fused form also lets go of the third norm's map.
THIRD = sum(
    count * 4 * width * side**2
    for count, width, side in ((3, 64, 56), (4, 128, 28), (6, 256, 14), (3, 512, 7))
)
STANDARD = 21_475_328
IN_PLACE = 17_385_984


@pytest.mark.parametrize(
    ("kind", "want"),
    [(Standard, STANDARD), (InPlace, IN_PLACE), (Fused, IN_PLACE - THIRD)],
    ids=["standard", "in place", "fused"],
)
def test_numbers_kept_by_resnet50(kind: type[Standard], want: int) -> None:
    assert STANDARD - IN_PLACE == STEM + FIRST_TWO + BEFORE_STRIDE
    model = resnet50(kind())
    assert sum(kept(model, lambda: model(torch.randn(1, 3, 224, 224)))) == want


class PreActivation(nn.Module):
    """Norm and activation before each convolution, and the shortcut around all."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        widths = ((256, 64, 1), (64, 64, 3), (64, 256, 1))
        self.norms = nn.ModuleList(
            InPlaceABN(i) if inplace else ABN(i, activation="leaky_relu") for i, _, _ in widths
        )
        self.convs = nn.ModuleList(
            nn.Conv2d(i, o, k, padding=k // 2, bias=False) for i, o, k in widths
        )

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for norm, conv in zip(self.norms, self.convs, strict=True):
            y = conv(norm(y))
        return y + x


def test_maps_kept_by_preactivation_blocks() -> None:
    counts = []
    for inplace in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 256, 1, bias=False), *(PreActivation(inplace) for _ in range(4))
        )
        x = torch.randn(1, 3, 28, 28)
        sizes = kept(model, lambda model=model, x=x: model(x))
        counts.append((len([s for s in sizes if s != x.numel()]), sum(sizes)))
    # Of each of 12 norms, its input and its output; in place, its output alone.
    assert [number for number, _ in counts] == [24, 12]
    assert counts[1][1] / counts[0][1] < 0.51


@pytest.mark.parametrize(("name", "norms"), [("resnet50_baseline", 53 + 2), ("tiny_base_oc", None)])
def test_networks_keep_less_with_in_place_norms(name: str, norms: int | None) -> None:
    totals = {}
    for norm in ("batchnorm", "inplace_abn"):
        torch.manual_seed(0)
        model = create(name, 19, norm=norm, backbone_activation="leaky_relu", dropout=0.0)
        totals[norm] = sum(kept(model, lambda m=model: m(torch.randn(1, 3, 97, 97)).main))
    maps = 0
    handles = []

    def add(module: ABN, inputs: tuple[Tensor, ...], out: Tensor) -> None:
        nonlocal maps
        # The input of every norm is let go of, but for the ends of shortcuts, which keep their output.
        if out.numel() > LEAST and module.activation != "identity":
            maps += out.numel()

    for module in model.modules():
        if isinstance(module, ABN):
            handles.append(module.register_forward_hook(add))
    model(torch.randn(1, 3, 97, 97))
    assert totals["batchnorm"] - totals["inplace_abn"] == maps


_EVALUATE = """
import resource, sys, torch
from tests.models.slim import slim

name, rows, columns = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
model = slim(name).eval()
with torch.no_grad():
    model(torch.randn(1, 3, 65, 65))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    model(torch.randn(1, 3, rows, columns))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def growth(name: str, rows: int, columns: int) -> int:
    """Return by how many bytes a process grows to evaluate one image."""
    words = [sys.executable, "-c", _EVALUATE, name, str(rows), str(columns)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return 1024 * int(done.stdout)


@pytest.fixture(scope="module")
def growth_without_context() -> dict[str, int]:
    return {name: growth(name, 512, 1024) for name in ("resnet101_baseline", "openseg_fcn")}


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kilobytes on Linux")
@pytest.mark.parametrize(
    "name",
    ["resnet101_base_oc", "resnet101_pyramid_oc", "openseg_base_oc", "openseg_isa", "openseg_ocr"],
)
def test_evaluation_has_no_map_of_all_pairs(name: str, growth_without_context) -> None:
    """65 x 129 features: the matrix would be 281 MB, as large as all else of a slim network."""
    baseline = "openseg_fcn" if name.startswith("openseg") else "resnet101_baseline"
    matrix = 4 * (65 * 129) ** 2
    assert growth(name, 512, 1024) - growth_without_context[baseline] < matrix / 3
