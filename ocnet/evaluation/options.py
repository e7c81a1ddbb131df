# SPDX-License-Identifier: MIT
"""How the logits of a picture are made: whole or in tiles, at which scales, mirrored or not."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

Mode = Literal["whole", "slide", "ocnet"]
Border = Literal["shift", "pad"]
Blend = Literal["count", "gaussian"]
Merge = Literal["mean_logits", "sum_logits", "exp_logits", "mean_probabilities"]


@dataclass(frozen=True)
class InferenceOptions:
    """How a network is asked about a picture.

    A picture is resized (``resize_short``, ``resize_long`` or ``resize_to``), padded (``pad_multiple``), resized by each of
    the ``scales``, shown to the network, whole or in tiles, and mirrored if ``flip`` says so. What comes out
    is merged at the size of the resized picture and enlarged to the size of the picture itself. All
    resizing is bilinear with aligned corners, unless ``merge`` says otherwise.

    What a ``merge`` does is what one published tester does:

    ``mean_logits``: OCNet. Mean of the logits over scales and mirroring. The whole picture is mirrored, so
    tiles of the mirrored picture begin at its other side.

    ``sum_logits``: openseg. The sum of the same, and the last enlargement to the size of the picture is
    bicubic (half-pixel centres, as OpenCV's).

    ``exp_logits``: HRNet's repository. Each tile is mirrored by itself, the mean of both logits is
    exponentiated at the size of the tile, and only then are tiles blended, resized and summed over scales.

    ``mean_probabilities``: As ``exp_logits``, with softmax in place of the exponential, and the mean over
    scales. (MMSegmentation takes the softmax after tiles are blended and resized.)

    Attributes:
        mode: ``whole``: the network sees the whole picture. ``slide``: it sees tiles. ``ocnet``: the whole
            picture at scales up to 1, tiles at larger ones.
        tile: rows and columns of a tile.
        overlap: part of a tile that the next one shares, 0 to below 1; tiles are
            ``floor(tile * (1 - overlap))`` apart, at least 1.
        border: ``shift``: the last tile is moved back to end where the picture ends. ``pad``: it stays, and
            is padded. Pictures smaller than a tile are padded either way; padding is zeros, which is the mean
            colour, at the bottom and right.
        blend: weights of tiles where several see a pixel. ``count``: equal. ``gaussian``: a bell with a
            deviation of an eighth of the tile, so that a tile says little about its edge.
        tile_batch: tiles in one call of the network.
        scales: factors by which the picture is resized, each greater than 0.
        flip: whether the mirrored picture is shown too.
        merge: how scales and mirrored pictures become one result.
        resize_short: length that the shorter side of the picture is resized to; None: not resized.
        resize_long: length that the longer side of the picture is resized to; None: not resized.
        resize_to: rows and columns that the picture is resized to, without regard to its proportions;
            None: not resized.
        pad_multiple: rows and columns are padded to multiples of it; None: not padded.

    Raises:
        ValueError: a value is out of its range, or more than one of the three resizings is given.

    Source: OCNet eval.py (mode ``ocnet``, tile 1024 x 2048, overlap 0, border ``shift``); openseg
    segmentor/tester.py; HRNet lib/datasets/cityscapes.py (``ocnet`` with border ``shift`` and overlap 0) and
    base_dataset.py (``slide`` with border ``pad`` and overlap 1/3). Differences: sizes are rounded to the
    nearest whole number, which openseg cuts off; all resizing aligns corners, which HRNet's does not; padding
    is the mean colour, where HRNet's is black; openseg's test on crops takes tiles at scale 1 too, and whole
    pictures below.
    """

    mode: Mode = "whole"
    tile: tuple[int, int] = (1024, 2048)
    overlap: float = 0.0
    border: Border = "shift"
    blend: Blend = "count"
    tile_batch: int = 1
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    merge: Merge = "mean_logits"
    resize_short: int | None = None
    resize_long: int | None = None
    resize_to: tuple[int, int] | None = None
    pad_multiple: int | None = None

    def __post_init__(self) -> None:
        for name, names in _CHOICES.items():
            if getattr(self, name) not in names:
                raise ValueError(
                    f"InferenceOptions: {name} must be one of {', '.join(names)}, "
                    f"got {getattr(self, name)!r}"
                )
        for name in ("tile", "resize_to"):
            size = getattr(self, name)
            if size is not None and (len(size) != 2 or min(size) < 1):
                raise ValueError(
                    f"InferenceOptions: {name} must be rows and columns, each at least 1, got {size}"
                )
        for name in ("tile_batch", "resize_short", "resize_long", "pad_multiple"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"InferenceOptions: {name} must be at least 1, got {value}")
        if not 0 <= self.overlap < 1:
            raise ValueError(
                f"InferenceOptions: overlap must be at least 0 and below 1, got {self.overlap}"
            )
        if not self.scales or not all(0 < scale < math.inf for scale in self.scales):
            raise ValueError(
                f"InferenceOptions: scales must be one or more numbers above 0, got {self.scales}"
            )
        given = [name for name in _RESIZINGS if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(
                f"InferenceOptions: {given[0]} must be None where {given[1]} is given, "
                f"got {getattr(self, given[0])}"
            )

    @property
    def plain(self) -> bool:
        """Whether the network sees the picture once, whole and as it is, and its logits are the result."""
        return (
            self.mode != "slide"
            and self.scales == (1.0,)
            and not self.flip
            and not self.pointwise
            and self.pad_multiple is None
            and all(getattr(self, name) is None for name in _RESIZINGS)
        )

    @property
    def pointwise(self) -> bool:
        """Whether logits are exponentiated before they are blended."""
        return self.merge in ("exp_logits", "mean_probabilities")

    def slides(self, scale: float) -> bool:
        """Return whether the network sees tiles at a scale."""
        return self.mode == "slide" or (self.mode == "ocnet" and scale > 1)


_RESIZINGS = ("resize_short", "resize_long", "resize_to")
_CHOICES = {
    "mode": get_args(Mode),
    "border": get_args(Border),
    "blend": get_args(Blend),
    "merge": get_args(Merge),
}
