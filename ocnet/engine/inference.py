# SPDX-License-Identifier: MIT
"""How the networks of a config are scored, as ``ocnet.evaluation`` wants it."""

from __future__ import annotations

from ocnet.engine.config import EvalConfig
from ocnet.evaluation import InferenceOptions


def inference_options(config: EvalConfig) -> InferenceOptions:
    """Return the options of inference of a config.

    Args:
        config: how networks are scored.

    Raises:
        ValueError: an option is out of its range.
    """
    resize_to = config.resize_to
    return InferenceOptions(
        mode=config.mode,
        tile=(config.tile[0], config.tile[1]),
        overlap=config.overlap,
        border=config.border,
        blend=config.blend,
        tile_batch=config.tile_batch,
        scales=tuple(config.scales),
        flip=config.flip,
        merge=config.merge,
        resize_short=config.resize_short,
        resize_long=config.resize_long,
        resize_to=None if resize_to is None else (resize_to[0], resize_to[1]),
        pad_multiple=config.pad_multiple,
    )
