# SPDX-License-Identifier: MIT
"""Every back end of spatial gathering against the plain formula in float64: values, gradients, edges."""

import functools

import pytest
import torch

from ocnet.ops import explain, spatial_gather
from ocnet.ops.spatial_gather import reference
from ocnet.ops.spatial_gather.reference import naive_gather
from ocnet.testing import assert_as_accurate, assert_same_nonfinite
from ocnet.testing.gather import (
    GatherCase,
    GatherInputs,
    eager_gathers,
    gather_magnitudes,
    gather_oracle,
    make_gather_inputs,
    random_gather_cases,
    run_gather,
)
from tests.ops.watching import watch_inside

INF, NAN = float("inf"), float("nan")


def check(case: GatherCase, backend: str, device: str, seed: int = 0) -> None:
    check_inputs(make_gather_inputs(case, seed, device), backend, str(case))


def check_inputs(inputs: GatherInputs, backend: str, label: str = "") -> None:
    actual, oracle = run_gather(inputs, backend).named(), gather_oracle(inputs).named()
    eager = [run.named() for run in eager_gathers(inputs)]
    sizes = gather_magnitudes(inputs).named()
    (_, channels, h, w), regions = inputs.features.shape, inputs.logits.shape[1]
    terms = channels + regions + h * w
    for name, result in actual.items():
        assert result.dtype == inputs.features.dtype
        runs = [run[name] for run in eager]
        assert_as_accurate(f"{label}: {name}", result, oracle[name], runs, sizes[name], terms)


@pytest.mark.parametrize("seed", range(12))
def test_random_legal_calls(backend: str, device: str, dtypes, seed: int, small: bool) -> None:
    count, side = (3, 9) if small else (10, 23)
    for number, case in enumerate(random_gather_cases(count, seed, dtypes, side)):
        check(case, backend, device, seed=100 * seed + number)


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("regions", [19, 60, 171], ids=lambda k: f"K{k}")
def test_published_channels(
    backend: str, device: str, dtypes, regions: int, layout: str, small: bool
) -> None:
    size = (3, 5) if small else (11, 17)
    for dtype in dtypes[:2] if small else dtypes:
        check(GatherCase(1, 512, regions, size, dtype, layout), backend, device)


@pytest.mark.parametrize("sizes", [(1024, 3), (3, 512), (720, 33)], ids=str)
def test_widest_maps(backend: str, device: str, dtypes, sizes, small: bool) -> None:
    size = (2, 3) if small else (9, 13)
    for dtype in dtypes[:2] if small else dtypes:
        check(GatherCase(1, *sizes, size, dtype, "channels_last"), backend, device)


def test_more_positions_than_any_part(backend: str, device: str, dtypes, small: bool) -> None:
    size = (17, 19) if small else (61, 67)
    for dtype in dtypes[:2]:
        check(GatherCase(2, 5, 20, size, dtype, spread=8.0), backend, device)


def test_one_position(backend: str, device: str, dtypes) -> None:
    for dtype in dtypes:
        inputs = make_gather_inputs(GatherCase(1, 3, 2, (1, 1), dtype), device=device)
        results = run_gather(inputs, backend)
        # All weight is on the one position, to the last bit.
        assert torch.equal(results.out, inputs.features.detach().expand(-1, -1, 2, 1))
        assert not results.grad_logits.any()


def test_empty_batch(backend: str, device: str) -> None:
    inputs = make_gather_inputs(GatherCase(batch=0), device=device)
    results = run_gather(inputs, backend)
    assert results.out.shape == (0, 16, 5, 1)
    assert results.grad_features.shape == inputs.features.shape
    assert results.grad_logits.shape == inputs.logits.shape


def test_a_scale_of_zero_is_the_mean(backend: str, device: str) -> None:
    inputs = make_gather_inputs(GatherCase(scale=0.0), device=device)
    results = run_gather(inputs, backend)
    mean = inputs.features.detach().mean((2, 3), keepdim=True)
    torch.testing.assert_close(results.out, mean.expand_as(results.out))
    assert not results.grad_logits.any()


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_results_have_the_layouts_of_the_inputs(backend: str, device: str, layout: str) -> None:
    inputs = make_gather_inputs(GatherCase(layout=layout), device=device)
    results = run_gather(inputs, backend)
    wanted = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    for name, tensor in results.named().items():
        assert tensor.is_contiguous(memory_format=wanted), name


def test_runs_repeat_bit_for_bit(backend: str, device: str, dtypes, small: bool) -> None:
    size, repeats = ((7, 41), 1) if small else ((43, 47), 20)
    for dtype in dtypes:
        inputs = make_gather_inputs(GatherCase(1, 20, 19, size, dtype), 3, device)
        first = run_gather(inputs, backend).named()
        for _ in range(repeats):
            again = run_gather(inputs, backend).named()
            for name, tensor in first.items():
                assert torch.equal(tensor, again[name]), f"{name} differs between runs"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_peaked_weights_keep_exact_gradients(
    backend: str, device: str, dtype: torch.dtype, small: bool
) -> None:
    """Where one position has nearly all weight, a score's gradient is a small difference."""
    size = (5, 7) if small else (11, 13)
    inputs = make_gather_inputs(GatherCase(1, 64, 19, size, dtype, spread=0.5), device=device)
    with torch.no_grad():
        inputs.logits[:, :, 2, 3] = 8.0
    actual, exact = run_gather(inputs, backend).grad_logits, gather_oracle(inputs).grad_logits
    # Without the residual of the context the error is several times the rounding of the dtype.
    error = (actual.double() - exact).norm() / exact.norm()
    assert error < torch.finfo(dtype).eps


