# SPDX-License-Identifier: MIT
"""Attention within groups as torch sees it, what it saves, and what it says of bad input."""

import re

import pytest
import torch
from torch.library import opcheck
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from ocnet.ops import Blocks, Grid, Strided, explain, partitioned_attention, pyramid_attention
from ocnet.ops._partition import encode
from ocnet.ops.partitioned_attention.reference import naive_partitioned_attention
from ocnet.testing import AttentionCase, make_inputs
from tests.ops.tracing import assert_same_compiled, assert_same_exported

FWD = torch.ops.ocnet.partitioned_attention_fwd.default
BWD = torch.ops.ocnet.partitioned_attention_bwd.default
KINDS = [Grid(2), Blocks(3, 4), Strided(3, 2)]
each_kind = pytest.mark.parametrize("partition", KINDS, ids=lambda p: type(p).__name__)


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "separate"])
@pytest.mark.parametrize(
    ("dtype", "layout"), [(torch.float32, "nchw"), (torch.float16, "channels_last")], ids=str
)
def test_opcheck(backend: str, device: str, layout: str, shared: bool, dtype: torch.dtype) -> None:
    cases = [
        AttentionCase(2, 6, 10, size, None, dtype, layout, shared) for size in ((4, 5), (3, 7))
    ]
    stages = [make_inputs(case, device=device) for case in cases]
    query, value = [x.query for x in stages], [x.value for x in stages]
    key = [] if shared else [x.key for x in stages]
    numbers = [*encode(Grid(2)), *encode(Strided(2, 2))]
    opcheck(FWD, (query, key, value, numbers, None, backend, True))
    with torch.no_grad():
        results = FWD(query, key, value, numbers, None, backend, True)
        grad_out = [x.grad_out for x in stages]
        for needs in ((True, not shared, True), (False, False, True)):
            opcheck(BWD, (grad_out, query, key, value, results, numbers, None, backend, *needs))


