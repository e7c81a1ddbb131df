# SPDX-License-Identifier: MIT
"""Training samples of one size, drawn at random out of pictures and their labels.

The recipes of the published codes, by what they do (the numbers are those of ``configs/``):

- OCNet: one resize by a scale of a set, normalise, pad at the end with the mean colour, crop, mirror.
- openseg: mirror (on Cityscapes only after the crop), resize to a fixed short side or size (not on
  Cityscapes), resize by scale and aspect, crop, shift the brightness, normalise, pad anywhere with the
  mean colour. Both resizes are cubic.
- HRNet repository: (LIP: mirror, resize to a fixed size; ADE20K and COCO-Stuff: resize to a fixed short side),
  resize the long side to a fixed length times a scale of a set, pad at the end with black, crop,
  normalise, mirror (not on LIP).
- CE2P: mirror, then one affine map that scales and rotates.
"""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ocnet.data.augment_steps import (
    Interpolation,
    Pair,
    Pairs,
    Span,
    brighten,
    fitted,
    long_side,
    mirror_label,
    mirror_picture,
    multiplied,
    place,
    require,
    require_frame,
    resize,
    resize_by,
)
from ocnet.data.inputs import PictureTransform
from ocnet.data.labels import IGNORE_INDEX


@dataclass(frozen=True)
class Crops:
    """Random scale, aspect, crop, mirroring and brightness: the recipes of OCNet, openseg and HRNet.

    Six numbers are drawn for each sample whatever the options, so that one option changes nothing of what
    others do.

    Attributes:
        transform: makes network input out of the crop.
        crop: rows and columns of each sample.
        resize_short: resize first, so that the short side has this many pixels.
        resize_to: resize first, to these rows and columns.
        resize_long: the random resize starts from a picture whose long side has this many pixels, in one
            go. Sides, also those of ``resize_short``, are then rounded to the nearest, halves up.
        scale_min: smallest scale of the random resize.
        scale_max: largest scale.
        scale_step: 0: the scale is uniform between the two. Otherwise it is one of ``scale_min``,
            ``scale_min + scale_step``, ... ``scale_max``, all equally likely.
        aspect_min: smallest ratio ``a``: the width is also multiplied by ``sqrt(a)`` and the height by
            ``sqrt(1 / a)``; uniform.
        aspect_max: largest ratio.
        rounding: how the random resize makes sides whole: ``"nearest"`` (OCNet; the distance of pixels is
            that of the scale itself), or ``"down"`` (openseg).
        interpolation: of pictures, in both resizes; labels take the nearest pixel.
        flip: half of the samples are mirrored, ``"before"`` everything or ``"after"`` crop and padding; or
            ``"none"``.
        brightness: up to this is added to all values, or taken from them; each whole number is equally
            likely, and results stay within 0 to 255.
        pad: what surrounds a picture that is smaller than the crop: ``"mean"``, 0 in network input; or
            ``"black"``, which is then normalised (and brightened) like the picture, as in HRNet.
        pad_at: ``"end"``, the right and the bottom (before mirroring after the crop); or ``"random"``, where
            each place of the picture in the crop is equally likely.
        mirror_pairs: classes that change places in the label when a sample is mirrored.
        ignore_index: label of the padding.

    Raises:
        ValueError: an option is out of its range, or two contradict each other.

    Source: OCNet.pytorch ``dataset/cityscapes.py``; openseg.pytorch ``lib/datasets/tools/``;
    HRNet-Semantic-Segmentation ``lib/datasets/base_dataset.py``. They draw from the global generators of
    ``random`` and ``numpy``. There, openseg pads a batch, here a sample; the laws are the same.
    """

    transform: PictureTransform
    _: KW_ONLY
    crop: tuple[int, int]
    resize_short: int | None = None
    resize_to: tuple[int, int] | None = None
    resize_long: int | None = None
    scale_min: float = 1.0
    scale_max: float = 1.0
    scale_step: float = 0.0
    aspect_min: float = 1.0
    aspect_max: float = 1.0
    rounding: Literal["nearest", "down"] = "nearest"
    interpolation: Interpolation = "linear"
    flip: Literal["none", "before", "after"] = "none"
    brightness: int = 0
    pad: Literal["mean", "black"] = "mean"
    pad_at: Literal["end", "random"] = "end"
    mirror_pairs: Pairs = ()
    ignore_index: int = IGNORE_INDEX

    def __post_init__(self) -> None:
        require_frame("Crops", self.crop, self.mirror_pairs, self.ignore_index)
        self._require_sizes()
        self._require_ranges()
        choices = {
            "rounding": ("nearest", "down"),
            "interpolation": ("linear", "cubic"),
            "flip": ("none", "before", "after"),
            "pad": ("mean", "black"),
            "pad_at": ("end", "random"),
        }
        for name, allowed in choices.items():
            value = getattr(self, name)
            require("Crops", name, value in allowed, f"be one of {', '.join(allowed)}", value)

    def _require_sizes(self) -> None:
        for name in ("resize_short", "resize_long"):
            value = getattr(self, name)
            require("Crops", name, value is None or value >= 1, "be at least 1", value)
        both = (self.resize_short, self.resize_to)
        require("Crops", "resize_to", None in both, "be None with resize_short", self.resize_to)
        require(
            "Crops",
            "resize_to",
            self.resize_to is None or (len(self.resize_to) == 2 and min(self.resize_to) >= 1),
            "be rows and columns, at least 1 each",
            self.resize_to,
        )
        if self.resize_long is not None:
            aspects = (self.aspect_min, self.aspect_max)
            require(
                "Crops",
                "aspect_min and aspect_max",
                aspects == (1, 1),
                "be 1 with resize_long",
                aspects,
            )
            require(
                "Crops",
                "rounding",
                self.rounding == "nearest",
                "be nearest with resize_long",
                self.rounding,
            )

    def _require_ranges(self) -> None:
        for name, ends in (
            ("scale", (self.scale_min, self.scale_max)),
            ("aspect", (self.aspect_min, self.aspect_max)),
        ):
            require(
                "Crops",
                f"{name}_min and {name}_max",
                0 < ends[0] <= ends[1] < math.inf,
                "be 0 < smallest <= largest",
                ends,
            )
        if self.scale_step != 0:
            require("Crops", "scale_step", self.scale_step > 0, "be at least 0", self.scale_step)
            steps = (self.scale_max - self.scale_min) / self.scale_step
            require(
                "Crops",
                "scale_step",
                abs(steps - round(steps)) < 1e-6,
                f"go from {self.scale_min} to {self.scale_max} in whole steps",
                self.scale_step,
            )
        require("Crops", "brightness", 0 <= self.brightness <= 255, "be 0 to 255", self.brightness)

    def __call__(
        self, picture: NDArray[np.uint8], label: NDArray[Any], generator: torch.Generator
    ) -> tuple[Tensor, NDArray[Any]]:
        """Draw one sample.

        Args:
            picture: ``(H, W, 3)`` uint8, red, green, blue.
            label: ``(H, W)`` class numbers, uint8 or uint16.
            generator: six numbers are drawn from it.

        Returns:
            Image ``(C, *crop)`` float32, and label ``(*crop)`` of the same dtype as before.
        """
        draws = torch.rand(6, generator=generator, dtype=torch.float64).tolist()
        scale, aspect, top, left, flip, light = draws
        mirrored = flip < 0.5
        if mirrored and self.flip == "before":
            picture, label = mirror_picture(picture), mirror_label(label, self.mirror_pairs)
        picture, label = self._first_resize(picture, label)
        picture, label = self._random_resize(picture, label, scale, aspect)
        shift_padding = self.pad_at == "random"
        rows = place(label.shape[0], self.crop[0], top, shift_padding)
        columns = place(label.shape[1], self.crop[1], left, shift_padding)
        shift = int(light * (2 * self.brightness + 1)) - self.brightness
        image = self._image(picture[rows.source, columns.source], rows, columns, shift)
        classes = np.full(self.crop, self.ignore_index, dtype=label.dtype)
        classes[rows.target, columns.target] = label[rows.source, columns.source]
        if mirrored and self.flip == "after":
            return image.flip(-1), mirror_label(classes, self.mirror_pairs)
        return image, classes

    def _first_resize(self, picture: NDArray[np.uint8], label: NDArray[Any]) -> Pair:
        height, width = label.shape
        if self.resize_to is not None:
            size = self.resize_to
        elif self.resize_short is None:
            return picture, label
        elif self.resize_long is None:
            size = multiplied(height, width, self.resize_short / min(height, width))
        else:
            size = fitted(height, width, self.resize_short, min(height, width))
        return resize(picture, label, size, self.interpolation)

    def _random_resize(
        self, picture: NDArray[np.uint8], label: NDArray[Any], scale_draw: float, aspect_draw: float
    ) -> Pair:
        height, width = label.shape
        scale = self._scale(scale_draw)
        if self.resize_long is not None:
            longest = long_side(self.resize_long, scale)
            size = fitted(height, width, longest, max(height, width))
            return resize(picture, label, size, self.interpolation)
        aspect = self.aspect_min + (self.aspect_max - self.aspect_min) * aspect_draw
        factors = math.sqrt(1 / aspect) * scale, math.sqrt(aspect) * scale
        if self.rounding == "nearest":
            return resize_by(picture, label, factors, self.interpolation)
        size = max(1, int(height * factors[0])), max(1, int(width * factors[1]))
        return resize(picture, label, size, self.interpolation)

    def _scale(self, draw: float) -> float:
        between = self.scale_max - self.scale_min
        if self.scale_step == 0:
            return self.scale_min + between * draw
        count = round(between / self.scale_step) + 1
        # Sums of binary tenths can miss the decimal by the last bit, which can move a rounded side.
        return round(self.scale_min + int(draw * count) * self.scale_step, 9)

    def _image(self, part: NDArray[np.uint8], rows: Span, columns: Span, shift: int) -> Tensor:
        if self.pad == "black":
            canvas = np.zeros((*self.crop, 3), dtype=np.uint8)
            canvas[rows.target, columns.target] = part
            return self.transform(brighten(canvas, shift))
        image = torch.zeros(self.transform.channels, *self.crop)
        image[:, rows.target, columns.target] = self.transform(brighten(part, shift))
        return image