@pytest.mark.parametrize("number", [NAN, INF, -INF], ids=str)
@pytest.mark.parametrize("where", ["features", "logits", "grad_out"])
def test_nonfinite_input_stays_where_the_formula_puts_it(
    backend: str, device: str, dtypes, where: str, number: float
) -> None:
    for dtype in dtypes:
        inputs = make_gather_inputs(GatherCase(2, 9, 6, (9, 10), dtype, spread=1.0), 5, device)
        with torch.no_grad():
            getattr(inputs, where)[0, 2, 3, 0] = number
        actual, oracle = run_gather(inputs, backend).named(), gather_oracle(inputs).named()
        for name, tensor in actual.items():
            assert_same_nonfinite(f"{name} with {number} in {where}", tensor, oracle[name])


@pytest.mark.parametrize("dead", [1, 40, 300, 800])
def test_region_recovers_from_positions_at_minus_infinity(
    backend: str, device: str, dtypes, dead: int
) -> None:
    """Scores of -inf in the first tiles, or whole parts, must not turn later ones into NaN."""
    for dtype in dtypes[:2]:
        inputs = make_gather_inputs(GatherCase(1, 4, 3, (1, dead + 7), dtype), device=device)
        with torch.no_grad():
            inputs.logits[:, :2, :, :dead] = -INF
        check_inputs(inputs, backend)


def test_region_of_minus_infinity_is_nan(backend: str, device: str) -> None:
    logits = torch.randn(1, 4, 20, 20, device=device)
    logits[:, 1] = -INF
    out = spatial_gather(torch.randn(1, 3, 20, 20, device=device), logits, backend=backend)
    assert out[:, :, 1].isnan().all()
    assert int(out.isnan().sum()) == 3


@pytest.mark.parametrize("wanted", ["features", "logits"])
def test_only_wanted_gradients(backend: str, device: str, dtypes, wanted: str) -> None:
    for dtype in dtypes:
        inputs = make_gather_inputs(GatherCase(1, 12, 9, (6, 8), dtype), device=device)
        full = getattr(run_gather(inputs, backend), f"grad_{wanted}")
        for name in ("features", "logits"):
            getattr(inputs, name).requires_grad_(name == wanted)
        out = spatial_gather(inputs.features, inputs.logits, backend=backend)
        (grad,) = torch.autograd.grad(out, getattr(inputs, wanted), inputs.grad_out)
        assert torch.equal(grad, full)


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_gradcheck(backend: str, device: str, dtypes, layout: str, small: bool) -> None:
    if torch.float64 not in dtypes:
        pytest.skip(f"{backend} has no float64")
    # The fast mode projects the Jacobian on random directions instead of running once per element.
    gradcheck = functools.partial(torch.autograd.gradcheck, fast_mode=small)
    inputs = make_gather_inputs(GatherCase(2, 3, 4, (3, 4), torch.float64, layout), device=device)
    assert gradcheck(
        lambda f, z: spatial_gather(f, z, 0.7, backend=backend), (inputs.features, inputs.logits)
    )


@pytest.mark.parametrize("positions", [8, 400])
def test_reference_holds_no_more_than_a_block(
    monkeypatch: pytest.MonkeyPatch, positions: int
) -> None:
    """No tensor that it makes is larger than the weights of its block of positions."""
    monkeypatch.setattr(reference, "POSITIONS", positions)
    features = torch.randn(1, 4, 20, 20, requires_grad=True)
    logits = torch.randn(1, 30, 20, 20)
    largest = watch_inside(reference, monkeypatch, logits)
    spatial_gather(features, logits, backend="reference").sum().backward()
    assert largest.numel == 30 * positions


def test_saved_for_backward_beyond_the_inputs_is_the_output() -> None:
    inputs: GatherInputs = make_gather_inputs(GatherCase(1, 8, 30, (40, 40)))
    storages: dict[int, int] = {}

    def pack(t: torch.Tensor) -> torch.Tensor:
        storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    def saved(gather) -> int:
        storages.clear()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            gather(inputs.features, inputs.logits)
        for given in (inputs.features, inputs.logits):
            storages.pop(given.untyped_storage().data_ptr(), None)
        return sum(storages.values())

    assert saved(spatial_gather) == 4 * 30 * (8 + 1)
    assert saved(naive_gather) == 4 * 1600 * 30  # all weights


def test_too_many_regions_or_channels_are_refused_by_compiled_back_ends_only() -> None:
    for channels, regions in ((1025, 2), (2, 513)):
        maps = torch.randn(1, channels, 2, 2), torch.randn(1, regions, 2, 2)
        told = explain(spatial_gather, *maps)
        assert told.chosen == "reference"
        assert "up to 1024 channels and 512 regions" in told.reasons["cpu"]
        with pytest.raises(NotImplementedError, match="up to 1024 channels and 512 regions"):
            spatial_gather(*maps, backend="cpu")
        with pytest.warns(UserWarning, match="no compiled back end"):
            spatial_gather(*maps)
