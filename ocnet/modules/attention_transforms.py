# SPDX-License-Identifier: MIT
"""The transforms of one block of object context, and how their published state is read."""

from collections.abc import MutableMapping
from typing import Any

import torch
from torch import Tensor, nn

from ocnet.modules._transforms import key_transform, output_transform, two_layers
from ocnet.modules.norms import BATCHNORM, Norm


class AttentionTransforms(nn.Module):
    """The transforms of one block: ``f_key``, ``f_query``, ``f_value`` and ``W``.

    Args:
        in_channels: Channels of the features.
        key_channels: Channels of queries and keys.
        value_channels: Channels of the values.
        out_channels: Channels of the output.
        norm: Batch norm, called as ``norm(channels)``; see ``ocnet.modules.norm_layer``.
        shared: ``f_query`` is ``f_key``, one layer, as in OCNet's code. Otherwise each is a transform
            of its own, of two layers, as in openseg's.

    Note:
        The batch norm of a shared ``f_key`` has momentum 0.19. The published code evaluates the
        transform twice in a training step, which moves the running statistics twice by 0.1 of the
        same batch statistics: ``1 - 0.9 ** 2``. State dicts name a shared transform twice, as that
        code does; a state without one of the two names is read as well, one whose two differ is not.
    """

    def __init__(
        self,
        in_channels: int,
        key_channels: int,
        value_channels: int,
        out_channels: int,
        norm: Norm = BATCHNORM,
        shared: bool = True,
    ) -> None:
        super().__init__()
        self.shared = shared
        if shared:
            self.f_key = key_transform(in_channels, key_channels, norm)
            self.f_query = self.f_key
        else:
            self.f_key = two_layers(in_channels, key_channels, True, norm)
            self.f_query = two_layers(in_channels, key_channels, True, norm)
        self.f_value = nn.Conv2d(in_channels, value_channels, 1)
        self.W = output_transform(value_channels, out_channels)

    def query_and_key(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return queries and keys ``(N, key_channels, H, W)``; the same tensor if shared."""
        query: Tensor = self.f_query(x)
        return query, query if self.shared else self.f_key(x)

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
        if self.shared:
            error_msgs.extend(complete_shared_query(state_dict, prefix))
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )


def complete_shared_query(state_dict: MutableMapping[str, Any], prefix: str) -> list[str]:
    """Give every tensor of a shared transform both its names, ``f_key`` and ``f_query``, in place.

    Args:
        state_dict: State dict, changed.
        prefix: Name of the block with its dot, as in ``"context.2.stages.0."``.

    Returns:
        One sentence for each query tensor that differs from its key twin.
    """
    complaints = []
    for one, other in (("f_key.", "f_query."), ("f_query.", "f_key.")):
        for name in [name for name in state_dict if name.startswith(prefix + one)]:
            state_dict.setdefault(
                prefix + other + name.removeprefix(prefix + one), state_dict[name]
            )
    for name in [name for name in state_dict if name.startswith(prefix + "f_query.")]:
        twin = prefix + "f_key." + name.removeprefix(prefix + "f_query.")
        query, key = state_dict[name], state_dict[twin]
        if query.shape != key.shape or not torch.equal(query.to(key), key):
            complaints.append(
                f"load_state_dict: {name} must equal {twin}, because queries and keys share one "
                "transform here; the file comes from a network with two"
            )
    return complaints
