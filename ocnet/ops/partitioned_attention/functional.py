# SPDX-License-Identifier: MIT
"""``partitioned_attention`` and ``pyramid_attention``: the public functions, their checks, ``explain``."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ocnet.ops._backends import AUTO, Backends, register_describer
from ocnet.ops._checks import check_attention, shape_of
from ocnet.ops._partition import KINDS, Grid, Partition, encode
from ocnet.ops.partitioned_attention.autograd import BACKENDS
from ocnet.ops.partitioned_attention.problem import DTYPES, MAX_STAGES, Problem

_PARTITIONED, _PYRAMID = "partitioned_attention", "pyramid_attention"

Stage = tuple[Tensor, Tensor, Tensor]


def partitioned_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    partition: Partition,
    *,
    scale: float | None = None,
    backend: str = AUTO,
) -> Tensor:
    r"""Gather, for every pixel, the values of the pixels of its group weighted by their similarity.

    .. math::
        \mathrm{out}_l = \sum_{s \in g(l)} \frac{e^{a_{ls}}}{\sum_{s' \in g(l)} e^{a_{ls'}}} \, v_s,
        \qquad a_{ls} = \mathrm{scale} \cdot \langle q_l, k_s \rangle

    where ``g(l)`` is the group of pixel ``l``. The partition says which pixels are a group:

    - ``Grid(rows, cols)``: cells of ``H // rows`` by ``W // cols`` pixels, the last ones with the rest;
    - ``Blocks(h, w)``: blocks of ``h x w`` neighbours, those at the far edges smaller;
    - ``Strided(h, w)``: pixels with equal ``(row % h, column % w)``.

    Maps go in and come out whole, of any size and layout. Groups are read and written where they are:
    nothing is gathered, padded or permuted, and no matrix is stored.

    Args:
        query: ``(N, E, H, W)``, float32, float64, bfloat16 or float16; NCHW or channels_last.
        key: ``(N, E, H, W)``, same dtype and device. ``key is query`` is recognised.
        value: ``(N, Ev, H, W)``, same dtype and device. ``E`` and ``Ev`` are independent, 1 to 512 for
            the compiled back ends.
        partition: ``Grid``, ``Blocks`` or ``Strided``.
        scale: Factor of the scores, unitless; ``E ** -0.5`` by default. 0 is honoured.
        backend: ``"auto"``, or one of ``"reference"``, ``"cpu"``, ``"triton"``, ``"cuda"``. A choice
            that cannot be met raises its reason; see :func:`ocnet.ops.explain`.

    Returns:
        ``(N, Ev, H, W)`` in the dtype and the layout of ``query``.

    Raises:
        TypeError: A map is not a tensor, dtypes are not floating or differ, or ``partition`` is none.
        ValueError: Shapes do not fit, or a map is empty.
        NotImplementedError: The back end asked for cannot take this call.
        RuntimeError: The back end asked for is not built.

    Note:
        Numbers, saved tensors, autocast and repeatability are those of :func:`ocnet.ops.oc_attention`.

    Source:
        Cells: OCNet (arXiv 1809.00916), pyramid object context. Blocks and strides: interlaced sparse
        self-attention (arXiv 1907.12273), section 3.2, short and long range; the published code pads
        the map to whole blocks first and the padding takes part as keys, here edges are smaller groups
        (``ocnet.modules.ISA`` pads, as published).
    """
    _check_one(_PARTITIONED, query, key, value, partition, scale)
    BACKENDS.check_name(backend)
    (out,) = _run([(query, key, value)], [partition], scale, backend)
    return out


def pyramid_attention(
    stages: Sequence[Stage],
    scales: Sequence[int | Partition],
    *,
    scale: float | None = None,
    backend: str = AUTO,
) -> list[Tensor]:
    """Compute the attention of all scales of a pyramid in one launch.

    ``out[i] = partitioned_attention(*stages[i], Grid(scales[i]))``, with the longest work of all scales
    first, so that the short ends of one fill the gaps of another.

    Args:
        stages: For each scale its ``(query, key, value)``, as for :func:`partitioned_attention`. Maps
            of different stages may differ in everything; those that agree in dtype, device, channels
            and in whether keys are shared go together, four at a time.
        scales: For each stage its partition; a number ``s`` stands for ``Grid(s)``.
        scale: Factor of the scores of every stage; ``E ** -0.5`` by default.
        backend: As for :func:`partitioned_attention`.

    Returns:
        For each stage ``(N, Ev, H, W)`` in the dtype and the layout of its query.

    Raises:
        TypeError: As :func:`partitioned_attention`, or a stage that is not three maps.
        ValueError: As :func:`partitioned_attention`, no stages, or another number of scales.
        NotImplementedError: The back end asked for cannot take this call.
        RuntimeError: The back end asked for is not built.

    Source:
        OCNet (arXiv 1809.00916), pyramid object context with cells of 1, 2, 3 and 6 to a side.
    """
    partitions = _check_pyramid(stages, scales, scale)
    BACKENDS.check_name(backend)
    return _run(stages, partitions, scale, backend)


def _run(
    stages: Sequence[Stage], partitions: Sequence[Partition], scale: float | None, backend: str
) -> list[Tensor]:
    """Run the stages, as many in one call of the op as may be."""
    results: list[Any] = [None] * len(stages)
    for together in _alike(stages):
        query, key, value = ([stages[i][part] for i in together] for part in range(3))
        shared = _shared(stages[together[0]])
        wants_grad = any(pixels.requires_grad for pixels in (*query, *key, *value))
        found = torch.ops.ocnet.partitioned_attention_fwd(
            query,
            [] if shared else key,
            value,
            [number for i in together for number in encode(partitions[i])],
            scale,
            backend,
            torch.is_grad_enabled() and wants_grad,
        )
        for place, i in enumerate(together):
            results[i] = found[place]
    return results


def _shared(stage: Stage) -> bool:
    return stage[1] is stage[0]


def _alike(stages: Sequence[Stage]) -> list[list[int]]:
    """Return which stages one call of the op can take together, in the order of their first ones."""
    kinds: dict[Any, list[list[int]]] = {}
    for i, stage in enumerate(stages):
        query, _, value = stage
        kind = (query.device, query.dtype, query.shape[1], value.shape[1], _shared(stage))
        calls = kinds.setdefault(kind, [[]])
        if len(calls[-1]) == MAX_STAGES:
            calls.append([])
        calls[-1].append(i)
    return [call for calls in kinds.values() for call in calls]


def _check_one(
    function: str, query: Any, key: Any, value: Any, partition: Any, scale: Any, prefix: str = ""
) -> None:
    check_attention(function, query, key, value, scale, DTYPES, prefix)
    if key.shape[2] != query.shape[2] or key.shape[3] != query.shape[3]:
        raise ValueError(
            f"{function}: {prefix}key must have the rows and columns of {prefix}query, "
            f"{query.shape[2]} x {query.shape[3]}, got {shape_of(key)}"
        )
    if not isinstance(partition, KINDS):
        name = "scales" if prefix else "partition"
        kinds = ", ".join(kind.__name__ for kind in KINDS)
        also = "an integer or " if prefix else ""
        raise TypeError(
            f"{function}: {name} must be {also}one of {kinds}, got {type(partition).__name__}"
        )


def _check_pyramid(stages: Any, scales: Any, scale: Any) -> list[Partition]:
    """Check a pyramid, and return the partitions of its stages."""
    if len(stages) == 0:
        raise ValueError(f"{_PYRAMID}: stages must have at least one stage, got none")
    if len(scales) != len(stages):
        raise ValueError(
            f"{_PYRAMID}: scales must have one for each of the {len(stages)} stages, "
            f"got {len(scales)}"
        )
    partitions = []
    for i, (stage, each) in enumerate(zip(stages, scales, strict=True)):
        if not isinstance(stage, (tuple, list)) or len(stage) != 3:
            raise TypeError(
                f"{_PYRAMID}: stages[{i}] must be a query, a key and a value, "
                f"got {type(stage).__name__}"
                + (f" of {len(stage)}" if isinstance(stage, (tuple, list)) else "")
            )
        partition = Grid(each) if isinstance(each, int) else each
        query, key, value = stage
        _check_one(_PYRAMID, query, key, value, partition, scale, f"stages[{i}].")
        partitions.append(partition)
    return partitions


def _problem(stages: Sequence[Stage], partitions: Sequence[Partition]) -> Problem:
    query, key, value = (list(maps) for maps in zip(*stages, strict=True))
    return Problem.of(query, [] if _shared(stages[0]) else key, value, partitions)


def _describe_partitioned(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    partition: Partition,
    *,
    scale: float | None = None,
    backend: str = AUTO,
) -> tuple[Backends[Any], Problem, str]:
    _check_one(_PARTITIONED, query, key, value, partition, scale)
    return BACKENDS, _problem([(query, key, value)], [partition]), backend


def _describe_pyramid(
    stages: Sequence[Stage],
    scales: Sequence[int | Partition],
    *,
    scale: float | None = None,
    backend: str = AUTO,
) -> tuple[Backends[Any], Problem, str]:
    """Describe the first of the calls that the pyramid takes."""
    partitions = _check_pyramid(stages, scales, scale)
    first = _alike(stages)[0]
    return BACKENDS, _problem([stages[i] for i in first], [partitions[i] for i in first]), backend


register_describer(_PARTITIONED, _describe_partitioned)
register_describer(_PYRAMID, _describe_pyramid)
