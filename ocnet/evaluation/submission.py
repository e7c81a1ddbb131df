# SPDX-License-Identifier: MIT
"""Predictions as the label files that test servers take, and the archive that is sent."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ocnet.data import IGNORE_INDEX, LabelMap, write_class_map
from ocnet.data.base import RGB


def write_submission(
    folder: Path,
    name: str,
    classes: NDArray[np.int64],
    label_map: LabelMap,
    palette: Sequence[RGB] | None = None,
) -> Path:
    """Write one prediction as a label file of its data set.

    Args:
        folder: where to write; made if it is missing.
        name: name of the file, without folder and ending.
        classes: ``(H, W)``, class numbers.
        label_map: the file values of the classes, such as Cityscapes' ids 7 to 33.
        palette: one colour per class, shown for its file value; None: a grey PNG without colours.

    Returns:
        The file, an 8-bit PNG whose values are the file values.

    Raises:
        ValueError: ``name`` has a folder in it, a number is no class of the map, the map has file values above
            255, or the palette has not a colour for each class.

    Source: OCNet generate_submit.py, whose palette has the colours of VOC. Cityscapes' server reads the values.
    """
    if not name or Path(name).name != name:
        raise ValueError(
            f"write_submission: name must be a file name without a folder, got {name!r}"
        )
    values = label_map.encode(classes)
    if values.dtype != np.uint8:
        raise ValueError(
            f"write_submission: label_map must have values up to {np.iinfo(np.uint8).max} for an "
            f"8-bit PNG, got up to {max(label_map.classes)}"
        )
    count = 1 + max(number for number in label_map.classes.values() if number != IGNORE_INDEX)
    if palette is not None and len(palette) != count:
        raise ValueError(f"write_submission: palette must have {count} colours, got {len(palette)}")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.png"
    if palette is None:
        Image.fromarray(values).save(path, format="PNG")
        return path
    # All values that a palette PNG has colours for; those that stand for no class are black.
    colours: list[RGB] = [(0, 0, 0)] * IGNORE_INDEX
    for value, colour in zip(label_map.encode(np.arange(count)).tolist(), palette, strict=True):
        if value < len(colours):
            colours[value] = colour
    write_class_map(path, values.astype(np.int64), colours)
    return path


def zip_submission(folder: Path) -> Path:
    """Pack the predictions of a folder into one archive, without folders in it.

    Args:
        folder: has the PNGs.

    Returns:
        ``<folder>.zip`` beside the folder. The same pictures always make the same bytes.

    Raises:
        FileNotFoundError: ``folder`` has no PNG.
    """
    files = sorted(path for path in folder.glob("*.png") if path.is_file())
    if not files:
        raise FileNotFoundError(f"zip_submission: folder must have PNGs, got none in {folder}")
    path = folder.with_name(f"{folder.name}.zip")
    # PNGs are compressed; doing it again would depend on the version of zlib.
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for file in files:
            member = zipfile.ZipInfo(file.name)  # without a date, which is that of 1980
            member.create_system = 3  # Unix, on every system
            member.external_attr = 0o644 << 16
            archive.writestr(member, file.read_bytes())
    return path
