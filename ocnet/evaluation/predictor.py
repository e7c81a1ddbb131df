# SPDX-License-Identifier: MIT
"""Pictures of any size through a network, in memory that is planned."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ocnet.evaluation.inference import Network, evaluating, predict_logits, raw_logits, resized
from ocnet.evaluation.options import InferenceOptions
from ocnet.evaluation.tiles import Strip, strips

HOST_LIMIT = 4 << 30
"""Sums of more bytes than this are kept in a file."""


class Predictor:
    """Ask a network about pictures, as :class:`InferenceOptions` say.

    The device holds one batch of tiles and what comes out of it; in mode ``slide`` that does not depend on
    the size of the picture. Everything else is on the host: one sum ``(K, H, W)``, whatever the number of
    scales and tiles, because each tile is blended, resized and added at once.

    Args:
        model: on ``device``; used in evaluation mode and left in the modes it was in.
        options: how it is asked; default: once, about the whole picture.
        num_classes: K, channels of its logits.
        device: where the model is.
        mirror_pairs: classes that change places when a picture is mirrored, such as left and right arms.
        host_limit: a sum of more bytes is kept in a temporary file, in the system's folder for such.

    Raises:
        ValueError: ``num_classes`` is below 1, or ``mirror_pairs`` has a class twice or one that is none.
    """

    def __init__(
        self,
        model: Network,
        options: InferenceOptions | None = None,
        *,
        num_classes: int,
        device: torch.device | str = "cpu",
        mirror_pairs: Sequence[tuple[int, int]] = (),
        host_limit: int = HOST_LIMIT,
    ) -> None:
        if num_classes < 1:
            raise ValueError(f"Predictor: num_classes must be at least 1, got {num_classes}")
        self.options = InferenceOptions() if options is None else options
        self._model = model
        self._num_classes = num_classes
        self._device = device
        self._mirrored_classes = _mirrored_classes(mirror_pairs, num_classes)
        self._host_limit = host_limit

    def logits(self, image: Tensor) -> Tensor:
        """Return the merged result for every pixel of an image.

        Args:
            image: ``(C, H, W)``, floating, what the network is given.

        Returns:
            ``(K, H, W)`` on the host, fp32 (fp64 if the model computes in it): logits, sums of exponentials or
            probabilities, as ``options.merge`` says.

        Raises:
            ValueError: ``image`` has another number of dimensions, or the network another number of classes.
        """
        _check_image(image, (3,))
        if self.options.plain:
            return self._plain(image[None])[0].cpu()
        total = self._merged(image)
        if total.shape[1:] == image.shape[1:]:
            return total
        result = self._zeros(image.shape[1:], total.dtype)
        for plane, enlarged in zip(result, self._planes(total, image.shape[1:]), strict=True):
            plane.copy_(enlarged)
        return result

    def classes(self, image: Tensor) -> Tensor:
        """Return the class of every pixel.

        Args:
            image: ``(C, H, W)``, or ``(N, C, H, W)``: several of one size, which one call of the network sees
                together where it sees pictures as they are (``options.plain``).

        Returns:
            ``(H, W)`` or ``(N, H, W)``, int64, on the host.

        Raises:
            ValueError: as for :meth:`logits`.
        """
        _check_image(image, (3, 4))
        batch = image if image.ndim == 4 else image[None]
        if self.options.plain:
            found = self._plain(batch).argmax(1).cpu()
        else:
            found = torch.stack([self._best(one) for one in batch])
        return found if image.ndim == 4 else found[0]

    def _plain(self, batch: Tensor) -> Tensor:
        return self._checked(predict_logits(self._model, batch.to(self._device)))

    def _checked(self, logits: Tensor) -> Tensor:
        if logits.shape[1] != self._num_classes:
            raise ValueError(
                f"Predictor: main must have {self._num_classes} channels, one per class, "
                f"got {logits.shape[1]}"
            )
        return logits

    def _best(self, image: Tensor) -> Tensor:
        """Return the class with the largest result, plane by plane: all planes may be a file."""
        total, size = self._merged(image), image.shape[1:]
        best = torch.zeros(size, dtype=torch.int64)
        largest: Tensor | None = None
        for number, plane in enumerate(self._planes(total, size)):
            if largest is None:
                largest = plane.clone()
                continue
            # As argmax: the first of equals, and NaN before all numbers.
            better = (plane > largest) | (plane.isnan() & ~largest.isnan())
            best[better] = number
            torch.where(better, plane, largest, out=largest)
        return best

    def _planes(self, total: Tensor, size: Sequence[int]) -> Iterator[Tensor]:
        """Yield the plane of each class at the size of the picture."""
        for plane in total:
            if tuple(plane.shape) == tuple(size):
                yield plane
            elif self.options.merge == "sum_logits":
                # openseg uses OpenCV, whose pixels have centres; its cubic is torch's.
                yield F.interpolate(plane[None, None], size=tuple(size), mode="bicubic")[0, 0]
            else:
                yield resized(plane[None, None], size)[0, 0]

    def _merged(self, image: Tensor) -> Tensor:
        """Return the merged result ``(K, h, w)`` at the size of the resized picture, without padding."""
        options = self.options
        shown = _at(image[None], self._shown_size(image.shape[1:]))
        rows, columns = shown.shape[2:]
        if options.pad_multiple is not None:
            multiple = options.pad_multiple
            shown = F.pad(shown, (0, -columns % multiple, 0, -rows % multiple))
        size = (shown.shape[2], shown.shape[3])
        total: Tensor | None = None
        with evaluating(self._model):
            for scale in options.scales:
                scaled = _at(shown, (_rounded(size[0] * scale), _rounded(size[1] * scale)))
                parts = self._parts(scaled, size, options.slides(scale))
                for part, target_rows, target_columns in parts:
                    if total is None:
                        total = self._zeros(size, part.dtype)
                    total[:, target_rows, target_columns] += part.cpu()
        assert total is not None  # there is at least one scale
        looks = len(options.scales) * (2 if options.flip and not options.pointwise else 1)
        if looks > 1 and options.merge.startswith("mean"):
            total /= looks
        return total[:, :rows, :columns]

    def _shown_size(self, size: Sequence[int]) -> tuple[int, int]:
        if self.options.resize_to is not None:
            return self.options.resize_to
        factor = 1.0
        if self.options.resize_short is not None:
            factor = self.options.resize_short / min(size)
        if self.options.resize_long is not None:
            factor = self.options.resize_long / max(size)
        return _rounded(size[0] * factor), _rounded(size[1] * factor)

    def _zeros(self, size: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Return zeros ``(K, *size)``, in a file where they are too many."""
        shape = (self._num_classes, *size)
        if dtype.itemsize * np.prod(shape, dtype=np.int64) <= self._host_limit:
            return torch.zeros(shape, dtype=dtype)
        # The file has no name; it goes when the tensor goes.
        with tempfile.TemporaryFile() as file:
            kind = np.float64 if dtype == torch.float64 else np.float32
            return torch.from_numpy(np.memmap(file, dtype=kind, mode="w+", shape=shape))

    def _parts(
        self, scaled: Tensor, size: tuple[int, int], slides: bool
    ) -> Iterator[tuple[Tensor, slice, slice]]:
        """Yield what each look at a picture adds to the result, and the rows and columns it adds to.

        Args:
            scaled: picture ``(1, C, h, w)`` at one scale.
            size: rows and columns of the result.
            slides: whether the network sees tiles.
        """
        seen = self._tiles if slides else self._whole
        yield from seen(scaled, size)
        if self.options.flip and not self.options.pointwise:
            for part, rows, columns in seen(scaled.flip(-1), size):
                mirrored = slice(size[1] - columns.stop, size[1] - columns.start)
                yield self._mirrored(part), rows, mirrored

    def _whole(
        self, scaled: Tensor, size: tuple[int, int]
    ) -> Iterator[tuple[Tensor, slice, slice]]:
        logits = self._logits(scaled)
        if self.options.pointwise:
            logits = self._pointwise(logits, scaled.shape[2:])
        yield resized(logits, size)[0], slice(0, size[0]), slice(0, size[1])

    def _tiles(
        self, scaled: Tensor, size: tuple[int, int]
    ) -> Iterator[tuple[Tensor, slice, slice]]:
        tile, count = self.options.tile, self.options.tile_batch
        rows = strips(scaled.shape[2], size[0], tile[0], self.options)
        columns = strips(scaled.shape[3], size[1], tile[1], self.options)
        places = [(row, column) for row in rows for column in columns]
        for first in range(0, len(places), count):
            some = places[first : first + count]
            logits = self._logits(torch.cat([_cut(scaled, *place, tile) for place in some]))
            for (row, column), one in zip(some, logits.split(1), strict=True):
                if self.options.pointwise:
                    scores = self._pointwise(one, tile)[0]
                else:
                    scores = resized(one, tile)[0]
                inside = scores[:, : row.stop - row.start, : column.stop - column.start]
                yield column.spread(row.spread(inside, -2), -1), row.target, column.target

    def _logits(self, images: Tensor) -> Tensor:
        """Return raw logits ``(N, K, h, w)``: their mean with the mirrored ones where tiles are mirrored singly."""
        images = images.to(self._device)
        logits = self._checked(raw_logits(self._model, images))
        if not (self.options.flip and self.options.pointwise):
            return logits
        mirrored = raw_logits(self._model, images.flip(-1))
        return (logits + self._mirrored(mirrored)) / 2

    def _pointwise(self, logits: Tensor, size: Sequence[int]) -> Tensor:
        enlarged = resized(logits, size)
        return enlarged.exp() if self.options.merge == "exp_logits" else enlarged.softmax(1)

    def _mirrored(self, scores: Tensor) -> Tensor:
        """Return scores ``(..., K, h, w)`` of a mirrored picture as those of the picture."""
        mirrored = scores.flip(-1)
        if self._mirrored_classes is None:
            return mirrored
        return mirrored.index_select(-3, self._mirrored_classes.to(scores.device))


