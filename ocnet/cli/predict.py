# SPDX-License-Identifier: MIT
"""``ocnet predict``: label every pixel of a picture with a trained network."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

_MAX_SIDE = 1024


def main(argv: Sequence[str]) -> int:
    """Write the classes of a picture, and the picture with their colours over it.

    Args:
        argv: ``--run``, ``--image``, ``--out`` and options, see ``ocnet predict --help``.

    Returns:
        Exit status 0.
    """
    parser = argparse.ArgumentParser(
        prog="ocnet predict",
        description="Label every pixel of a picture: writes a palette PNG whose values are class "
        "numbers, and beside it <out>_overlay.png, the picture with the colours over it.",
    )
    parser.add_argument("--run", type=Path, required=True, help="folder that ocnet train wrote")
    parser.add_argument("--image", type=Path, required=True, help="picture, in any common format")
    parser.add_argument("--out", type=Path, required=True, help="PNG to write")
    parser.add_argument(
        "--max-side",
        type=int,
        default=_MAX_SIDE,
        help="larger pictures are reduced to this many pixels for the network; 0: never "
        "(%(default)s)",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:<number>")
    args = parser.parse_args(argv)
    if args.out.suffix.lower() != ".png":
        raise ValueError(f"predict: --out must end in .png, got {args.out}")
    if args.max_side < 0:
        raise ValueError(f"predict: --max-side must be at least 0, got {args.max_side}")

    # After parsing, so that --help and wrong options do not wait for torch.
    import numpy as np
    from PIL import Image

    from ocnet.data import overlay, read_picture, write_class_map
    from ocnet.engine.run import load_run
    from ocnet.evaluation import classify_picture

    picture = read_picture(args.image)
    run = load_run(args.run, args.device)
    classes = classify_picture(
        run.model,
        run.info.picture_transform,
        picture,
        max_side=args.max_side if args.max_side > 0 else None,
        device=run.device,
    )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_class_map(args.out, classes, run.info.palette)
    overlay_path = args.out.with_name(f"{args.out.stem}_overlay.png")
    Image.fromarray(overlay(picture, classes, run.info.palette)).save(overlay_path)
    shares = np.bincount(classes.ravel(), minlength=run.info.num_classes) / classes.size
    for name, share in zip(run.info.class_names, shares, strict=True):
        if share > 0:
            print(f"{name}: {100 * share:.1f} % of the pixels")
    print(f"written to {args.out} and {overlay_path}")
    return 0
