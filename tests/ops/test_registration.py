# SPDX-License-Identifier: MIT
"""The ops as torch sees them: schemas, fakes, autograd, autocast, compile, export, checkpoint."""

import re

import pytest
import torch
from torch.library import opcheck
from torch.utils.checkpoint import checkpoint

from ocnet.ops import oc_attention
from ocnet.ops.oc_attention.reference import naive_attention
from ocnet.testing import AttentionCase, make_inputs
from tests.ops.tracing import assert_same_compiled, assert_same_exported

FWD = torch.ops.ocnet.oc_attention_fwd.default
BWD = torch.ops.ocnet.oc_attention_bwd.default


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "separate"])
@pytest.mark.parametrize(
    ("dtype", "layout"),
    [
        (torch.float32, "nchw"),
        (torch.float16, "channels_last"),
        (torch.float32, "cropped"),
    ],
    ids=str,
)
def test_opcheck(backend: str, device: str, layout: str, shared: bool, dtype: torch.dtype) -> None:
    case = AttentionCase(2, 6, 10, (4, 5), (3, 7), dtype, layout, shared)
    x = make_inputs(case, device=device)
    key = None if shared else x.key
    opcheck(FWD, (x.query, key, x.value, None, backend, True))
    with torch.no_grad():
        saved = FWD(x.query, key, x.value, None, backend, True)
        for needs in ((True, not shared, True), (False, False, True)):
            opcheck(BWD, (x.grad_out, x.query, key, x.value, *saved, None, backend, *needs))


@pytest.mark.parametrize("dynamic", [True, False])
def test_compile_fullgraph(backend: str, device: str, dynamic: bool) -> None:
    def step(query: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        keys = torch.nn.functional.leaky_relu(query)
        return oc_attention(keys, keys, value, backend=backend).square().mean()

    cases = [AttentionCase(1, 6, 10, size, shared=True) for size in ((4, 5), (7, 3), (6, 6))]
    inputs = [make_inputs(case, device=device) for case in cases]
    assert_same_compiled(step, dynamic, [(x.query, x.value) for x in inputs])


def test_compile_keeps_shared_keys_shared() -> None:
    """The traced graph holds the op without a key, so the symmetric backward is taken."""
    torch._dynamo.reset()
    seen: list[str] = []

    def watch(graph: torch.fx.GraphModule, _inputs):
        seen.append(graph.code)
        return graph.forward

    maps = torch.randn(1, 4, 3, 3)
    torch.compile(lambda q, v: oc_attention(q, q, v), fullgraph=True, backend=watch)(maps, maps * 2)
    assert re.search(r"ocnet\.oc_attention_fwd\(\w+, None, ", seen[0]), seen[0]


def test_export_with_dynamic_size() -> None:
    assert_same_exported(lambda maps: oc_attention(maps, maps, maps * 2))


def test_shapes_without_data() -> None:
    maps = torch.empty(2, 8, 5, 6, device="meta")
    out = oc_attention(maps, maps, torch.empty(2, 3, 5, 6, device="meta"))
    assert out.shape == (2, 3, 5, 6)


def test_checkpoint() -> None:
    x = make_inputs(AttentionCase(shared=True))
    want = torch.autograd.grad(oc_attention(x.query, x.query, x.value).sum(), (x.query, x.value))
    out = checkpoint(lambda q, v: oc_attention(q, q, v), x.query, x.value, use_reentrant=False)
    got = torch.autograd.grad(out.sum(), (x.query, x.value))
    torch.testing.assert_close(got, want, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_runs_in_its_dtype(dtype: torch.dtype) -> None:
    x = make_inputs(AttentionCase(1, 8, 8, (4, 4)))
    with torch.autocast("cpu", dtype):
        out = oc_attention(x.query, x.key, x.value)
        mixed = oc_attention(x.query, x.key.to(dtype), x.value)
    assert out.dtype == mixed.dtype == dtype
    narrow = [t.detach().to(dtype) for t in (x.query, x.key, x.value)]
    assert torch.equal(out, oc_attention(*narrow))
    out.float().sum().backward()
    assert x.query.grad is not None
    assert x.query.grad.dtype == torch.float32


def test_autocast_leaves_double_alone() -> None:
    x = make_inputs(AttentionCase(dtype=torch.float64))
    with torch.autocast("cpu", torch.bfloat16):
        assert oc_attention(x.query, x.key, x.value).dtype == torch.float64


def test_autocast_keeps_shared_keys_shared() -> None:
    x = make_inputs(AttentionCase(shared=True))
    with torch.autocast("cpu", torch.bfloat16):
        oc_attention(x.query, x.query, x.value).float().sum().backward()
    assert x.query.grad is not None
    assert x.query.grad.isfinite().all()


def test_second_order_is_refused_in_words() -> None:
    x = make_inputs(AttentionCase())
    (grad,) = torch.autograd.grad(
        oc_attention(x.query, x.key, x.value).sum(), x.query, create_graph=True
    )
    with pytest.raises(NotImplementedError, match="oc_attention: gradients must be of first order"):
        grad.sum().backward()


def test_saved_for_backward_is_linear_in_the_tokens() -> None:
    """Inputs, output and one number a row: 97 x 97 tokens would be a matrix of 338 MiB."""
    x = make_inputs(AttentionCase(1, 8, 8, (40, 40), shared=True))
    storages: dict[int, int] = {}

    def pack(t: torch.Tensor) -> torch.Tensor:
        storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        oc_attention(x.query, x.query, x.value)
    tokens = 40 * 40
    assert sum(storages.values()) == 4 * tokens * (8 + 8 + 8 + 1)

    storages.clear()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        naive_attention(x.query, x.query, x.value)
    assert sum(storages.values()) > 4 * tokens * tokens
