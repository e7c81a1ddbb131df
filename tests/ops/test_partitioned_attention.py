# SPDX-License-Identifier: MIT
"""Attention within groups, every back end, against each group sliced out in float64."""

import dataclasses
import functools

import pytest
import torch

from ocnet.ops import Blocks, Grid, Strided, _hopper, partitioned_attention, pyramid_attention
from ocnet.testing import (
    AttentionCase,
    AttentionInputs,
    assert_as_accurate,
    assert_same_nonfinite,
    by_groups,
    eager_results,
    make_inputs,
    oracle_results,
    random_partitions,
    run_partitioned,
    summed_magnitudes,
)
from tests.ops.conftest import HOPPER_SUBJECTS

INF, NAN = float("inf"), float("nan")
KINDS = [Grid(2), Blocks(3, 4), Strided(3, 2)]
each_kind = pytest.mark.parametrize("partition", KINDS, ids=lambda p: type(p).__name__)
each_sharing = pytest.mark.parametrize("shared", [True, False], ids=["shared", "separate"])


@pytest.fixture(params=HOPPER_SUBJECTS)
def subject(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def dtypes(subject: str, dtypes) -> tuple[torch.dtype, ...]:
    return _hopper.NARROW if "hopper" in subject else dtypes


def assert_accurate(label: str, actual, inputs: AttentionInputs, partition) -> None:
    oracle = by_groups(oracle_results, inputs, partition).named()
    eager = [
        by_groups(lambda cell, i=i: eager_results(cell)[i], inputs, partition).named()
        for i in range(2)
    ]
    sizes = by_groups(summed_magnitudes, inputs, partition).named()
    axes = partition.axes(*inputs.query.shape[2:])
    largest = max(shape.height * shape.width for shape in axes.shapes())
    terms = inputs.query.shape[1] + inputs.value.shape[1] + 2 * largest
    found = actual.named()
    assert found.keys() == oracle.keys()
    for name, result in found.items():
        assert result.dtype == inputs.query.dtype
        runs = [run[name] for run in eager]
        assert_as_accurate(f"{label}: {name}", result, oracle[name], runs, sizes[name], terms)


def check(case: AttentionCase, partition, backend: str, device: str, seed: int = 0) -> None:
    inputs = make_inputs(case, seed, device)
    actual = run_partitioned(inputs, partition, backend)
    assert_accurate(f"{case} {partition}", actual, inputs, partition)


@pytest.mark.parametrize("seed", range(10))
def test_random_legal_calls(backend: str, device: str, dtypes, seed: int, small: bool) -> None:
    count, side = (3, 9) if small else (8, 17)
    for number, (case, partition) in enumerate(random_partitions(count, seed, dtypes, side)):
        check(case, partition, backend, device, seed=100 * seed + number)


@pytest.mark.parametrize("seed", range(8))
def test_large_maps(backend: str, device: str, dtypes, seed: int, small: bool) -> None:
    """Sides up to 70 and up to 8 x 8 groups, in whole blocks and panels of the kernels and not."""
    if small:
        pytest.skip("the emulator takes minutes for these")
    for case, partition in random_partitions(2, 1000 + seed, dtypes, 70):
        check(dataclasses.replace(case, batch=1), partition, backend, device, seed)


@each_sharing
@pytest.mark.parametrize("partition", [Grid(6), Strided(2, 3), Blocks(8, 8)], ids=str)
def test_published_channels(backend: str, device: str, dtypes, partition, shared, small) -> None:
    size = (5, 7) if small else (20, 23)
    for dtype in dtypes:
        case = AttentionCase(1, 256, 512, size, dtype=dtype, shared=shared, layout="channels_last")
        check(case, partition, backend, device)


@pytest.mark.parametrize("layout", ["nchw", "channels_last", "cropped", "expanded"])
@each_sharing
@each_kind
def test_layouts(backend: str, device: str, partition, shared: bool, layout: str) -> None:
    case = AttentionCase(2, 9, 12, (7, 10), shared=shared, layout=layout)
    check(case, partition, backend, device)
    if layout in ("nchw", "channels_last"):
        wanted = torch.channels_last if layout == "channels_last" else torch.contiguous_format
        results = run_partitioned(make_inputs(case, device=device), partition, backend)
        for name, tensor in results.named().items():
            assert tensor.is_contiguous(memory_format=wanted), name


@pytest.mark.parametrize("partition", [Grid(1), Strided(1, 1), Blocks(9, 9)], ids=str)
@each_sharing
def test_one_group_is_plain_attention(backend: str, device: str, partition, shared: bool) -> None:
    inputs = make_inputs(AttentionCase(2, 12, 10, (7, 9), shared=shared), device=device)
    assert_accurate("one group", run_partitioned(inputs, partition, backend), inputs, Grid(1))


@pytest.mark.parametrize("partition", [Blocks(1, 1), Strided(50, 50), Grid(5, 4)], ids=str)
def test_groups_of_one_pixel_are_the_values(backend: str, device: str, partition) -> None:
    inputs = make_inputs(AttentionCase(2, 6, 8, (5, 4)), device=device)
    results = run_partitioned(inputs, partition, backend)
    torch.testing.assert_close(results.out, inputs.value.detach())
    torch.testing.assert_close(results.grad_value, inputs.grad_out)
    size = float(inputs.query.detach().abs().max() * inputs.grad_out.abs().max())
    assert float(results.grad_query.abs().max()) <= 1e-5 * size


def test_empty_batch(backend: str, device: str) -> None:
    inputs = make_inputs(AttentionCase(batch=0), device=device)
    results = run_partitioned(inputs, Grid(2), backend)
    assert results.out.shape == (0, 16, 5, 7)
    assert results.grad_value.shape == inputs.value.shape


@each_sharing
@each_kind
def test_runs_repeat_bit_for_bit(backend: str, device: str, dtypes, partition, shared, small):
    batch, size, repeats = (1, (5, 7), 1) if small else (2, (17, 19), 5)
    for dtype in dtypes:
        case = AttentionCase(batch, 33, 20, size, dtype=dtype, shared=shared)
        inputs = make_inputs(case, 3, device)
        first = run_partitioned(inputs, partition, backend).named()
        for _ in range(repeats):
            again = run_partitioned(inputs, partition, backend).named()
            for name, tensor in first.items():
                assert torch.equal(tensor, again[name]), f"{name} differs between runs"


@each_sharing
@pytest.mark.parametrize("number", [NAN, INF, -INF], ids=str)
@pytest.mark.parametrize("where", ["query", "key", "value", "grad_out"])
@each_kind
def test_nonfinite_numbers_stay_in_their_group(
    backend: str, device: str, partition, where: str, number: float, shared: bool, small: bool
) -> None:
    """Neighbouring pixels are other groups' data, beside which nothing is padded."""
    if small and (shared or not isinstance(partition, Strided)):
        pytest.skip(
            "the emulated kernels meet one kind of groups here, and more in their own tests"
        )
    inputs = make_inputs(AttentionCase(2, 8, 6, (7, 10), shared=shared), 5, device)
    with torch.no_grad():
        getattr(inputs, where)[0, 2, 3, 4] = number
    actual = run_partitioned(inputs, partition, backend).named()
    oracle = by_groups(oracle_results, inputs, partition).named()
    # An infinite incoming gradient makes inf - inf, whose kind depends on how the row's mean is taken.
    tell_apart = where != "grad_out"
    for name, tensor in actual.items():
        label = f"{name} with {number} in {where}"
        assert_same_nonfinite(label, tensor, oracle[name], tell_apart=tell_apart)


@pytest.mark.parametrize("wanted", ["query", "key", "value", "query+value", "key+value"])
@each_sharing
def test_only_wanted_gradients(backend: str, device: str, wanted: str, shared: bool) -> None:
    if shared and "key" in wanted:
        pytest.skip("shared keys are the query")
    inputs = make_inputs(AttentionCase(1, 12, 9, (6, 8), shared=shared), device=device)
    full = run_partitioned(inputs, Grid(2), backend)
    names = wanted.split("+")
    for name in ("query", "key", "value"):
        if not (shared and name == "key"):
            getattr(inputs, name).requires_grad_(name in names)
    maps = (inputs.query, inputs.key, inputs.value)
    out = partitioned_attention(*maps, Grid(2), backend=backend)
    grads = torch.autograd.grad(out, [getattr(inputs, name) for name in names], inputs.grad_out)
    for name, grad in zip(names, grads, strict=True):
        assert torch.equal(grad, getattr(full, f"grad_{name}")), name


@each_sharing
@each_kind
def test_gradcheck(backend: str, device: str, dtypes, partition, shared: bool, small: bool) -> None:
    if torch.float64 not in dtypes:
        pytest.skip(f"{backend} has no float64")
    gradcheck = functools.partial(torch.autograd.gradcheck, fast_mode=small)
    case = AttentionCase(1, 3, 4, (4, 5), None, torch.float64, shared=shared)
    inputs = make_inputs(case, device=device)
    attend = functools.partial(
        partitioned_attention, partition=partition, scale=0.7, backend=backend
    )
    if shared:
        assert gradcheck(lambda q, v: attend(q, q, v), (inputs.query, inputs.value))
    else:
        assert gradcheck(attend, (inputs.query, inputs.key, inputs.value))


def make_pyramid(
    device: str, shared: bool, size=(11, 13), dtype=torch.float32, stages: int = 4
) -> list[AttentionInputs]:
    case = AttentionCase(2, 12, 20, size, dtype=dtype, shared=shared)
    return [make_inputs(case, seed, device) for seed in range(stages)]


def run_pyramid(pyramid: list[AttentionInputs], scales, backend: str):
    """Return the outputs of all stages, and the gradients of all their leaves."""
    stages = [(x.query, x.key, x.value) for x in pyramid]
    outs = pyramid_attention(stages, scales, backend=backend)
    leaves = [
        leaf
        for x in pyramid
        for leaf in dict.fromkeys((x.query, x.key, x.value))
        if leaf.requires_grad
    ]
    grads = torch.autograd.grad(outs, leaves, [x.grad_out for x in pyramid])
    return outs, grads


@each_sharing
def test_a_pyramid_is_one_call_for_each_scale(backend, device, dtypes, shared, small) -> None:
    size = (5, 7) if small else (19, 23)
    scales = [1, 2, 3, 6]
    for dtype in dtypes[:2] if small else dtypes:
        pyramid = make_pyramid(device, shared, size, dtype)
        outs, grads = run_pyramid(pyramid, scales, backend)
        left = iter(grads)
        for scale, inputs, out in zip(scales, pyramid, outs, strict=True):
            alone = run_partitioned(inputs, Grid(scale), backend).named()
            mine = {name: out if name == "out" else next(left) for name in alone}
            for name, tensor in alone.items():
                assert torch.equal(mine[name], tensor), f"scale {scale}: {name}"


def test_stages_that_differ(backend: str, device: str) -> None:
    """Two dtypes, channels, sizes, shared and separate keys, and more stages than one call takes."""
    cases = [
        AttentionCase(1, 8, 12, (5, 6), shared=True),
        AttentionCase(2, 8, 12, (9, 4), shared=True, layout="channels_last"),
        AttentionCase(1, 8, 12, (5, 6)),
        AttentionCase(1, 8, 12, (5, 6), dtype=torch.float16),
        *[AttentionCase(1, 8, 12, (3 + i, 7), shared=True) for i in range(4)],
        AttentionCase(0, 8, 12, (5, 6), shared=True),
    ]
    pyramid = [make_inputs(case, i, device) for i, case in enumerate(cases)]
    partitions = [Grid(2, 3), Strided(2, 2), Blocks(4, 4), Grid(1), 2, 3, 1, 2, 2]
    outs, grads = run_pyramid(pyramid, partitions, backend)
    left = iter(grads)
    for inputs, partition, out in zip(pyramid, partitions, outs, strict=True):
        kind = Grid(partition) if isinstance(partition, int) else partition
        alone = run_partitioned(inputs, kind, backend).named()
        for name, tensor in alone.items():
            assert torch.equal(out if name == "out" else next(left), tensor), (partition, name)


def test_gradients_of_some_stages(backend: str, device: str, small: bool) -> None:
    pyramid = make_pyramid(device, True, (5, 7) if small else (11, 13))
    outs = pyramid_attention(
        [(x.query, x.key, x.value) for x in pyramid], [1, 2, 3, 6], backend=backend
    )
    wanted = (pyramid[1].query, pyramid[1].value)
    got = torch.autograd.grad(outs[1], wanted, pyramid[1].grad_out)
    alone = run_partitioned(pyramid[1], Grid(2), backend)
    assert torch.equal(got[0], alone.grad_query)
    assert torch.equal(got[1], alone.grad_value)


def test_a_map_used_by_several_stages(backend: str, device: str) -> None:
    x = make_inputs(AttentionCase(1, 8, 12, (9, 10), shared=True), device=device)
    outs = pyramid_attention([(x.query, x.query, x.value)] * 2, [2, 3], backend=backend)
    got = torch.autograd.grad(outs, (x.query, x.value), [x.grad_out] * 2)
    each = [run_partitioned(x, Grid(s), backend) for s in (2, 3)]
    torch.testing.assert_close(got[0], each[0].grad_query + each[1].grad_query)
    torch.testing.assert_close(got[1], each[0].grad_value + each[1].grad_value)
