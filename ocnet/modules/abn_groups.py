# SPDX-License-Identifier: MIT
"""Which ranks synchronise: for networks of which some ranks skip a part."""

from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from ocnet.modules.inplace_abn import name_layers

# Groups are made once for each set of ranks; the default group they belong to may be made anew.
_GROUPS: dict[tuple[int, ...], Any] = {}
_WORLD: list[Any] = [None]


def set_active_group(module: nn.Module, group: Any) -> None:
    """Let all synchronised layers of a network synchronise over a process group from now on.

    Args:
        module: The network.
        group: A process group, what :func:`active_group` returned, or ``None``: the default group.
    """
    name_layers(module)
    for layer in module.modules():
        set_group = getattr(layer, "set_group", None)
        if set_group is not None:
            set_group(group)


def active_group(active: bool) -> Any:
    """Return the group of the ranks that are active; every rank of the default group must call.

    Args:
        active: Whether this rank takes part.

    Returns:
        The group for ranks that are active. For the others, ``GroupMember.NON_GROUP_MEMBER``: layers
        that get it are on their own (the reference library returns ``None`` when nobody is active, which
        its layers take for everybody). ``None`` where no default group was made.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return None
    world = dist.group.WORLD
    device = "cuda" if dist.get_backend(world) == "nccl" else "cpu"
    mine = torch.tensor([int(active)], device=device)
    flags = [torch.zeros_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(flags, mine)
    ranks = tuple(rank for rank, flag in enumerate(flags) if flag.item())
    if len(ranks) == len(flags):
        return world
    if not ranks:
        return dist.GroupMember.NON_GROUP_MEMBER
    if _WORLD[0] is not world:
        _GROUPS.clear()
        _WORLD[0] = world
    if ranks not in _GROUPS:
        # Collective: ranks that are not members make it too, and get NON_GROUP_MEMBER.
        _GROUPS[ranks] = dist.new_group(list(ranks))
    return _GROUPS[ranks]
