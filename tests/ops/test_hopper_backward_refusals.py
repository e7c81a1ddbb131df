# SPDX-License-Identifier: MIT
"""What the backward kernels on Hopper's own instructions refuse, in which words; and write nothing."""

import re

import pytest
import torch
from torch import Tensor

pytestmark = pytest.mark.native

NAN = float("nan")
SHAPES = {
    "grad_out": (2, 8, 16),
    "query": (2, 8, 24),
    "key": (2, 5, 24),
    "value": (2, 5, 16),
    "out": (2, 8, 16),
    "lse": (2, 8),
    "residual": (2, 8, 16),
    "grad_query": (2, 8, 24),
    "grad_key": (2, 5, 24),
    "grad_value": (2, 5, 16),
}
GRADS = ("grad_query", "grad_key", "grad_value")
ALIGNED = "have channel stride 1 and rows aligned to 16 bytes"
# The argument that is changed, to a tensor of this shape, and what is said.
WRONG_SHAPES = [
    ("query", (16, 24), "query must have 3 dimensions, got 2"),
    ("query", (2, 0, 24), "query must have sizes from 1 to"),
    ("query", (2, 8, 32), "key must have shape (2, 5, 32), got (2, 5, 24)"),
    ("key", (2, 6, 24), "key must have shape (2, 5, 24), got (2, 6, 24)"),
    ("value", (3, 5, 16), "value must have shape (2, 5, 16), got (3, 5, 16)"),
    ("grad_out", (2, 8, 8), "grad_out must have shape (2, 8, 16), got (2, 8, 8)"),
    ("out", (2, 7, 16), "out must have shape (2, 8, 16), got (2, 7, 16)"),
    ("residual", (2, 8, 8), "residual must have shape (2, 8, 16), got (2, 8, 8)"),
    ("lse", (2, 9), "lse must have shape (2, 8), got (2, 9)"),
    ("grad_query", (2, 8, 16), "grad_query must have shape (2, 8, 24), got (2, 8, 16)"),
    ("grad_key", (2, 8, 24), "grad_key must have shape (2, 5, 24), got (2, 8, 24)"),
    ("grad_value", (2, 8, 16), "grad_value must have shape (2, 5, 16), got (2, 8, 16)"),
]


@pytest.fixture(params=["emulated", pytest.param("cuda", marks=pytest.mark.gpu)])
def subject(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def arguments(device: str) -> dict[str, Tensor | None]:
    """Of a call that is not refused."""
    given = {
        name: torch.full(shape, NAN if name in GRADS else 0, dtype=torch.bfloat16, device=device)
        for name, shape in SHAPES.items()
    }
    return given | {"lse": given["lse"].float()}


@pytest.fixture
def refuse(hopper_ops, arguments, device: str):
    """Make a call with some arguments changed, which is refused in these words."""

    def run(*, scale: float = 0.3, **changed: Tensor | None) -> None:
        given = arguments | changed
        grads = [given.pop(name) for name in GRADS]
        hopper_ops.oc_attention_hopper_bwd(*given.values(), scale, *grads)

    def refuse(text: str, **changed: Tensor | None) -> None:
        with pytest.raises(RuntimeError, match=f"oc_attention_hopper_bwd: {re.escape(text)}"):
            run(**changed)
        assert all(bool(arguments[name].isnan().all()) for name in GRADS)

    run()
    for name in GRADS:
        assert bool((arguments[name] == 0).all())
        arguments[name].fill_(NAN)
    return refuse


@pytest.mark.parametrize(("name", "shape", "text"), WRONG_SHAPES)
def test_shapes(refuse, arguments, device: str, name: str, shape, text: str) -> None:
    refuse(text, **{name: torch.zeros(shape, dtype=arguments[name].dtype, device=device)})


def test_channels_have_a_limit(refuse, arguments) -> None:
    wide = {
        name: arguments[name].new_zeros(*SHAPES[name][:2], 264)
        for name in ("query", "key", "grad_query", "grad_key")
    }
    refuse("query must have at most 256 channels, got 264", **wide)


@pytest.mark.parametrize("name", SHAPES)
def test_dtypes(refuse, arguments, name: str) -> None:
    wrong = arguments[name].to(torch.float64 if name == "lse" else torch.float16)
    # The query says what the others are to have.
    named = "value" if name == "query" else name
    expected, given = {"lse": ("Float", "Double"), "query": ("Half", "BFloat16")}.get(
        name, ("BFloat16", "Half")
    )
    refuse(f"{named} must have dtype {expected}, got {given}", **{name: wrong})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_dtypes_of_more_than_16_bits(refuse, arguments, dtype: torch.dtype) -> None:
    wide = {name: tensor.to(dtype) for name, tensor in arguments.items()}
    wide["residual"] = None
    if dtype == torch.float32:
        wide["lse"] = arguments["lse"]
    kind = {torch.float32: "Float", torch.float64: "Double"}[dtype]
    refuse(f"query must have dtype BFloat16 or Half, got {kind}", **wide)


@pytest.mark.parametrize("name", ["query", "key", "value", "grad_out"])
def test_operands_have_aligned_rows(refuse, arguments, name: str) -> None:
    operand = arguments[name]
    n, tokens, channels = operand.shape
    room = operand.new_zeros(n * tokens * (channels + 8))
    columns = operand.mT.contiguous().mT
    odd_rows = room[: n * tokens * (channels + 1)].view(n, tokens, channels + 1)[..., :channels]
    shifted = room[1 : 1 + operand.numel()].view(operand.shape)
    for wrong in (columns, odd_rows, shifted):
        refuse(f"{name} must {ALIGNED}", **{name: wrong})


def test_lse_is_contiguous(refuse, arguments) -> None:
    refuse("lse must be contiguous", lse=arguments["lse"].mT.contiguous().mT)


def test_shared_keys_have_no_gradient_of_their_own(refuse, arguments) -> None:
    shared = {"key": None, "value": arguments["out"].clone(), "grad_value": None}
    refuse("grad_key must be absent without a key", **shared, grad_key=arguments["grad_query"])
