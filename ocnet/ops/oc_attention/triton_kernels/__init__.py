# SPDX-License-Identifier: MIT
"""Triton device code of pixel-wise attention.

Every program keeps one tile of tokens ("rows") and lets the tokens of the other side ("columns")
pass by, so each result is written once, by one program, in one order: no atomics, bitwise
repeatable. Where rows are too few to fill a GPU, the columns are split among a fixed number of
programs, and a ``combine`` kernel adds their float32 parts in a fixed order.

Names: ``i_`` program and loop indices, ``p_`` pointers, ``x_`` pointers or TMA descriptors, ``o_``
offsets, ``m_`` masks, ``b_`` blocks, sizes in capitals. A tile is ``BM`` rows by ``BN`` columns.
Products over channels run in ``NE`` slices of ``BE`` query and key channels, or ``NV`` slices of
``BV`` value channels.

Matrices lie in rows of the padded channels side by side, so that no channel needs a mask: masks and
addresses per number are what registers run out of. TMA descriptors pad by themselves. The delta,
rounding and combine kernels alone take any strides. Scores are kept in units of log2, so that ``exp2`` needs no extra
multiplication. Padding is made harmless twice, because ``0 * inf`` is NaN: loads fill it with zero,
and the probabilities of columns past the end are set to zero.

Loops over descriptors keep what does not change inside (``disable_licm``): hoisted, it takes the
registers that the sums need, and spills. Loops over pointers are the other way round: their offsets
are too much work to repeat.
"""

from triton.tools.tensor_descriptor import TensorDescriptor

from ocnet.ops.oc_attention.triton_kernels.backward import (
    oc_attention_bwd_combine_kernel,
    oc_attention_bwd_delta_kernel,
    oc_attention_bwd_kernel,
)
from ocnet.ops.oc_attention.triton_kernels.few import (
    oc_attention_few_bwd_query_kernel,
    oc_attention_few_fwd_kernel,
)
from ocnet.ops.oc_attention.triton_kernels.forward import (
    oc_attention_fwd_combine_kernel,
    oc_attention_fwd_kernel,
)
from ocnet.ops.oc_attention.triton_kernels.tiles import oc_attention_round_kernel

__all__ = [
    "TensorDescriptor",
    "oc_attention_bwd_combine_kernel",
    "oc_attention_bwd_delta_kernel",
    "oc_attention_bwd_kernel",
    "oc_attention_few_bwd_query_kernel",
    "oc_attention_few_fwd_kernel",
    "oc_attention_fwd_combine_kernel",
    "oc_attention_fwd_kernel",
    "oc_attention_round_kernel",
]