def _cut(picture: Tensor, rows: Strip, columns: Strip, tile: tuple[int, int]) -> Tensor:
    """Return one tile, padded with zeros to its full size."""
    piece = picture[:, :, rows.start : rows.stop, columns.start : columns.stop]
    return F.pad(piece, (0, tile[1] - piece.shape[3], 0, tile[0] - piece.shape[2]))


def _at(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Return an image ``(1, C, H, W)`` at a size, itself where it has it."""
    return image if tuple(image.shape[2:]) == size else resized(image, size)


def _rounded(length: float) -> int:
    return max(1, int(length + 0.5))


def _check_image(image: Tensor, ranks: tuple[int, ...]) -> None:
    if image.ndim not in ranks:
        shapes = " or ".join({3: "(C, H, W)", 4: "(N, C, H, W)"}[rank] for rank in ranks)
        raise ValueError(f"Predictor: image must be {shapes}, got {tuple(image.shape)}")


def _mirrored_classes(pairs: Sequence[tuple[int, int]], num_classes: int) -> Tensor | None:
    """Return the class that each class becomes in the mirror; None where all stay what they are."""
    listed = [number for pair in pairs for number in pair]
    if len(set(listed)) != len(listed) or not all(0 <= n < num_classes for n in listed):
        raise ValueError(
            f"Predictor: mirror_pairs must have classes 0 to {num_classes - 1}, each once, "
            f"got {tuple(pairs)}"
        )
    if not listed:
        return None
    table = list(range(num_classes))
    for one, other in pairs:
        table[one], table[other] = other, one
    return torch.tensor(table)
