# SPDX-License-Identifier: MIT
"""Attention within groups by the CUDA kernels, at the level of the native ops.

What every back end must do is in test_partitioned_attention.py, which these go through as well.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from ocnet.ops import Blocks, Grid, Partition, Strided
from ocnet.ops._layout import aligned_rows
from tests.ops.test_cuda_kernels import INF, NAN, assert_same_bits, place, sums_of

pytestmark = pytest.mark.native

KB = 1024
TF32 = "tf32"
# Relative Frobenius errors of the output and grad_value, and of the other gradients; those of
# test_cuda_forward.py and test_cuda_backward.py.
GATES = {
    torch.bfloat16: (3e-3, 5e-3),
    torch.float16: (4e-4, 6e-4),
    TF32: (6e-4, 1e-3),
    torch.float32: (2e-6, 5e-6),
}
PRECISIONS = [*GATES, torch.float64]
each_precision = pytest.mark.parametrize("precision", PRECISIONS, ids=str)
each_sharing = pytest.mark.parametrize("shared", [True, False], ids=["shared", "separate"])
only_emulated = pytest.mark.parametrize("subject", ["emulated"], indirect=True)
Results = dict[str, Tensor]


class Stage(NamedTuple):
    """Token matrices of whole maps, (N, H * W, channels)."""

    query: Tensor
    key: Tensor | None
    value: Tensor
    grad_out: Tensor
    partition: Partition
    size: tuple[int, int]

    def groups(self) -> list[Tensor]:
        """Return the tokens of each group."""
        tokens = torch.arange(self.size[0] * self.size[1]).view(self.size)
        return [tokens[tuple(group)].flatten() for group in self.partition.axes(*self.size).each()]


def make_stage(
    partition: Partition,
    size: tuple[int, int],
    precision=torch.float32,
    shared: bool = True,
    channels: tuple[int, int] = (20, 12),
    images: int = 1,
) -> Stage:
    def draw(columns: int) -> Tensor:
        numbers = torch.randn(images, size[0] * size[1], columns, dtype=torch.float64)
        return numbers.to(torch.float32 if precision == TF32 else precision)

    e, ev = channels
    return Stage(draw(e), None if shared else draw(e), draw(ev), draw(ev), partition, size)


@pytest.fixture(params=["emulated", pytest.param("cuda", marks=pytest.mark.gpu)])
def subject(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def run(subject: str, backend: str, device: str) -> Callable[..., list[Results]]:
    """Run all stages in one call, forward and backward; returns the results of each, by name."""
    ops = getattr(torch.ops, f"ocnet_{subject}")

    def run(
        stages: Sequence[Stage],
        tf32: bool = False,
        wanted: str = "qkv",
        layout: str = "channels_last",
    ) -> list[Results]:
        first = stages[0]
        dtype, sums = first.query.dtype, sums_of(first.query.dtype)
        scale = first.query.shape[-1] ** -0.5

        def rows(name: str) -> list[Tensor]:
            given = [getattr(stage, name) for stage in stages]
            return [aligned_rows(place(t, layout, device)) for t in given if t is not None]

        def empty(like: list[Tensor], needed: bool = True) -> list[Tensor]:
            given = like if needed else []
            return [place(torch.full(t.shape, NAN, dtype=dtype), layout, device) for t in given]

        query, key, value, grad_out = (rows(name) for name in ("query", "key", "value", "grad_out"))
        partition = [n for s in stages for n in s.partition.axes(*s.size).flat()]
        out, residual = empty(grad_out), empty(grad_out, dtype in (torch.bfloat16, torch.float16))
        lse = [torch.full(t.shape[:2], NAN, dtype=sums, device=device) for t in query]
        inputs = (query, key, value)
        ops.partitioned_attention_fwd(*inputs, partition, scale, tf32, out, lse, residual)
        grads = [empty(t, n in wanted) for t, n in zip(inputs, "qkv", strict=True)]
        if wanted:
            saved = (out, lse, residual)
            ops.partitioned_attention_bwd(grad_out, *inputs, *saved, partition, scale, tf32, *grads)
        names = ("out", "lse", "residual", "grad_query", "grad_key", "grad_value")
        lists = dict(zip(names, (out, lse, residual, *grads), strict=True))
        return [
            {name: tensors[i].cpu() for name, tensors in lists.items() if tensors}
            for i in range(len(stages))
        ]

    return run


def formula(stage: Stage) -> Results:
    """Return results and ``summed``, the sizes of what they sum, from each group in float64."""
    results: Results = {}
    for tokens in stage.groups():
        query, value, grad_out = (
            t[:, tokens].double() for t in (stage.query, stage.value, stage.grad_out)
        )
        query.requires_grad_()
        value.requires_grad_()
        key = query
        if stage.key is not None:
            key = stage.key[:, tokens].double().requires_grad_()
        scale = query.shape[-1] ** -0.5
        scores = scale * (query @ key.mT)
        weights = scores.softmax(-1)
        out = weights @ value
        out.backward(grad_out)
        with torch.no_grad():
            slopes = scale * weights * (grad_out.abs() @ value.abs().mT)
            found = {"out": out, "lse": scores.logsumexp(-1)[..., None]}
            found |= {"grad_query": query.grad, "grad_value": value.grad}
            found |= {"sum_out": weights @ value.abs(), "sum_lse": scores.abs().amax(-1)[..., None]}
            found |= {"sum_grad_query": slopes @ key.abs()}
            found |= {"sum_grad_value": weights.mT @ grad_out.abs()}
            if stage.key is None:
                found["sum_grad_query"] += slopes.mT @ query.abs()
            else:
                found |= {"grad_key": key.grad, "sum_grad_key": slopes.mT @ query.abs()}
        for name, tensor in found.items():
            whole = (*stage.query.shape[:2], tensor.shape[-1])
            results.setdefault(name, torch.full(whole, NAN, dtype=torch.float64))
            results[name][:, tokens] = tensor.detach()
    return {name: t[..., 0] if "lse" in name else t for name, t in results.items()}


def assert_accurate(stage: Stage, found: Results, precision, passes=("fwd", "bwd")) -> None:
    expected = formula(stage)
    if "bwd" not in passes:
        expected = {name: exact for name, exact in expected.items() if "grad" not in name}
    assert {n for n in expected if "sum" not in n} == found.keys() - {"residual"}
    # Roundings of a number that is a sum of sums, each of at most as many terms.
    terms = stage.query.shape[-1] + stage.value.shape[-1] + 2 * max(map(len, stage.groups()))
    for name, exact in expected.items():
        if "sum" in name:
            continue
        error = found[name].double() - exact
        if name == "lse":
            step = torch.finfo(found[name].dtype).eps
            rounding = 2.0**-11 if precision == TF32 else step
            sizes = 1 + expected["sum_lse"].abs()
            assert bool((error.abs() <= (2 * rounding + terms * step) * sizes).all())
            continue
        if precision == torch.float64:
            gate = terms * torch.finfo(torch.float64).eps
        else:
            gate = GATES[precision][name not in ("out", "grad_value")]
        relative = float(error.norm() / expected[f"sum_{name}"].norm())
        assert relative <= gate, f"{precision} {name}: {relative:.2e}, allowed {gate:.2e}"


KINDS = [
    (Grid(2), (7, 9)),
    (Grid(3, 1), (7, 5)),  # cells of whole rows: runs
    (Blocks(3, 4), (7, 9)),
    (Strided(3, 2), (8, 9)),
    (Strided(1, 3), (2, 9)),  # runs of every third pixel
    (Grid(9), (4, 30)),  # more cells than rows
]


@each_sharing
@each_precision
def test_values_and_gradients_of_every_kind(run, precision, shared: bool) -> None:
    for number, (partition, size) in enumerate(KINDS):
        stage = make_stage(partition, size, precision, shared, images=1 + number % 2)
        (found,) = run([stage], precision == TF32)
        assert_accurate(stage, found, precision)


@pytest.mark.parametrize("channels", [(130, 261), (40, 140)], ids=str)
@pytest.mark.parametrize("precision", [torch.bfloat16, TF32, torch.float32], ids=str)
def test_wide_channels(run, precision, channels: tuple[int, int]) -> None:
    """Tiles of 256 channels, and slices of more."""
    stage = make_stage(Grid(1, 2), (5, 9), precision, channels=channels)
    (found,) = run([stage], precision == TF32)
    assert_accurate(stage, found, precision)


def make_pyramid(precision, shared: bool) -> list[Stage]:
    """Draw four stages of other sizes, batches and kinds of groups, large and tiny."""
    return [
        make_stage(Strided(2, 2), (5, 6), precision, shared),
        make_stage(Grid(1), (3, 27), precision, shared),
        make_stage(Blocks(2, 3), (3, 4), precision, shared, images=2),
        make_stage(Grid(1, 2), (7, 11), precision, shared),
    ]


@only_emulated
@each_sharing
@each_precision
def test_stages_are_one_launch_of_what_each_would_give(run, emulator, precision, shared) -> None:
    stages = make_pyramid(precision, shared)
    together = run(stages, precision == TF32)
    kernels = [launch.kernel for launch in emulator.launches()]
    assert sum("delta" in kernel for kernel in kernels) == 1
    assert sum("fwd" in kernel for kernel in kernels) == 1
    # One pass for shared keys; else one that owns keys and one that owns queries.
    assert len(kernels) == (3 if shared else 4)
    threads = {tuple(launch.threads for launch in emulator.launches())}
    for stage, found in zip(stages, together, strict=True):
        emulator.configure()
        (alone,) = run([stage], precision == TF32)
        assert_same_bits(alone, found)
        threads.add(tuple(launch.threads for launch in emulator.launches()))
    # Tiny groups by themselves have smaller blocks.
    assert len(threads) > 1 or precision == torch.float64
    for stage, found in zip(stages, together, strict=True):
        assert_accurate(stage, found, precision)


@only_emulated
@each_sharing
@each_precision
def test_the_schedule_changes_no_bit(run, emulator, precision, shared: bool) -> None:
    stages = [
        make_stage(Strided(2, 3), (9, 8), precision, shared),
        make_stage(Grid(1, 2), (3, 9), precision, shared),
    ]
    expected = run(stages, precision == TF32)
    emulator.configure(seed=5)
    for found, same in zip(run(stages, precision == TF32), expected, strict=True):
        assert_same_bits(found, same)


@only_emulated
@each_sharing
@pytest.mark.parametrize("tokens", [(11, 14), (5, 27)], ids=str)
@pytest.mark.parametrize("precision", [torch.bfloat16, TF32, torch.float32], ids=str)
def test_groups_that_stay_in_shared_memory(run, emulator, precision, shared, tokens) -> None:
    """Several tiles of keys and of queries, of which the last warps have none; as streamed."""
    stage = make_stage(Blocks(*tokens), (tokens[0], 2 * tokens[1]), precision, shared, (32, 48))
    kind = {TF32: "tf32", torch.float32: "split"}.get(precision, "narrow")

    def planned(limit: int):
        axes = stage.partition.axes(*stage.size).flat()
        kinds = getattr(emulator.Arithmetic, kind)
        room = limit * KB - emulator.group_bytes
        return emulator.plan_groups([(1, axes)], 32, 48, kinds, shared, room, 2)[0]

    results, plans = [], []
    for limit in (163, 45):
        emulator.configure(shared_limit=limit * KB, multiprocessors=2)
        plans.append(planned(limit))
        results += run([stage], precision == TF32, wanted="")
        (launch,) = emulator.launches()
        assert launch.threads == 32 * plans[-1].warps
        assert launch.shared_bytes == plans[-1].shared_bytes + emulator.group_bytes
    assert [plan.resident for plan in plans] == [True, False]
    assert plans[0].queries_are_keys == shared
    assert_same_bits(*results)


@only_emulated
def test_blocks_are_as_small_as_the_groups(run, emulator) -> None:
    stage = make_stage(Strided(8, 8), (24, 32), torch.bfloat16)  # 64 groups of 12 tokens
    run([stage])
    forward, _, backward = emulator.launches()
    assert (forward.blocks, forward.threads) == (64, 32)
    assert (backward.blocks, backward.threads) == (64, 64)


@pytest.mark.parametrize("number", [NAN, INF], ids=str)
@pytest.mark.parametrize("where", ["query", "key", "value", "grad_out"])
@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_what_is_not_finite_stays_in_its_group(run, precision, where: str, number: float) -> None:
    for partition in (Blocks(3, 4), Strided(2, 2)):
        stage = make_stage(partition, (4, 7), precision, shared=False)
        (clean,) = run([stage])
        getattr(stage, where)[0, 17, 1] = number
        (found,) = run([stage])
        (own,) = (group for group in stage.groups() if 17 in group)
        others = torch.ones(28, dtype=torch.bool)
        others[own] = False
        for name, tensor in found.items():
            assert torch.equal(tensor[:, others], clean[name][:, others]), name
        touched = "grad_query" if where == "grad_out" else "out"
        assert not bool(found[touched][:, own].isfinite().all())


@pytest.mark.parametrize("precision", [torch.float64, torch.bfloat16, torch.float32], ids=str)
def test_strides_change_no_bit(run, precision) -> None:
    for partition in (Blocks(3, 4), Strided(3, 2), Grid(2, 1)):
        stage = make_stage(partition, (5, 8), precision, shared=False, images=2)
        (dense,) = run([stage])
        for layout in ("nchw", "gaps"):
            (found,) = run([stage], layout=layout)
            assert_same_bits(found, dense)


@pytest.mark.parametrize("wanted", ["q", "k", "v", "qv", "kv"])
@each_sharing
def test_absent_gradients_change_no_bit(run, wanted: str, shared: bool) -> None:
    stages = [make_stage(p, s, torch.bfloat16, shared) for p, s in KINDS[:2]]
    for every, some in zip(run(stages), run(stages, wanted=wanted), strict=True):
        letters = wanted.replace("k", "") if shared else wanted
        assert {n[5] for n in some if n.startswith("grad_")} == set(letters)
        assert_same_bits(some, {name: every[name] for name in some})


@only_emulated
def test_less_shared_memory_changes_no_bit(run, emulator) -> None:
    """float64 in slices of channels."""
    stage = make_stage(Strided(2, 1), (5, 2), torch.float64, channels=(40, 512))
    results, blocks = [], []
    for limit in (163 * KB, 99 * KB):
        emulator.configure(shared_limit=limit)
        results += run([stage])
        assert all(launch.shared_bytes <= limit for launch in emulator.launches())
        blocks.append(sum(launch.blocks for launch in emulator.launches()))
    assert blocks[0] < blocks[1]
    assert_same_bits(*results)


# --- refusals ---


def arguments(direction: str, device: str, stages: int = 2, dtype=torch.float32) -> dict:
    """Return the arguments of a legal call on 6 x 4 maps, by name; outputs hold 7."""

    def each(*shape: int, number: float) -> list[Tensor]:
        return [torch.full(shape, number, dtype=dtype, device=device) for _ in range(stages)]

    inputs = {"query": each(1, 24, 8, number=0.5), "key": each(1, 24, 8, number=0.25)}
    inputs["value"] = each(1, 24, 16, number=1.0)
    results = {"out": each(1, 24, 16, number=7.0), "lse": each(1, 24, number=7.0), "residual": []}
    numbers = {"partition": Grid(2).axes(6, 4).flat() * stages, "scale": 1.0, "tf32": False}
    if direction == "fwd":
        return inputs | numbers | results
    grads = {f"grad_{n}": [torch.full_like(t, 7.0) for t in inputs[n]] for n in inputs}
    return {"grad_out": each(1, 24, 16, number=1.0)} | inputs | results | numbers | grads


def outputs_of(given: dict, direction: str) -> list[Tensor]:
    names = ("out", "lse") if direction == "fwd" else ("grad_query", "grad_key", "grad_value")
    return [tensor for name in names for tensor in given[name]]


@pytest.fixture(params=["fwd", "bwd"])
def refuse(subject: str, backend: str, device: str, request) -> Callable[..., None]:
    """Change one argument of a legal call: it must be refused, with nothing written."""
    op = getattr(getattr(torch.ops, f"ocnet_{subject}"), f"partitioned_attention_{request.param}")

    def refuse(match: str, **changed) -> None:
        given = arguments(request.param, device)
        given |= {name: made(given[name]) for name, made in changed.items() if name in given}
        if changed.keys().isdisjoint(given):
            pytest.skip("an argument of the other pass")
        with pytest.raises(RuntimeError, match=f"^partitioned_attention_{request.param}: {match}"):
            op(*given.values())
        assert all(bool((t == 7).all()) for t in outputs_of(given, request.param))

    return refuse


def test_the_arguments_of_the_refusals_are_legal(subject: str, backend: str, device: str) -> None:
    for direction in ("fwd", "bwd"):
        given = arguments(direction, device)
        op = getattr(getattr(torch.ops, f"ocnet_{subject}"), f"partitioned_attention_{direction}")
        op(*given.values())
        assert not any(bool((t == 7).any()) for t in outputs_of(given, direction))


LISTS = ["key", "value", "out", "lse", "grad_out", "grad_query", "grad_key", "grad_value"]


@pytest.mark.parametrize("name", LISTS)
def test_lists_of_other_lengths_are_refused(refuse, name: str) -> None:
    refuse(f"{name} must have a tensor for each of the 2 stages, got 1", **{name: lambda l: l[:1]})


def test_too_many_stages_are_refused(refuse) -> None:
    refuse("query must have 1 to 4 stages, got 6", query=lambda l: 3 * l)
    refuse("query must have 1 to 4 stages, got 0", query=lambda l: [])


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        ([6, 2, 4, 3], "deal every position"),  # strided, with steps
        ([6, 4, 2, 1], "deal every position"),  # a last group of no rows
        ([6, 7, 1, 7], "deal every position"),
        ([6, 0, 3, 1], "deal every position"),
        ([6, 2, 0, 1], "deal every position"),
        ([6, 3, 1, 2], "deal every position"),
        ([-6, 2, 3, 1], "deal every position"),
        ([2**40, 2, 3, 1], "deal every position"),
        ([5, 2, 3, 1], "be of a map of as many pixels as query has tokens, 24, got 5 x 4"),
    ],
    ids=str,
)
def test_partitions_that_do_not_cover_the_map_are_refused(refuse, rows, match: str) -> None:
    refuse(f"partition must {match}", partition=lambda flat: [*flat[:8], *rows, *flat[12:]])


def test_partitions_of_other_lengths_are_refused(refuse) -> None:
    refuse("partition must have 8 numbers for each stage, got 8", partition=lambda flat: flat[:8])


@pytest.mark.parametrize("name", ["query", "key", "value", "out", "grad_out", "grad_value"])
def test_a_stage_of_another_shape_is_refused(refuse, name: str) -> None:
    for change in (lambda t: t[:, :20], lambda t: t[..., :4], lambda t: t[0]):
        refuse("", **{name: lambda l, change=change: [l[0], change(l[1])]})


@pytest.mark.parametrize("name", LISTS)
def test_a_stage_of_another_dtype_is_refused(refuse, name: str) -> None:
    refuse(
        f"{'' if name == 'query' else name} must have dtype",
        **{name: lambda l: [l[0], l[1].double()]},
    )


@pytest.mark.parametrize("name", ["query", "key", "value", "grad_out"])
def test_rows_that_are_not_aligned_are_refused(refuse, name: str) -> None:
    def apart(tensors: list[Tensor]) -> list[Tensor]:
        return [tensors[0], tensors[1].mT.contiguous().mT]

    refuse(f"{name} must have channel stride 1 and rows aligned to 16", **{name: apart})


def test_channels_of_stages_must_agree(subject: str, backend: str, device: str) -> None:
    op = getattr(torch.ops, f"ocnet_{subject}").partitioned_attention_fwd
    given = arguments("fwd", device)
    for name in ("query", "key"):
        given[name] = [given[name][0], given[name][1].repeat(1, 1, 2)]
    with pytest.raises(
        RuntimeError, match=r"query must have shape \(1, 24, 8\), got \(1, 24, 16\)"
    ):
        op(*given.values())
    given = arguments("fwd", device)
    for name in ("value", "out"):
        given[name] = [given[name][0], given[name][1].repeat(1, 1, 2)]
    with pytest.raises(RuntimeError, match=r"value must have shape \(1, 24, 16\)"):
        op(*given.values())


def test_a_residual_of_what_is_not_rounded_is_refused(subject, backend, device: str) -> None:
    op = getattr(torch.ops, f"ocnet_{subject}").partitioned_attention_fwd
    given = arguments("fwd", device)
    given["residual"] = [torch.full_like(t, 7.0) for t in given["out"]]
    with pytest.raises(RuntimeError, match="residual must be absent where nothing is rounded"):
        op(*given.values())
    assert all(bool((t == 7).all()) for t in [*given["out"], *given["residual"]])
