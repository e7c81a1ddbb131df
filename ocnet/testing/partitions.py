# SPDX-License-Identifier: MIT
"""Calls of ``partitioned_attention``: every group as a call of ``oc_attention``, sliced out."""

import random
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from ocnet.ops import Blocks, Grid, Partition, Strided, partitioned_attention
from ocnet.testing.inputs import AttentionCase, AttentionInputs, random_cases
from ocnet.testing.oracle import Results, results_of


def run_partitioned(inputs: AttentionInputs, partition: Partition, backend: str) -> Results:
    """Run the op, forward and backward."""

    def attend(query: Tensor, key: Tensor, value: Tensor, *, scale: float | None) -> Tensor:
        return partitioned_attention(query, key, value, partition, scale=scale, backend=backend)

    return results_of(attend, inputs)


def by_groups(
    function: Callable[[AttentionInputs], Results], inputs: AttentionInputs, partition: Partition
) -> Results:
    """Apply a function of a call to every group by itself, and put the results where groups are.

    Args:
        function: As ``oracle_results``.
        inputs: Maps of one size.
        partition: The groups.

    Returns:
        Whole maps, of the dtype that the function returns. Every pixel is in a group, or it is NaN.
    """
    whole: dict[str, Tensor] = {}
    for group in partition.axes(inputs.query.shape[2], inputs.query.shape[3]).each():
        here = (..., *group)
        query = inputs.query.detach()[here].requires_grad_()
        shared = inputs.key is inputs.query
        cell = AttentionInputs(
            query,
            query if shared else inputs.key.detach()[here].requires_grad_(),
            inputs.value.detach()[here].requires_grad_(),
            inputs.grad_out[here],
            inputs.scale,
        )
        for name, found in function(cell).named().items():
            if name not in whole:
                shape = (*found.shape[:2], *inputs.query.shape[2:])
                whole[name] = torch.full(shape, torch.nan, dtype=found.dtype, device=found.device)
            whole[name][here] = found
    return Results(whole["out"], whole["grad_query"], whole.get("grad_key"), whole["grad_value"])


def random_partitions(
    count: int, seed: int, dtypes: tuple[torch.dtype, ...], max_side: int
) -> Iterator[tuple[AttentionCase, Partition]]:
    """Draw legal calls: every kind of partition, with more groups than pixels among them."""
    rng = random.Random(seed)
    for case in random_cases(count, seed, dtypes, max_side):
        size = (rng.randint(1, max_side), rng.randint(1, max_side))
        kind = rng.choice((Grid, Grid, Blocks, Strided))
        numbers = (rng.randint(1, 8), rng.choice((1, 2, 3, 8, max_side + 1)))
        partition: Partition = (
            Grid(numbers[0]) if kind is Grid and rng.random() < 0.5 else kind(*numbers)
        )
        yield replace(case, size=size, key_size=None), partition