@pytest.mark.parametrize("dynamic", [True, False])
def test_compile_fullgraph(backend: str, device: str, dynamic: bool) -> None:
    def step(query: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        keys = torch.nn.functional.leaky_relu(query)
        wide = partitioned_attention(keys, query, value, Blocks(2, 3), backend=backend)
        outs = pyramid_attention([(keys, keys, value)] * 2, [1, Strided(2, 2)], backend=backend)
        return (wide + outs[0] * outs[1]).square().mean()

    cases = [AttentionCase(1, 6, 10, size, shared=True) for size in ((4, 5), (7, 3), (6, 6))]
    inputs = [make_inputs(case, device=device) for case in cases]
    assert_same_compiled(step, dynamic, [(x.query, x.value) for x in inputs])


def test_compile_keeps_shared_keys_shared_and_a_pyramid_one_call() -> None:
    torch._dynamo.reset()
    seen: list[str] = []

    def watch(graph: torch.fx.GraphModule, _inputs):
        seen.append(graph.code)
        return graph.forward

    maps = torch.randn(1, 4, 6, 6)

    def pyramid(q, v):
        return pyramid_attention([(q, q, v), (q, q, v)], [1, 2])

    torch.compile(pyramid, fullgraph=True, backend=watch)(maps, maps * 2)
    assert len(re.findall(r"ocnet\.partitioned_attention_fwd\(\[[^\]]*\], \[\], ", seen[0])) == 1


def test_export_with_dynamic_size() -> None:
    assert_same_exported(lambda maps: partitioned_attention(maps, maps, maps * 2, Grid(3)))


def test_shapes_without_data() -> None:
    maps = torch.empty(2, 8, 5, 6, device="meta")
    out = partitioned_attention(maps, maps, torch.empty(2, 3, 5, 6, device="meta"), Grid(2))
    assert out.shape == (2, 3, 5, 6)


def test_checkpoint() -> None:
    x = make_inputs(AttentionCase(shared=True))

    def attend(q, v):
        return partitioned_attention(q, q, v, Grid(2))

    want = torch.autograd.grad(attend(x.query, x.value).sum(), (x.query, x.value))
    out = checkpoint(attend, x.query, x.value, use_reentrant=False)
    got = torch.autograd.grad(out.sum(), (x.query, x.value))
    torch.testing.assert_close(got, want, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_runs_in_its_dtype(dtype: torch.dtype) -> None:
    x = make_inputs(AttentionCase(1, 8, 8, (4, 4)))
    with torch.autocast("cpu", dtype):
        out = partitioned_attention(x.query, x.key, x.value, Grid(2))
        mixed = partitioned_attention(x.query, x.key.to(dtype), x.value, Grid(2))
        shared = pyramid_attention([(x.query, x.query, x.value)], [2])[0]
    assert out.dtype == mixed.dtype == shared.dtype == dtype
    narrow = [t.detach().to(dtype) for t in (x.query, x.key, x.value)]
    assert torch.equal(out, partitioned_attention(*narrow, Grid(2)))
    (out.float().sum() + shared.float().sum()).backward()
    assert x.query.grad is not None
    assert x.query.grad.dtype == torch.float32


def test_autocast_leaves_double_alone() -> None:
    x = make_inputs(AttentionCase(dtype=torch.float64))
    with torch.autocast("cpu", torch.bfloat16):
        assert partitioned_attention(x.query, x.key, x.value, Grid(2)).dtype == torch.float64


def test_second_order_is_refused_in_words() -> None:
    x = make_inputs(AttentionCase())
    out = partitioned_attention(x.query, x.key, x.value, Grid(2))
    (grad,) = torch.autograd.grad(out.sum(), x.query, create_graph=True)
    with pytest.raises(
        NotImplementedError, match="partitioned_attention: gradients must be of fir"
    ):
        grad.sum().backward()


def saved_bytes(function) -> int:
    storages: dict[int, int] = {}

    def pack(t: torch.Tensor) -> torch.Tensor:
        storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        keep = function()
    del keep
    return sum(storages.values())


@each_kind
def test_no_copy_of_the_inputs_is_saved(partition) -> None:
    """Inputs, output and one number for each pixel."""
    x = make_inputs(AttentionCase(1, 8, 8, (40, 40), shared=True))
    saved = saved_bytes(lambda: partitioned_attention(x.query, x.query, x.value, partition))
    assert saved == 4 * 40 * 40 * (8 + 8 + 8 + 1)
    published = saved_bytes(
        lambda: naive_partitioned_attention(x.query, x.query, x.value, partition)
    )
    assert published > saved


@pytest.mark.native
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "separate"])
def test_memory_of_the_kernel_does_not_grow_with_the_groups(shared: bool) -> None:
    """Results and a few numbers for each pixel grow; nothing else of the size of the inputs does."""
    torch.use_deterministic_algorithms(False)

    def allocated(groups: int) -> int:
        x = make_inputs(AttentionCase(1, 64, 64, (8, 8 * groups), shared=shared))
        query, key, value = x.query, x.key, x.value
        if explain(partitioned_attention, query, key, value, Grid(1)).chosen != "cpu":
            pytest.skip("the CPU library is not built")
        activities = [torch.profiler.ProfilerActivity.CPU]
        with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
            out = partitioned_attention(query, key, value, Blocks(8, 8))
            leaves = list(dict.fromkeys((query, key, value)))
            torch.autograd.grad(out, leaves, x.grad_out)
        return sum(
            event.self_cpu_memory_usage
            for event in profile.key_averages()
            if event.key in ("aten::empty", "aten::empty_strided")
        )

    few, many = 128, 256
    pixels = (many - few) * 64
    results = 64 * (3 if shared else 4) + 1  # out, gradients, lse
    # Each group's lse and delta, padded to a whole block of 96.
    numbers = 2 * 96 / 64
    assert allocated(many) - allocated(few) <= 4 * pixels * (results + numbers)


