# SPDX-License-Identifier: MIT
"""What the native ops on Hopper's own instructions refuse: with its reason, and nothing is written."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.ops.test_cuda_partition import arguments

pytestmark = pytest.mark.native

WRITTEN = ("out", "lse", "residual")
only_whole_maps = pytest.mark.parametrize("op", ["oc_attention"], indirect=True)
only_groups = pytest.mark.parametrize("op", ["partitioned_attention"], indirect=True)
ALIGNED = "have channel stride 1 and rows aligned to 16 bytes, got strides"


@pytest.fixture(params=["emulated", pytest.param("cuda", marks=pytest.mark.gpu)])
def subject(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=["oc_attention", "partitioned_attention"])
def op(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def given(op: str, device: str) -> dict[str, Any]:
    """The arguments of a legal call by name, lists of one tensor for each stage; outputs hold 7."""
    given = arguments("fwd", device, 1 if op == "oc_attention" else 2, torch.bfloat16)
    del given["tf32"]
    given["lse"] = [tensor.float() for tensor in given["lse"]]
    given["residual"] = [torch.full_like(t, 7.0) for t in given["out"]]
    return given


@pytest.fixture
def call(op: str, hopper_ops, given) -> Callable[[], None]:
    def call() -> None:
        values = given
        if op == "oc_attention":
            lists = {name: v for name, v in given.items() if name != "partition"}
            values = {n: (v or [None])[0] if isinstance(v, list) else v for n, v in lists.items()}
        getattr(hopper_ops, f"{op}_hopper_fwd")(*values.values())

    return call


@pytest.fixture
def refuse(op: str, call, given, device: str) -> Callable[..., None]:
    """Change some lists of the legal call: it must be refused, with nothing written."""

    def refuse(match: str, **changed: Callable[[list[Tensor]], list[Tensor]]) -> None:
        legal = dict(given)
        given.update({name: change(given[name]) for name, change in changed.items()})
        with pytest.raises(RuntimeError, match=f"^{op}_hopper_fwd: {match}"):
            call()
        assert all(bool((t == 7).all()) for name in WRITTEN for t in [*legal[name], *given[name]])
        given.update(legal)

    return refuse


def last(change: Callable[[Tensor], Tensor]) -> Callable[[list[Tensor]], list[Tensor]]:
    """Change the last stage, which is the only one without groups."""
    return lambda stages: [*stages[:-1], change(stages[-1])]


def every(change: Callable[[Tensor], Tensor]) -> Callable[[list[Tensor]], list[Tensor]]:
    return lambda stages: [change(tensor) for tensor in stages]


def apart(tensor: Tensor) -> Tensor:
    """Return the same matrix with tokens side by side."""
    return tensor.mT.contiguous().mT


def shifted(tensor: Tensor) -> Tensor:
    """Return the same matrix two bytes behind an address that is aligned."""
    room = tensor.new_zeros(tensor.numel() + 1)
    return room[1:].view(tensor.shape).copy_(tensor)


def written(given: dict[str, Any]) -> list[bool]:
    return [bool((tensor != 7).all()) for name in WRITTEN for tensor in given[name]]


def test_the_arguments_of_the_refusals_are_legal(call, given) -> None:
    call()
    assert all(written(given))


@pytest.mark.parametrize("name", ["query", "key", "value"])
def test_rows_that_are_not_aligned(refuse, op: str, name: str) -> None:
    refuse(f"{name} must {ALIGNED}", **{name: last(shifted)})
    refuse(f"{name} must {ALIGNED}", **{name: last(lambda t: torch.cat((t, t), 2)[..., ::2])})
    if name != "query" or op == "partitioned_attention":  # the engine reads whole maps either way
        refuse(f"{name} must {ALIGNED}", **{name: last(apart)})


@only_whole_maps
def test_operands_lie_alike(refuse, call, given) -> None:
    words = "have token stride 1 and channels aligned to 16 bytes, as its query has, got strides"
    refuse(f"key must {words}", query=every(apart))
    refuse(f"value must {words}", query=every(apart), key=every(apart))
    off = every(lambda t: shifted(t.mT).mT)
    refuse(f"key must {words}", query=every(apart), key=off, value=every(apart))
    odd = {name: every(lambda t: apart(t[:, :23])) for name in ("query", "key", "value")}
    odd |= {name: every(lambda t: t[:, :23].contiguous()) for name in WRITTEN}
    refuse(f"query must {words}", **odd)
    given.update({name: [apart(t) for t in given[name]] for name in ("query", "key", "value")})
    call()
    assert all(written(given))


def test_more_channels_than_the_tiles_have_room_for(refuse) -> None:
    def wider(channels: int):
        return every(lambda t: t[..., :1].expand(-1, -1, channels).contiguous())

    refuse("query must have at most 256 channels, got 264", query=wider(264), key=wider(264))
    values = {name: wider(520) for name in ("value", "out", "residual")}
    refuse("value must have at most 512 channels, got 520", **values)


def test_other_gpus(refuse, subject: str, configure) -> None:
    if subject != "emulated":
        pytest.skip("this one is a GPU of the kind that is needed")
    configure(clusters=False)
    refuse("query must be on a device of compute capability 9.0, got 8.0")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_other_dtypes(refuse, op: str, dtype: torch.dtype) -> None:
    has_groups = op == "partitioned_attention"
    if dtype == torch.float32 and not has_groups:
        pytest.skip("it has kernels for float32: test_hopper_float32.py")
    changed = {name: every(lambda t: t.to(dtype)) for name in ("query", "key", "value", "out")}
    changed["lse"] = changed["out"]
    names = {torch.float32: "Float", torch.float64: "Double"}
    kinds = "BFloat16 or Half where there are groups" if has_groups else "BFloat16, Half or Float"
    refuse(f"query must have dtype {kinds}, got {names[dtype]}", residual=lambda _: [], **changed)


@pytest.mark.parametrize("name", ["query", "key", "value", "out", "residual", "lse"])
def test_other_shapes_and_dtypes(refuse, name: str) -> None:
    """Any of them may be named where one does not fit the others."""
    refuse("[a-z]+ must (have shape|be of a map of)", **{name: last(lambda t: t[:, :20])})
    refuse(r"[a-z]+ must have (shape|\d dimensions)", **{name: last(lambda t: t[0])})
    refuse("[a-z]+ must have dtype", **{name: last(lambda t: t.double())})


@pytest.mark.parametrize("name", ["query", "value"])
def test_nothing_to_attend_to(refuse, name: str) -> None:
    refuse(f"{name} must have sizes from 1 to", **{name: last(lambda t: t[..., :0])})


LISTS = ["key", "value", "out", "lse", "residual"]


@only_groups
@pytest.mark.parametrize("name", LISTS)
def test_lists_of_other_lengths(refuse, name: str) -> None:
    refuse(f"{name} must have a tensor for each of the 2 stages, got 1", **{name: lambda l: l[:1]})


@only_groups
def test_stages_and_partitions(refuse) -> None:
    refuse("query must have 1 to 4 stages, got 6", query=lambda l: 3 * l)
    refuse("partition must have 8 numbers for each stage, got 8", partition=lambda l: l[:8])
    refuse("partition must deal every", partition=lambda l: [*l[:8], 6, 7, 1, 7, *l[12:]])
