# SPDX-License-Identifier: MIT
"""Triton device code of in-place ABN: statistics, the output, sums of the backward pass, gradients.

Every result is written once, by one program, in one order: no atomics, bitwise repeatable.

Names: ``i_`` program and loop indices, ``p_`` pointers, ``o_`` offsets, ``m_`` masks, ``b_`` blocks,
sizes in capitals. A program has the channels ``o_c``: ``BC`` of rows, one of planes, so that vectors
of channels are blocks of ``BC`` in both. A tile is ``BA`` x ``BB``: pixels by channels of rows;
lines of one channel's planes by positions. Absent tensors are ``None``, which compiles away what
would use them. Numbers past the ends are masked, loads fill them with 0, and nothing counts them.

``ROWS``, ``N``, ``L`` ... are the arguments that ``configs.cut`` makes, ``C`` is ``C_OVER * FACTOR``.
"""

from ocnet.ops.inplace_abn.triton_kernels.backward import (
    inplace_abn_bwd_kernel,
    inplace_abn_finish_kernel,
)
from ocnet.ops.inplace_abn.triton_kernels.forward import inplace_abn_fwd_kernel
from ocnet.ops.inplace_abn.triton_kernels.statistics import (
    inplace_abn_merge_kernel,
    inplace_abn_stats_kernel,
)

__all__ = [
    "inplace_abn_bwd_kernel",
    "inplace_abn_finish_kernel",
    "inplace_abn_fwd_kernel",
    "inplace_abn_merge_kernel",
    "inplace_abn_stats_kernel",
]