def test_flop_counter_counts_pairs_in_groups() -> None:
    q, v = torch.randn(2, 6, 7, 9, requires_grad=True), torch.randn(2, 10, 7, 9)
    cells = [(3, 4), (3, 5), (4, 4), (4, 5)]
    inside = sum((h * w) ** 2 for h, w in cells)
    with FlopCounterMode(display=False) as counter:
        out = partitioned_attention(q, q, v, Grid(2))
        forward = counter.get_total_flops()
        out.sum().backward()
    assert forward == 2 * 2 * inside * 16
    assert counter.get_total_flops() == forward + 2 * 2 * inside * (3 * 6 + 2 * 10)


def maps(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.ones(shape, dtype=dtype)


GOOD = (2, 4, 3, 5)
BAD = {
    "rank": ((maps(2, 4, 15), *[maps(*GOOD)] * 2), ValueError, "query must have shape"),
    "batch": ((maps(*GOOD), maps(1, 4, 3, 5), maps(*GOOD)), ValueError, "batch size of "),
    "channels": ((maps(*GOOD), maps(2, 6, 3, 5), maps(*GOOD)), ValueError, "channels of "),
    "sizes": ((maps(*GOOD), *[maps(2, 4, 3, 6)] * 2), ValueError, "key must have the rows and col"),
    "value": ((*[maps(*GOOD)] * 2, maps(2, 4, 5, 3)), ValueError, "value must have the rows and"),
    "integers": ((maps(*GOOD, dtype=torch.int64),) * 3, TypeError, "got int64"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_maps_are_refused(name: str) -> None:
    arguments, error, text = BAD[name]
    with pytest.raises(error, match=text) as caught:
        partitioned_attention(*arguments, Grid(2))
    assert re.match(r"partitioned_attention: \w+ must .*, got ", str(caught.value))
    with pytest.raises(error, match=text) as caught:
        pyramid_attention([(maps(*GOOD),) * 3, arguments], [1, 2])
    assert re.match(r"pyramid_attention: stages\[1\]\.\w+ must .*, got ", str(caught.value))


def test_a_bad_partition_is_refused() -> None:
    x = maps(*GOOD)
    match = r"partitioned_attention: partition must be one of Grid, Blocks, Strided, got int"
    with pytest.raises(TypeError, match=match):
        partitioned_attention(x, x, x, 2)
    match = r"pyramid_attention: scales must be an integer or one of Grid, .*, got str"
    with pytest.raises(TypeError, match=match):
        pyramid_attention([(x, x, x)], ["2"])
    with pytest.raises(ValueError, match=r"Grid: rows must be from 1 to \d+, got 0"):
        pyramid_attention([(x, x, x)], [0])


def test_bad_stages_are_refused() -> None:
    x = maps(*GOOD)
    with pytest.raises(ValueError, match=r"pyramid_attention: stages must have .*, got none"):
        pyramid_attention([], [])
    with pytest.raises(ValueError, match="scales must have one for each of the 1 stages, got 2"):
        pyramid_attention([(x, x, x)], [1, 2])
    with pytest.raises(
        TypeError, match=r"stages\[0\] must be a query, a key and a value, got tuple"
    ):
        pyramid_attention([(x, x)], [1])
    with pytest.raises(TypeError, match=r"stages\[0\] must be .*, got Tensor"):
        pyramid_attention([x], [1])


def test_unknown_back_ends_are_refused() -> None:
    x = maps(*GOOD)
    with pytest.raises(ValueError, match=r"partitioned_attention: backend must be one of .*'fast'"):
        partitioned_attention(x, x, x, Grid(1), backend="fast")


def test_explain_names_every_back_end() -> None:
    x = maps(*GOOD)
    told = explain(pyramid_attention, [(x, x, x)] * 2, [1, 2], backend="reference")
    assert told.chosen == "reference"
    assert set(told.reasons) == {"cpu", "triton", "cuda", "reference"}
    assert (
        "512 channels"
        in explain(partitioned_attention, *[maps(1, 600, 2, 2)] * 3, Grid(1)).reasons["cpu"]
    )
