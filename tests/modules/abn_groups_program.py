# SPDX-License-Identifier: MIT
"""Run by three processes: ``python abn_groups_program.py RANK STORE``. Layers over changing groups."""

import sys

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ocnet.modules import InPlaceABNSync, active_group, set_active_group

RANKS = 3


def statistics(net: nn.Sequential, x: Tensor) -> Tensor:
    net[0].reset_running_stats()
    net(x)
    return net[0].running_mean * 10


def main(rank: int, store: str) -> None:
    outside = active_group(True)
    assert outside is None
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=RANKS)
    torch.manual_seed(0)
    maps = [torch.randn(2 + r, 3, 4) for r in range(RANKS)]
    net = nn.Sequential(InPlaceABNSync(3), nn.ReLU())

    def expected(ranks: list[int]) -> Tensor:
        return torch.cat([maps[r] for r in ranks]).mean((0, 2))

    everybody = list(range(RANKS))
    torch.testing.assert_close(statistics(net, maps[rank]), expected(everybody))

    group = active_group(rank < 2)
    set_active_group(net, group)
    assert net[0].layer == "0"
    members = [0, 1] if rank < 2 else [rank]
    torch.testing.assert_close(statistics(net, maps[rank]), expected(members))
    # The same ranks again: the same group, not a new one.
    assert active_group(rank < 2) is group

    set_active_group(net, active_group(True))
    torch.testing.assert_close(statistics(net, maps[rank]), expected(everybody))
    # Nobody is active: everybody is on its own.
    set_active_group(net, active_group(False))
    torch.testing.assert_close(statistics(net, maps[rank]), expected([rank]))
    set_active_group(net, None)
    torch.testing.assert_close(statistics(net, maps[rank]), expected(everybody))
    dist.destroy_process_group()
    print("checked 6 groups")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
