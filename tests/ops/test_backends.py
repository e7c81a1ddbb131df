# SPDX-License-Identifier: MIT
"""Choice of back end: order, reasons, refusals, and no silent matrix."""

from types import SimpleNamespace

import pytest
import torch

from ocnet.ops import _extension, explain, oc_attention
from ocnet.ops._backends import SUPPORTED, Backends, Support
from ocnet.ops._native import NativeBackend
from ocnet.ops.oc_attention import reference
from ocnet.ops.oc_attention.autograd import BACKENDS
from tests.ops.watching import watch_inside


def _backends(**supports: Support) -> Backends:
    named = {n: SimpleNamespace(name=n, supports=lambda _p, s=s: s) for n, s in supports.items()}
    return Backends("an_op", tuple(named.items()))


NO = Support(False, "it does not like the shape")
UNBUILT = Support(False, "it is not built", missing_build=True)


def test_auto_takes_the_first_that_can() -> None:
    assert _backends(a=NO, b=SUPPORTED, c=SUPPORTED).choose(None, "auto").name == "b"


def test_explicit_choice_is_honoured() -> None:
    assert _backends(a=SUPPORTED, b=SUPPORTED).choose(None, "b").name == "b"


def test_explicit_choice_that_cannot_be_met_raises_its_reason() -> None:
    with pytest.raises(NotImplementedError, match=r"an_op: backend must .*'a': it does not like"):
        _backends(a=NO, b=SUPPORTED).choose(None, "a")
    with pytest.raises(RuntimeError, match=r"an_op: backend must .*'a': it is not built"):
        _backends(a=UNBUILT, b=SUPPORTED).choose(None, "a")


@pytest.mark.parametrize("half", ["cpu", "cuda"])
def test_old_gpus_are_refused_by_name(half: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the CUDA library, once it is there; the other one asks no GPU."""
    monkeypatch.setattr(_extension, "load", lambda half: _extension.Library(None, None))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "an old one")
    backend = NativeBackend("an_op", half, lambda problem, half: None)
    problem = SimpleNamespace(device=torch.device("cuda"))
    for capability, refused in (((7, 5), half == "cuda"), ((8, 0), False)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda d, c=capability: c)
        support = backend.supports(problem)
        assert support.ok != refused
        assert support.ok or support.reason == (
            "it needs compute capability 8.0 or later, and an old one is older"
        )


def test_nothing_left_lists_every_reason() -> None:
    with pytest.raises(NotImplementedError, match=r"a: it does not like the shape; b: it is not"):
        _backends(a=NO, b=UNBUILT).choose(None, "auto")


def test_taking_the_reference_is_said() -> None:
    with pytest.warns(UserWarning, match=r"an_op: no compiled back end.*a: it is not built"):
        _backends(a=UNBUILT, reference=SUPPORTED).choose(None, "auto")


def test_unknown_name() -> None:
    maps = torch.randn(1, 2, 3, 3)
    with pytest.raises(
        ValueError, match=r"oc_attention: backend must be one of 'auto', 'cpu'.*'fast'"
    ):
        oc_attention(maps, maps, maps, backend="fast")


def test_explain_names_every_back_end() -> None:
    maps = torch.randn(1, 2, 3, 3)
    told = explain(oc_attention, maps, maps, maps, backend="reference")
    assert told.chosen == "reference"
    assert tuple(told.reasons) == BACKENDS.names
    assert "CUDA tensors" in told.reasons["cuda"]
    assert str(told).splitlines()[0] == "oc_attention(backend='reference') -> reference"
    assert explain("oc_attention", maps, maps, maps).requested == "auto"


def test_explain_of_a_refused_call_says_why() -> None:
    maps = torch.randn(1, 2, 3, 3)
    told = explain(oc_attention, maps, maps, maps, backend="cuda")
    assert told.chosen is None
    assert "CUDA" in told.reasons["cuda"]


def test_explain_of_no_op() -> None:
    with pytest.raises(
        ValueError,
        match=r"explain: op must be one of \['inplace_abn', .*'spatial_gather'\], got 'relu'",
    ):
        explain("relu")


def test_too_many_channels_are_refused_by_compiled_back_ends_only() -> None:
    wide = torch.randn(1, 513, 2, 2)
    told = explain(oc_attention, wide, wide, wide)
    assert told.chosen == "reference"
    assert "up to 512 channels" in told.reasons["cpu"]
    with pytest.warns(UserWarning, match="no compiled back end"):
        oc_attention(wide, wide, wide)


@pytest.mark.parametrize("rows", [8, 400])
def test_reference_never_holds_the_matrix(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    """No tensor that it makes has more elements than its row block; with all rows, it is the matrix."""
    monkeypatch.setattr(reference, "ROWS", rows)
    largest = watch_inside(reference, monkeypatch)
    maps = torch.randn(1, 4, 20, 20, requires_grad=True)
    oc_attention(maps, maps, maps, backend="reference").sum().backward()
    assert largest.numel == rows * 400


def test_missing_library_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_extension, "_find", lambda half: None)
    _extension.load.cache_clear()
    try:
        maps = torch.randn(1, 2, 3, 3)
        assert (
            "OCNET_BUILD=cpu pip install" in explain(oc_attention, maps, maps, maps).reasons["cpu"]
        )
        with pytest.raises(RuntimeError, match="not built"):
            oc_attention(maps, maps, maps, backend="cpu")
    finally:
        _extension.load.cache_clear()
