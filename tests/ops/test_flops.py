# SPDX-License-Identifier: MIT
"""What torch's counter says of the ops: the operations of the plain formula, and no more."""

import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ocnet.ops import oc_attention
from ocnet.ops.oc_attention.reference import naive_attention


def counted(function, *maps: torch.Tensor, backward: bool) -> int:
    leaves = {id(m): m.detach().requires_grad_(backward) for m in maps}
    with FlopCounterMode(display=False) as counter:
        out = function(*(leaves[id(m)] for m in maps))
        if backward:
            out.sum().backward()
    return counter.get_total_flops()


def test_forward_counts_what_the_formula_does() -> None:
    query, key, value = (
        torch.randn(2, 6, 5, 7),
        torch.randn(2, 6, 3, 4),
        torch.randn(2, 9, 3, 4),
    )
    mine = counted(oc_attention, query, key, value, backward=False)
    assert mine == counted(naive_attention, query, key, value, backward=False)
    assert mine == 2 * 2 * 35 * 12 * (6 + 9)


def test_backward_counts_the_scores_again() -> None:
    query, key, value = (
        torch.randn(1, 6, 5, 7),
        torch.randn(1, 6, 3, 4),
        torch.randn(1, 9, 3, 4),
    )
    mine = counted(oc_attention, query, key, value, backward=True)
    again = 2 * 35 * 12 * 6
    assert mine == counted(naive_attention, query, key, value, backward=True) + again


@pytest.mark.parametrize(("e", "ev"), [(8, 8), (8, 4), (4, 8)])
def test_shared_keys_count_the_symmetric_form(e: int, ev: int) -> None:
    query, value = torch.randn(1, e, 5, 5), torch.randn(1, ev, 5, 5)
    forward = counted(oc_attention, query, query, value, backward=False)
    both = counted(oc_attention, query, query, value, backward=True)
    assert both - forward == 2 * 25 * 25 * min(3 * e + 2 * ev, 2 * e + 3 * ev)


def test_the_counter_is_not_imported_for_nothing() -> None:
    """It imports Triton; whoever imports it later still finds the formulas."""
    program = (
        "import sys, torch, ocnet.ops\n"
        "slow = ('torch.utils.flop_counter', 'torch.distributed.tensor')\n"
        "assert not any(name in sys.modules for name in slow)\n"
        "from torch.utils.flop_counter import FlopCounterMode\n"
        "q = torch.randn(1, 2, 3, 3)\n"
        "with FlopCounterMode(display=False) as counter:\n"
        "    ocnet.ops.oc_attention(q, q, q)\n"
        "assert counter.get_total_flops() == 2 * 81 * 4, counter.get_total_flops()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