@dataclass(frozen=True)
class AffineCrops:
    """The whole picture in a crop, then scaled and rotated about its centre at random: the recipe of CE2P.

    Before the random part, the picture is as large as it fits into the crop, in its own shape. Four numbers
    are drawn for each sample whatever the options.

    Attributes:
        transform: makes network input out of the crop.
        crop: rows and columns of each sample.
        scale: deviation of the normal factor, around 1, by which more of the picture's surroundings come into
            the crop; it is clipped at one deviation. 0 to below 1.
        rotation: deviation of the normal angle, degrees, by which the crop is turned clockwise over the
            picture; it is clipped at two deviations. 0 to 90.
        rotation_probability: share of the samples that are rotated.
        flip: half of the samples are mirrored, before everything.
        mirror_pairs: classes that change places in the label when a sample is mirrored.
        ignore_index: label of what is outside the picture. The picture is black there.

    Raises:
        ValueError: an option is out of its range.

    Source: CE2P ``dataset/datasets.py`` and ``utils/transforms.py``. As there, the picture is
    ``width - 1`` by ``height - 1`` wide, and its centre comes to the corner of pixels at half the crop.
    """

    transform: PictureTransform
    _: KW_ONLY
    crop: tuple[int, int]
    scale: float = 0.25
    rotation: float = 30.0
    rotation_probability: float = 0.6
    flip: bool = True
    mirror_pairs: Pairs = ()
    ignore_index: int = IGNORE_INDEX

    def __post_init__(self) -> None:
        require_frame("AffineCrops", self.crop, self.mirror_pairs, self.ignore_index)
        require("AffineCrops", "scale", 0 <= self.scale < 1, "be 0 to below 1", self.scale)
        require("AffineCrops", "rotation", 0 <= self.rotation <= 90, "be 0 to 90", self.rotation)
        require(
            "AffineCrops",
            "rotation_probability",
            0 <= self.rotation_probability <= 1,
            "be 0 to 1",
            self.rotation_probability,
        )

    def __call__(
        self, picture: NDArray[np.uint8], label: NDArray[Any], generator: torch.Generator
    ) -> tuple[Tensor, NDArray[Any]]:
        """Draw one sample.

        Args:
            picture: ``(H, W, 3)`` uint8, red, green, blue.
            label: ``(H, W)`` class numbers, uint8 or uint16.
            generator: four numbers are drawn from it.

        Returns:
            Image ``(C, *crop)`` float32, and label ``(*crop)`` of the same dtype as before.
        """
        scale, angle = torch.randn(2, generator=generator, dtype=torch.float64).tolist()
        turn, flip = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
        if self.flip and flip < 0.5:
            picture, label = mirror_picture(picture), mirror_label(label, self.mirror_pairs)
        factor = 1 + self.scale * min(max(scale, -1.0), 1.0)
        degrees = self.rotation * min(max(angle, -2.0), 2.0)
        matrix = self._matrix(
            label.shape, factor, degrees if turn < self.rotation_probability else 0.0
        )
        size = (self.crop[1], self.crop[0])
        warped = cv2.warpAffine(
            picture, matrix, size, flags=cv2.INTER_LINEAR, borderValue=(0, 0, 0)
        )
        classes = cv2.warpAffine(
            label, matrix, size, flags=cv2.INTER_NEAREST, borderValue=self.ignore_index
        )
        return self.transform(warped), classes

    def _matrix(self, shape: tuple[int, ...], factor: float, degrees: float) -> NDArray[np.float64]:
        """Return where a pixel of the picture goes: ``(2, 3)``, column and row out of column, row and 1."""
        (height, width), (rows, columns) = shape, self.crop
        # The picture, with so much around it that it has the shape of the crop.
        box = max(width - 1, (height - 1) * columns / rows, 1)
        zoom = columns / (box * factor)
        cosine = zoom * math.cos(math.radians(degrees))
        sine = zoom * math.sin(math.radians(degrees))
        x, y = (width - 1) / 2, (height - 1) / 2
        return np.array(
            [
                [cosine, sine, columns / 2 - cosine * x - sine * y],
                [-sine, cosine, rows / 2 + sine * x - cosine * y],
            ]
        )
