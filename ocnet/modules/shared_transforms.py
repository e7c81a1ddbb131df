# SPDX-License-Identifier: MIT
"""The transforms of one block of object context, and how their published state is read."""

from collections.abc import MutableMapping
from typing import Any

import torch
from torch import nn

from ocnet.modules._transforms import key_transform, output_transform
from ocnet.modules.norms import BATCHNORM, Norm


class SharedTransforms(nn.Module):
    """The transforms of one block: ``f_key``, which makes the queries too, ``f_value`` and ``W``.

    Args:
        in_channels: Channels of the features.
        key_channels: Channels of queries and keys.
        value_channels: Channels of the values.
        out_channels: Channels of the output.
        norm: Batch norm, called as ``norm(channels)``; see ``ocnet.modules.norm_layer``.

    Note:
        The batch norm of ``f_key`` has momentum 0.19. The published code evaluates the shared
        transform twice in a training step, which moves the running statistics twice by 0.1 of the
        same batch statistics: ``1 - 0.9 ** 2``. State dicts of that code name the transform twice;
        equal ``f_query.*`` keys are dropped, and stand in for absent ``f_key.*`` keys.
    """

    def __init__(
        self,
        in_channels: int,
        key_channels: int,
        value_channels: int,
        out_channels: int,
        norm: Norm = BATCHNORM,
    ) -> None:
        super().__init__()
        self.f_key = key_transform(in_channels, key_channels, norm)
        self.f_value = nn.Conv2d(in_channels, value_channels, 1)
        self.W = output_transform(value_channels, out_channels)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        error_msgs.extend(fold_shared_query(state_dict, prefix))
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )


def fold_shared_query(state_dict: MutableMapping[str, Any], prefix: str) -> list[str]:
    """Fold the ``f_query`` keys of one block into its ``f_key`` keys, in place.

    Args:
        state_dict: State dict, changed: every ``<prefix>f_query.*`` goes, or takes the place of an
            absent ``<prefix>f_key.*``.
        prefix: Name of the block with its dot, as in ``"context.2.stages.0."``.

    Returns:
        One sentence for each query tensor that differs from its key twin.
    """
    complaints = []
    start = prefix + "f_query."
    for name in [name for name in state_dict if name.startswith(start)]:
        query = state_dict.pop(name)
        twin = prefix + "f_key." + name.removeprefix(start)
        key = state_dict.setdefault(twin, query)
        if query.shape != key.shape or not torch.equal(query.to(key), key):
            complaints.append(
                f"load_state_dict: {name} must equal {twin}, because queries and keys share one "
                "transform here; the file comes from a network with two"
            )
    return complaints
