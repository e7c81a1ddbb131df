# SPDX-License-Identifier: MIT
"""From pictures to images: normalisation, and the random scale, crop and flip of training."""

from __future__ import annotations

from typing import Any, Protocol

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class PictureTransform(Protocol):
    """Makes what a network is given out of an RGB picture."""

    @property
    def channels(self) -> int:
        """Channels of the result."""

    def __call__(self, picture: NDArray[np.uint8]) -> Tensor:
        """Turn ``(H, W, 3)`` uint8 into ``(C, H, W)`` float32."""


class Normalise:
    """Subtract a mean and divide by a deviation, per channel: ``(x / 255 - mean) / std``.

    Args:
        mean: one value per channel, in units of full brightness; one value means grey pictures.
        std: as many values, greater than 0.

    Raises:
        ValueError: the two differ in length, have neither 1 nor 3 values, or ``std`` is not positive.
    """

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        if len(mean) not in (1, 3) or len(mean) != len(std):
            raise ValueError(
                f"Normalise: mean and std must have 1 or 3 values each, got {len(mean)} and "
                f"{len(std)}"
            )
        if min(std) <= 0:
            raise ValueError(f"Normalise: std must be greater than 0, got {min(std)}")
        self.mean = np.array(mean, dtype=np.float32)
        self.std = np.array(std, dtype=np.float32)

    @property
    def channels(self) -> int:
        """Channels of the result, 1 or 3."""
        return len(self.mean)

    @property
    def fill(self) -> NDArray[np.uint8]:
        """Colour ``(3,)`` that comes out (nearly) zero: what padding is made of."""
        return np.broadcast_to(np.rint(255 * self.mean), (3,)).astype(np.uint8)

    def __call__(self, picture: NDArray[np.uint8]) -> Tensor:
        """Normalise one picture.

        Args:
            picture: ``(H, W, 3)`` uint8.

        Returns:
            ``(C, H, W)`` float32.
        """
        image = _with_channels(picture, self.channels) / np.float32(255)
        return _to_tensor((image - self.mean) / self.std)


class Standardise:
    """Give each picture mean 0 and standard deviation ``deviation``, over all its channels.

    For networks trained on images without an absolute brightness.

    Args:
        channels: 1 for grey, 3 for colour.
        deviation: standard deviation of the result, greater than 0.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(self, channels: int, deviation: float = 1.0) -> None:
        if channels not in (1, 3):
            raise ValueError(f"Standardise: channels must be 1 or 3, got {channels}")
        if deviation <= 0:
            raise ValueError(f"Standardise: deviation must be greater than 0, got {deviation}")
        self._channels = channels
        self._deviation = deviation

    @property
    def channels(self) -> int:
        """Channels of the result, 1 or 3."""
        return self._channels

    def __call__(self, picture: NDArray[np.uint8]) -> Tensor:
        """Standardise one picture.

        Args:
            picture: ``(H, W, 3)`` uint8.

        Returns:
            ``(C, H, W)`` float32; all zero for a picture of one colour.
        """
        image = _with_channels(picture, self._channels)
        image -= image.mean()
        spread = float(image.std())
        # A picture of one grey has only rounding left; dividing by that would blow it up.
        if spread > 1e-3:
            image *= self._deviation / spread
        return _to_tensor(image)


class Augment:
    """Random scale, crop and left-right flip of a picture together with its label.

    Args:
        crop: side of the square result, pixels. Smaller pictures are padded at the right and bottom.
        scale_range: smallest and largest factor; the factor is uniform between them.
        flip: whether half of the results are mirrored.
        fill: colour ``(3,)`` of the padding.
        ignore_index: label of the padding.

    Raises:
        ValueError: ``crop`` is below 1, or ``scale_range`` is not ``0 < smallest <= largest``.
    """

    def __init__(
        self,
        crop: int,
        scale_range: tuple[float, float],
        flip: bool,
        fill: NDArray[np.uint8],
        ignore_index: int,
    ) -> None:
        if crop < 1:
            raise ValueError(f"Augment: crop must be at least 1, got {crop}")
        if not 0 < scale_range[0] <= scale_range[1]:
            raise ValueError(
                f"Augment: scale_range must be 0 < smallest <= largest, got {scale_range}"
            )
        self._crop = crop
        self._scale_range = scale_range
        self._flip = flip
        self._fill = fill
        self._ignore_index = ignore_index

    def __call__(
        self, picture: NDArray[np.uint8], label: NDArray[Any], generator: torch.Generator
    ) -> tuple[NDArray[np.uint8], NDArray[Any]]:
        """Draw one crop.

        Args:
            picture: ``(H, W, 3)`` uint8.
            label: ``(H, W)``, an integer dtype that OpenCV resizes (uint8 or uint16).
            generator: four numbers are drawn from it, whatever the options.

        Returns:
            Picture ``(crop, crop, 3)`` and label ``(crop, crop)``, dtypes kept.
        """
        scale_draw, top_draw, left_draw, flip_draw = torch.rand(4, generator=generator).tolist()
        smallest, largest = self._scale_range
        scale = smallest + (largest - smallest) * scale_draw
        height = max(1, round(scale * label.shape[0]))
        width = max(1, round(scale * label.shape[1]))
        picture = cv2.resize(picture, (width, height), interpolation=cv2.INTER_LINEAR)
        label = cv2.resize(label, (width, height), interpolation=cv2.INTER_NEAREST)

        crop = self._crop
        top = int(top_draw * (max(height - crop, 0) + 1))
        left = int(left_draw * (max(width - crop, 0) + 1))
        window = (slice(top, top + crop), slice(left, left + crop))
        kept_rows, kept_columns = min(height, crop), min(width, crop)
        out_picture = np.empty((crop, crop, 3), dtype=np.uint8)
        out_picture[:] = self._fill
        out_picture[:kept_rows, :kept_columns] = picture[window]
        out_label = np.full((crop, crop), self._ignore_index, dtype=label.dtype)
        out_label[:kept_rows, :kept_columns] = label[window]
        if self._flip and flip_draw < 0.5:
            out_picture, out_label = out_picture[:, ::-1], out_label[:, ::-1]
        return out_picture, out_label


def _with_channels(picture: NDArray[np.uint8], channels: int) -> NDArray[np.float32]:
    """Return a float32 copy, ``(H, W, 3)`` or, made grey, ``(H, W, 1)``."""
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
        raise ValueError(
            f"picture_transform: picture must be (H, W, 3) uint8, got {picture.shape} "
            f"{picture.dtype}"
        )
    image = picture.astype(np.float32)
    return to_grey(image)[..., None] if channels == 1 else image


def to_grey(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the luma of ITU-R BT.601, which Pillow and OpenCV use for "convert to grey".

    Args:
        image: ``(H, W, 3)`` float32, red, green, blue.

    Returns:
        ``(H, W)`` float32, same units.
    """
    return image @ np.array([0.299, 0.587, 0.114], dtype=np.float32)


def _to_tensor(image: NDArray[np.float32]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
