# SPDX-License-Identifier: MIT
"""``ocnet predict``: label every pixel of a picture with a trained network."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ocnet.cli.networks import add_network_arguments, open_network, parse_network_arguments

_MAX_SIDE = 1024


def main(argv: Sequence[str]) -> int:
    """Write the classes of a picture, the picture with their colours over it, and what was looked at.

    Args:
        argv: ``--run``, ``--image``, ``--out`` and options, see ``ocnet predict --help``.

    Returns:
        Exit status 0.
    """
    parser = argparse.ArgumentParser(
        prog="ocnet predict",
        description="Label every pixel of a picture: writes a palette PNG whose values are class "
        "numbers, and beside it <out>_overlay.png, the picture with the colours over it; with --attention "
        "also <out>_attention.png, what the network looked at.",
    )
    add_network_arguments(parser)
    parser.add_argument("--image", type=Path, required=True, help="picture, in any common format")
    parser.add_argument("--out", type=Path, required=True, help="PNG to write")
    parser.add_argument(
        "--max-side",
        type=int,
        default=_MAX_SIDE,
        help="larger pictures are reduced to this many pixels for the network, unless the config says how "
        "large it sees them; 0: never (%(default)s)",
    )
    parser.add_argument(
        "--attention",
        action="store_true",
        help="draw what the network looks at: maps of query points, or soft class regions",
    )
    parser.add_argument(
        "--points",
        nargs="+",
        type=_point,
        metavar="ROW,COLUMN",
        help="query points of --attention, pixels of the picture (the innermost of the largest classes)",
    )
    args, overrides = parse_network_arguments(parser, argv)
    if args.out.suffix.lower() != ".png":
        raise ValueError(f"predict: --out must end in .png, got {args.out}")
    if args.points is not None and not args.attention:
        raise ValueError("predict: --points must come with --attention, got it alone")
    if args.max_side < 0:
        raise ValueError(f"predict: --max-side must be at least 0, got {args.max_side}")

    # After parsing, so that --help and wrong options do not wait for torch.
    import numpy as np
    from PIL import Image

    from ocnet.data import overlay, read_picture, write_class_map
    from ocnet.engine.attention_pictures import draw_attention
    from ocnet.engine.scoring import label_picture

    picture = read_picture(args.image)
    run = open_network(args, overrides)
    max_side = args.max_side if args.max_side > 0 else None
    classes = label_picture(run, picture, max_side)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    written = [args.out, args.out.with_name(f"{args.out.stem}_overlay.png")]
    if args.attention:
        # First, because it can be refused.
        written.append(args.out.with_name(f"{args.out.stem}_attention.png"))
        points = None if args.points is None else np.array(args.points, dtype=np.int64)
        draw_attention(written[-1], run, picture, classes, points=points, max_side=max_side)
    write_class_map(written[0], classes, run.info.palette)
    Image.fromarray(overlay(picture, classes, run.info.palette)).save(written[1])
    shares = np.bincount(classes.ravel(), minlength=run.info.num_classes) / classes.size
    for name, share in zip(run.info.class_names, shares, strict=True):
        if share > 0:
            print(f"{name}: {100 * share:.1f} % of the pixels")
    print(f"written to {', '.join(map(str, written[:-1]))} and {written[-1]}")
    return 0


def _point(text: str) -> tuple[int, int]:
    row, comma, column = text.partition(",")
    if not (comma and row.isdecimal() and column.isdecimal()):
        raise argparse.ArgumentTypeError(f"must be ROW,COLUMN in whole pixels, got {text}")
    return int(row), int(column)
