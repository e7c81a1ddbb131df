# SPDX-License-Identifier: MIT
"""What ranks tell each other: one gathering of statistics forward, one sum of sums backward.

Functional collectives of a group's name, so that a compiled graph holds them. A rank that never comes
makes the others wait until the group's timeout; what is raised then names the layer.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def members(group: Any) -> tuple[str, int] | None:
    """Return the name and the size of a group to synchronise over, or ``None``.

    ``None`` where there is nobody to talk to: no group, one rank, or this rank is not a member.
    """
    if group is None or group is dist.GroupMember.NON_GROUP_MEMBER:
        return None
    if dist.get_rank(group) < 0 or dist.get_world_size(group) == 1:
        return None
    return group.group_name, dist.get_world_size(group)


def gather(packed: Tensor, group: tuple[str, int], layer: str) -> Tensor:
    """Return ``(ranks, numbers)``: what each rank has, in the order of ranks."""
    name, size = group
    gathered = torch.ops._c10d_functional.all_gather_into_tensor(packed, size, name)
    return _arrived(gathered, name, layer).view(size, -1)


def add(sums: Tensor, group: tuple[str, int], layer: str) -> Tensor:
    """Return the sum over all ranks."""
    name, _ = group
    return _arrived(torch.ops._c10d_functional.all_reduce(sums, "sum", name), name, layer)


def _arrived(pending: Tensor, group: str, layer: str) -> Tensor:
    try:
        arrived: Tensor = torch.ops._c10d_functional.wait_tensor(pending)
    except RuntimeError as error:
        raise RuntimeError(
            f"inplace_abn: every rank of group {group} must reach "
            f"{layer or 'the same layer'} in the same step, got: {error}"
        ) from error
    return arrived
