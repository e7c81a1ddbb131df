# SPDX-License-Identifier: MIT
"""High-resolution networks: branches of several resolutions that exchange their maps."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ocnet.models.backbones.blocks import BasicBlock, Bottleneck, conv3x3, residual_layer
from ocnet.models.backbones.body import reinitialise, run_blocks
from ocnet.modules import BATCHNORM, Norm, activated

_STAGES = (2, 3, 4)
# Deviation of the HRNet repository's initial weights.
_DEVIATION = 0.001


class Exchange(nn.Module):
    """Blocks on each branch, then on each the sum of all branches, brought to its size.

    Args:
        widths: Channels of each branch, from the finest on.
        blocks: Blocks on each branch.
        norm: Batch norm, called as ``norm(channels, activation=...)``.
        activation: Of the blocks.
        recompute: Compute blocks again in the backward pass, see ``run_blocks``.

    Source: Sun et al., HRNetV2 (arXiv 1904.04514), with the key names of its code: ``branches.{i}.{b}``,
    ``fuse_layers.{i}.{j}``. Coarser branches come by a 1x1 convolution and bilinear resizing with
    ``align_corners=True``, finer ones by 3x3 convolutions of stride 2.
    """

    def __init__(
        self,
        widths: Sequence[int],
        blocks: int,
        norm: Norm = BATCHNORM,
        activation: str = "relu",
        recompute: bool = False,
    ) -> None:
        super().__init__()
        self.recompute = recompute
        self.branches = nn.ModuleList(
            residual_layer(BasicBlock, width, width, blocks, norm, activation) for width in widths
        )
        self.fuse_layers = nn.ModuleList(
            nn.ModuleList(
                _bridge(widths, source, target, norm, activation) for source in range(len(widths))
            )
            for target in range(len(widths))
        )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return as many maps of the same shapes."""
        maps = [
            run_blocks(branch, x, self.recompute)  # type: ignore[arg-type]
            for branch, x in zip(self.branches, maps, strict=True)
        ]
        return [
            self._fuse(bridges, maps, target) for target, bridges in enumerate(self.fuse_layers)
        ]

    def _fuse(self, bridges: Any, maps: Sequence[Tensor], target: int) -> Tensor:
        size = maps[target].shape[-2:]
        parts = []
        for source, x in enumerate(maps):
            part: Tensor = bridges[source](x)
            if source > target:
                part = F.interpolate(part, size=size, mode="bilinear", align_corners=True)
            parts.append(part)
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return F.relu(total)


@dataclass(frozen=True)
class HRNetBody:
    """HRNet, its four branches resized to the finest and concatenated; see ``Body``.

    Attributes:
        width: Channels of the finest branch; the others have twice, four and eight times as many.
        norm: Batch norm, called as ``norm(channels, activation=...)``.
        in_channels: Channels of the images.
        activation: As in ``ResNetBody``.
        exchanges: ``Exchange`` modules of stages 2 to 4.
        blocks: Blocks of each branch of an ``Exchange``, and of the first stage.
        small_init: Draw weights of convolutions with deviation 0.001, as the HRNet repository does;
            otherwise they are torch's.
        recompute: Compute each block again in the backward pass, see ``run_blocks``.

    Source: Sun et al., HRNetV2 (arXiv 1904.04514), with the key names of its code.
    """

    width: int = 48
    norm: Norm = BATCHNORM
    in_channels: int = 3
    activation: str = "relu"
    exchanges: tuple[int, int, int] = (1, 4, 3)
    blocks: int = 4
    small_init: bool = False
    recompute: bool = False

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of the one map of features."""
        return (sum(self._widths(4)),)

    def mount(self, net: Any) -> None:
        """Add the layers to a module, as its children."""
        before = set(net._modules)
        act = activated(self.norm, self.activation)
        net.conv1 = conv3x3(self.in_channels, 64, 2)
        net.bn1 = act(64)
        net.conv2 = conv3x3(64, 64, 2)
        net.bn2 = act(64)
        net.conv_norm_pairs = (("conv1", "bn1"), ("conv2", "bn2"))
        net.layer1 = residual_layer(Bottleneck, 64, 64, self.blocks, self.norm, self.activation)
        widths = [64 * Bottleneck.expansion]
        for stage, count in zip(_STAGES, self.exchanges, strict=True):
            wider = self._widths(stage)
            setattr(net, f"transition{stage - 1}", _transition(widths, wider, act))
            widths = wider
            exchanges = [
                Exchange(widths, self.blocks, self.norm, self.activation, self.recompute)
                for _ in range(count)
            ]
            setattr(net, f"stage{stage}", nn.Sequential(*exchanges))
        if self.small_init:
            mounted = [net._modules[name] for name in net._modules if name not in before]
            reinitialise(mounted, lambda _: _DEVIATION)

    def features(self, net: Any, images: Tensor) -> tuple[Tensor, ...]:
        """Return the map of features ``(N, 15 * width, h, w)``, at a quarter of the size of the images."""
        x = net.bn1(net.conv1(images))
        x = net.bn2(net.conv2(x))
        maps = [run_blocks(net.layer1, x, self.recompute)]
        for stage in _STAGES:
            transition = getattr(net, f"transition{stage - 1}")
            # New branches come from the coarsest one there is.
            sources = maps + [maps[-1]] * (len(transition) - len(maps))
            maps = [move(x) for move, x in zip(transition, sources, strict=True)]
            maps = getattr(net, f"stage{stage}")(maps)
        size = maps[0].shape[-2:]
        resized = [
            F.interpolate(x, size=size, mode="bilinear", align_corners=True) for x in maps[1:]
        ]
        return (torch.cat([maps[0], *resized], dim=1),)

    def _widths(self, branches: int) -> list[int]:
        return [self.width * 2**i for i in range(branches)]


def _bridge(
    widths: Sequence[int], source: int, target: int, norm: Norm, activation: str
) -> nn.Module:
    """Return what brings a branch to the channels of another, and to its size if that is smaller."""
    if source == target:
        return nn.Identity()
    if source > target:
        return nn.Sequential(
            nn.Conv2d(widths[source], widths[target], 1, bias=False),
            norm(widths[target], activation="identity"),
        )
    steps = [
        nn.Sequential(
            conv3x3(widths[source], widths[source], 2),
            activated(norm, activation)(widths[source]),
        )
        for _ in range(target - source - 1)
    ]
    last = nn.Sequential(
        conv3x3(widths[source], widths[target], 2), norm(widths[target], activation="identity")
    )
    return nn.Sequential(*steps, last)


def _transition(widths: Sequence[int], wider: Sequence[int], act: Norm) -> nn.ModuleList:
    """Return what makes the branches of a stage of those before it, one more."""
    moves: list[nn.Module] = []
    for i, width in enumerate(wider):
        if i >= len(widths):
            step = nn.Sequential(conv3x3(widths[-1], width, 2), act(width))
            moves.append(nn.Sequential(step))
        elif widths[i] == width:
            moves.append(nn.Identity())
        else:
            moves.append(nn.Sequential(conv3x3(widths[i], width), act(width)))
    return nn.ModuleList(moves)
