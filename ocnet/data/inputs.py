# SPDX-License-Identifier: MIT
"""From pictures to what networks are given: normalisation, and the normalisations by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, Protocol

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
    """Subtract a mean and divide by a deviation, per channel: ``(x / unit - mean) / std``.

    Args:
        mean: one value per channel of the result, in the order of its channels; one value means grey
            pictures.
        std: as many values, greater than 0.
        order: channels of the result, ``"rgb"`` or ``"bgr"``; of no effect on grey pictures.
        unit: what a pixel is divided by first, greater than 0: with 255, ``mean`` and ``std`` are in units of
            full brightness; with 1 they are in those of the file.

    Raises:
        ValueError: ``mean`` and ``std`` differ in length or have neither 1 nor 3 values, ``std`` or ``unit``
            is not positive, or there is no such order.
    """

    def __init__(
        self,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        *,
        order: Literal["rgb", "bgr"] = "rgb",
        unit: float = 255.0,
    ) -> None:
        if len(mean) not in (1, 3) or len(mean) != len(std):
            raise ValueError(
                f"Normalise: mean and std must have 1 or 3 values each, got {len(mean)} and "
                f"{len(std)}"
            )
        if min(std) <= 0:
            raise ValueError(f"Normalise: std must be greater than 0, got {min(std)}")
        if order not in ("rgb", "bgr"):
            raise ValueError(f"Normalise: order must be rgb or bgr, got {order}")
        if unit <= 0:
            raise ValueError(f"Normalise: unit must be greater than 0, got {unit}")
        self.mean = np.array(mean, dtype=np.float32)
        self.std = np.array(std, dtype=np.float32)
        self.order = order
        self.unit = unit

    @property
    def channels(self) -> int:
        """Channels of the result, 1 or 3."""
        return len(self.mean)

    def __call__(self, picture: NDArray[np.uint8]) -> Tensor:
        """Normalise one picture.

        Args:
            picture: ``(H, W, 3)`` uint8, red, green, blue.

        Returns:
            ``(C, H, W)`` float32.
        """
        image = _with_channels(picture, self.channels)
        if self.order == "bgr":
            image = image[..., ::-1]
        image /= np.float32(self.unit)
        image -= self.mean
        image /= self.std
        return _to_tensor(image)


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


_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
_CAFFE_MEAN = (102.9801, 115.9465, 122.7717)  # blue, green, red
_ONES = (1.0, 1.0, 1.0)
_RGB_NUMBERS_ON_BGR = Normalise(_IMAGENET_MEAN, _IMAGENET_STD, order="bgr")

INPUTS: Mapping[str, PictureTransform] = MappingProxyType(
    {
        "imagenet": Normalise(_IMAGENET_MEAN, _IMAGENET_STD),
        # The order of the mean is not that of the channels: OCNet's published numbers have it so.
        "ocnet": Normalise(_CAFFE_MEAN, _ONES, unit=1),
        "openseg": Normalise(_CAFFE_MEAN, _ONES, order="bgr", unit=1),
        "openseg_lip": Normalise(
            (104.00698793, 116.66876762, 122.67891434), _ONES, order="bgr", unit=1
        ),
        "openseg_hrnet": _RGB_NUMBERS_ON_BGR,
        "ce2p": _RGB_NUMBERS_ON_BGR,
    }
)
"""What networks were given by the codes that published them.

- ``imagenet``: RGB of 1, less the ImageNet mean, over its deviation (HRNet repository).
- ``ocnet``: RGB of 255, less a mean that is in the order blue, green, red (OCNet.pytorch).
- ``openseg``: BGR of 255, less the same mean, here in its right order (openseg.pytorch, ResNet).
- ``openseg_lip``: the same with another mean (openseg.pytorch, ResNet on LIP).
- ``openseg_hrnet``: BGR of 1, with the ImageNet numbers of RGB in the order red, green, blue
  (openseg.pytorch, HRNet).
- ``ce2p``: the same as ``openseg_hrnet`` (CE2P).
"""
