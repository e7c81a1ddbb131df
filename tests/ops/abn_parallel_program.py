# SPDX-License-Identifier: MIT
"""Run by two processes: ``python abn_parallel_program.py RANK STORE``. DDP and FSDP2 against one process."""

import copy
import sys

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from ocnet.ops import inplace_abn

RANKS = 2


class Block(nn.Module):
    """A convolution and the op, synchronised where there is a group."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.weight = nn.Parameter(torch.tensor([1.0, -0.5, 0.7, 1.5]))
        self.bias = nn.Parameter(torch.tensor([0.1, -0.2, 0.0, 0.5]))
        self.register_buffer("running_mean", torch.zeros(4))
        self.register_buffer("running_var", torch.ones(4))
        self.inplace = inplace
        self.group: dist.ProcessGroup | None = None

    def forward(self, x: Tensor) -> Tensor:
        return inplace_abn(
            self.conv(x), self.weight, self.bias, self.running_mean, self.running_var,
            inplace=self.inplace, group=self.group,
        )  # fmt: skip


class Net(nn.Module):
    def __init__(self, inplace: bool, checkpointed: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(inplace) for _ in range(3))
        self.checkpointed = checkpointed

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.checkpointed else block(x)
        return x.square().mean()


def full(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def check(rank: int, wrapper: str, inplace: bool, checkpointed: bool) -> None:
    torch.manual_seed(0)
    net = Net(inplace, checkpointed)
    whole = copy.deepcopy(net)
    images = torch.randn(2 * RANKS, 4, 7, 5)
    whole(images).backward()
    for block in net.blocks:
        block.group = dist.group.WORLD
    wrapped: nn.Module = net
    if wrapper == "ddp":
        wrapped = DistributedDataParallel(net)
    else:
        mesh = init_device_mesh("cpu", (RANKS,))
        for block in net.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(net, mesh=mesh)
    wrapped(images[2 * rank : 2 * rank + 2]).backward()
    for (name, got), want in zip(net.named_parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(full(got.grad), want.grad, rtol=1e-4, atol=1e-5, msg=name)
    for got, want in zip(net.buffers(), whole.buffers(), strict=True):
        torch.testing.assert_close(full(got), want, rtol=1e-4, atol=1e-6)


def main(rank: int, store: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=RANKS)
    done = 0
    for wrapper in ("ddp", "fsdp2"):
        for inplace in (False, True):
            for checkpointed in (False, True):
                check(rank, wrapper, inplace, checkpointed)
                done += 1
    dist.destroy_process_group()
    print(f"checked {done} nets")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
