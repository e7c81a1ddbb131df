# SPDX-License-Identifier: MIT
"""Spatial gathering as torch sees it, and bad input: one sentence each, in the project's form."""

import pytest
import torch
from torch.library import opcheck
from torch.utils.checkpoint import checkpoint

from ocnet.ops import explain, spatial_gather
from ocnet.ops.spatial_gather.autograd import BACKENDS
from ocnet.ops.spatial_gather.reference import naive_gather
from ocnet.testing.gather import GatherCase, make_gather_inputs
from tests.ops.tracing import assert_same_compiled, assert_same_exported

FWD = torch.ops.ocnet.spatial_gather_fwd.default
BWD = torch.ops.ocnet.spatial_gather_bwd.default


@pytest.mark.parametrize("layout", ["nchw", "channels_last", "cropped"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_opcheck(backend: str, device: str, layout: str, dtype: torch.dtype) -> None:
    x = make_gather_inputs(GatherCase(2, 6, 4, (4, 5), dtype, layout), device=device)
    opcheck(FWD, (x.features, x.logits, 0.7, backend, True))
    with torch.no_grad():
        saved = FWD(x.features, x.logits, 0.7, backend, True)
        for needs in ((True, True), (False, True)):
            opcheck(BWD, (x.grad_out, x.features, x.logits, *saved, 0.7, backend, *needs))


@pytest.mark.parametrize("dynamic", [True, False])
def test_compile_fullgraph(backend: str, device: str, dynamic: bool) -> None:
    def step(features: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        return spatial_gather(features.relu(), logits, 0.5, backend=backend).square().mean()

    cases = [GatherCase(1, 6, 4, size) for size in ((4, 5), (7, 3), (6, 6))]
    inputs = [make_gather_inputs(case, device=device) for case in cases]
    assert_same_compiled(step, dynamic, [(x.features, x.logits) for x in inputs])


def test_export_with_dynamic_size() -> None:
    assert_same_exported(lambda maps: spatial_gather(maps, maps[:, :2]))


def test_counted_operations_are_those_of_the_formula() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    def counted(gather) -> int:
        x = make_gather_inputs(GatherCase())
        with FlopCounterMode(display=False) as counter:
            gather(x.features, x.logits).sum().backward()
        return counter.get_total_flops()

    assert counted(spatial_gather) == counted(naive_gather) == 3 * 2 * 2 * 35 * 16 * 5


def test_shapes_without_data() -> None:
    maps = torch.empty(2, 8, 5, 6, device="meta")
    assert spatial_gather(maps, maps[:, :3]).shape == (2, 8, 3, 1)


def test_checkpoint() -> None:
    x = make_gather_inputs(GatherCase())
    leaves = (x.features, x.logits)
    want = torch.autograd.grad(spatial_gather(*leaves), leaves, x.grad_out)
    out = checkpoint(spatial_gather, *leaves, use_reentrant=False)
    got = torch.autograd.grad(out, leaves, x.grad_out)
    torch.testing.assert_close(got, want, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_runs_in_its_dtype(dtype: torch.dtype) -> None:
    x = make_gather_inputs(GatherCase())
    with torch.autocast("cpu", dtype):
        out = spatial_gather(x.features, x.logits)
        mixed = spatial_gather(x.features, x.logits.to(dtype))
    assert out.dtype == mixed.dtype == dtype
    narrow = [t.detach().to(dtype) for t in (x.features, x.logits)]
    assert torch.equal(out, spatial_gather(*narrow))
    out.float().sum().backward()
    assert x.features.grad is not None
    assert x.features.grad.dtype == torch.float32


def test_autocast_leaves_double_alone() -> None:
    x = make_gather_inputs(GatherCase(dtype=torch.float64))
    with torch.autocast("cpu", torch.bfloat16):
        assert spatial_gather(x.features, x.logits).dtype == torch.float64


def test_second_order_is_refused_in_words() -> None:
    x = make_gather_inputs(GatherCase())
    (grad,) = torch.autograd.grad(
        spatial_gather(x.features, x.logits).sum(), x.features, create_graph=True
    )
    with pytest.raises(
        NotImplementedError, match="spatial_gather: gradients must be of first order"
    ):
        grad.sum().backward()


def test_explain_names_every_back_end() -> None:
    maps = torch.randn(1, 2, 3, 3)
    told = explain(spatial_gather, maps, maps, 0.5, backend="reference")
    assert told.chosen == "reference"
    assert tuple(told.reasons) == BACKENDS.names
    assert "CUDA tensors" in told.reasons["cuda"]
    assert explain("spatial_gather", maps, maps).requested == "auto"


def maps(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.ones(shape, dtype=dtype)


GOOD = (2, 4, 3, 5)
CASES = {
    "rank": ((maps(2, 4, 15), maps(*GOOD)), ValueError, "features must have shape"),
    "batch": ((maps(*GOOD), maps(1, 4, 3, 5)), ValueError, "batch size of features, 2"),
    "positions": (
        (maps(*GOOD), maps(2, 4, 5, 3)),
        ValueError,
        "rows and columns of features, 3 x 5",
    ),
    "integers": ((maps(*GOOD, dtype=torch.int64),) * 2, TypeError, "got int64"),
    "mixed": (
        (maps(*GOOD), maps(*GOOD, dtype=torch.float64)),
        TypeError,
        "logits must have the dtype of features",
    ),
    "devices": (
        (maps(*GOOD), torch.ones(GOOD, device="meta")),
        ValueError,
        "device of features, cpu, got meta",
    ),
    "no rows": ((maps(2, 4, 0, 5),) * 2, ValueError, "at least one channel, row and column"),
    "no regions": ((maps(*GOOD), maps(2, 0, 3, 5)), ValueError, "at least one channel"),
    "not a tensor": (([1.0], maps(*GOOD)), TypeError, "features must be a tensor, got list"),
    "scale": ((maps(*GOOD), maps(*GOOD), "1"), TypeError, "scale must be a number, got str"),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_refused(name: str) -> None:
    arguments, error, text = CASES[name]
    with pytest.raises(error, match=text) as caught:
        spatial_gather(*arguments)
    assert str(caught.value).startswith("spatial_gather: ")
    assert " must " in str(caught.value)
    assert ", got " in str(caught.value)


def test_unknown_back_end() -> None:
    with pytest.raises(ValueError, match=r"spatial_gather: backend must be one of 'auto'.*'fast'"):
        spatial_gather(maps(*GOOD), maps(*GOOD), backend="fast")
