# SPDX-License-Identifier: MIT
"""Your own pictures: a folder of images and a folder of label PNGs with the same names."""

from __future__ import annotations

from pathlib import Path

from ocnet.data.files import Entry

_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})


def folder_entries(root: Path) -> list[Entry]:
    """List the pictures in ``<root>/images`` with the labels in ``<root>/labels``, paired by file stem.

    ``images/street_7.jpg`` belongs to ``labels/street_7.png``.

    Args:
        root: folder that has ``images`` and, where there are labels, ``labels``.

    Returns:
        The pictures in the order of their stems; without labels where there is no folder of them.

    Raises:
        FileNotFoundError: ``root`` has no folder ``images``, a picture has no label, or there is no
            picture at all.
        ValueError: two pictures have the same stem.
    """
    images, labels = root / "images", root / "labels"
    if not images.is_dir():
        raise FileNotFoundError(
            f"dataset: folder must have the folders images and labels, got {root} without images"
        )
    pictures: dict[str, Path] = {}
    for path in sorted(images.iterdir()):
        if path.suffix.lower() not in _SUFFIXES:
            continue
        if path.stem in pictures:
            raise ValueError(
                f"dataset: pictures must have different stems, got {pictures[path.stem].name} "
                f"and {path.name} in {images}"
            )
        pictures[path.stem] = path
    if not pictures:
        raise FileNotFoundError(f"dataset: folder must have pictures, got none in {images}")
    if not labels.is_dir():
        return [Entry(pictures[stem], None, stem) for stem in sorted(pictures)]
    return [
        Entry(pictures[stem], _label(labels, pictures[stem]), stem) for stem in sorted(pictures)
    ]


def _label(labels: Path, picture: Path) -> Path:
    label = labels / f"{picture.stem}.png"
    if not label.is_file():
        raise FileNotFoundError(
            f"dataset: every picture must have a label, got none for {picture.name}: {label} is missing"
        )
    return label
