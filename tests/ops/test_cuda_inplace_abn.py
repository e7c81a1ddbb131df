# SPDX-License-Identifier: MIT
"""The CUDA kernels of in-place ABN, at the level of the native ops: on a GPU and in the emulator.

What every back end must do is in test_inplace_abn.py, which both go through as well.
"""

import dataclasses

import pytest
import torch

from ocnet.ops.inplace_abn.problem import ELU, IDENTITY, LEAKY_RELU, RELU
from tests.ops.abn_calls import (
    Call,
    assert_same_bits,
    assert_within_rounding,
    exact_forward,
    forward_sizes,
)
from tests.ops.abn_running import (
    BIG,
    FAMILIES,
    LITTLE,
    NAN,
    SUBJECTS,
    families,
    kernels,
    only_emulated,
)

pytestmark = pytest.mark.native

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@pytest.fixture(params=SUBJECTS)
def subject(request: pytest.FixtureRequest) -> str:
    return request.param


# --- each family of kernels ---


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("length", [1, 7, 49, 64, 33 * 45])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_planes_that_stay_on_chip(runner, dtype: torch.dtype, length: int, residual: bool) -> None:
    runner.check(Call((3, 5, length), dtype, residual=residual, prelu=True))


@only_emulated
@pytest.mark.parametrize("cluster", [1, 2, 4, 8])
@pytest.mark.parametrize("length", [49 * 15, 64 * 12])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_clusters_share_a_channel(
    runner, emulator, configure, dtype: torch.dtype, length: int, cluster: int
) -> None:
    """As many blocks as a channel needs, where a block has little memory."""
    width = 16 // dtype.itemsize
    call = Call((3, 2, length), dtype, residual=cluster == 4)
    tensors = runner.draw(call)

    def limit_for(maps: int) -> int:
        # From more to less: what is left over is where several blocks share a multiprocessor.
        for limit in range(99 * 1024, 2048, -128):
            plan = emulator.abn_plan_slab(*call.shape, width, maps, limit, cluster > 1)
            if plan.cluster == cluster and plan.team_slots > 0:
                return limit
        raise AssertionError(f"no plan has clusters of {cluster}")

    configure(shared_limit=limit_for(1), clusters=cluster > 1)
    forward = runner.check_forward(call, tensors)
    assert [launch.cluster_blocks for launch in emulator.launches()] == [cluster]
    configure(shared_limit=limit_for(3 if call.residual else 2), clusters=cluster > 1)
    runner.check_backward(call, tensors, forward)
    assert [launch.cluster_blocks for launch in emulator.launches()] == [cluster]
    assert kernels(emulator) == ["bwd_slab"]


@only_emulated
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("shape", [BIG, (2, 2, 33 * 167), (9, 2, 1300)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_planes_that_stream(
    runner, emulator, configure, dtype: torch.dtype, shape: tuple[int, ...], residual: bool
) -> None:
    configure(**LITTLE)
    runner.check(Call(shape, dtype, residual=residual, prelu=True))
    streaming = ["stats_planes", "fwd_planes", "bwd_reduce_planes", "bwd_apply_planes"]
    assert kernels(emulator) == streaming
    if dtype.itemsize >= 4:
        assert all(launch.blocks > shape[1] for launch in emulator.launches())


@pytest.mark.parametrize("channels", [1, 2, 4, 7, 8, 12, 64, 200])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows(runner, dtype: torch.dtype, channels: int) -> None:
    """Of 1 to 8 rows to whole vectors, the last of them cut, and one to four tiles."""
    runner.check(Call((45, channels), dtype, residual=channels == 7, prelu=True))


@pytest.mark.parametrize("rows", [2, 3, 7, 8, 9])
def test_few_rows(runner, rows: int) -> None:
    for dtype in (torch.bfloat16, torch.float64):
        runner.check(Call((rows, 3), dtype, residual=True))


@pytest.mark.parametrize(
    ("shape", "dtype"), [((300, 64), torch.float32), ((4400, 15), torch.bfloat16)], ids=str
)
def test_rows_in_parts(runner, subject: str, request, shape: tuple[int, ...], dtype) -> None:
    runner.check(Call(shape, dtype))
    if subject == "emulated":
        emulator = request.getfixturevalue("emulator")
        # Few records are merged by the kernels that stream, many by one before them.
        many = shape[1] == 15
        expected = ["stats_rows"] + ["merge"] * many + ["fwd_rows"]
        expected += ["bwd_reduce_rows"] + ["finish"] * many + ["bwd_apply_rows"]
        assert kernels(emulator) == expected


@only_emulated
def test_without_clusters_what_fits_no_block_streams(runner, emulator, configure) -> None:
    call = Call((2, 1, 7000), torch.float32)
    configure(shared_limit=99 * 1024, clusters=False)
    runner.check(call)
    assert kernels(emulator) == ["fwd_slab", "bwd_reduce_planes", "bwd_apply_planes"]
    configure(shared_limit=99 * 1024)
    runner.check(call)
    assert kernels(emulator) == ["fwd_slab", "bwd_slab"]
    assert [launch.cluster_blocks > 1 for launch in emulator.launches()] == [True, True]


# --- what all of them do ---


@families
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("activation", "param"),
    [(IDENTITY, 1.0), (LEAKY_RELU, 0.01), (ELU, 1.0), (ELU, 0.5), (RELU, 0.0)],
)
def test_activations(
    runner, configure, family: str, training: bool, activation: int, param: float
) -> None:
    if activation == RELU and training:
        pytest.skip("has no inverse")
    shape, settings = FAMILIES[family]
    configure(**settings)
    for dtype in (torch.float32, torch.bfloat16):
        runner.check(Call(shape, dtype, activation, param, training, residual=family == "block"))


@families
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_frozen_statistics(runner, configure, family: str, dtype: torch.dtype) -> None:
    shape, settings = FAMILIES[family]
    configure(**settings)
    runner.check(Call(shape, dtype, training=False, residual=True, prelu=True))


@families
@pytest.mark.parametrize("scale", ["none", "abs", "signed"])
def test_kinds_of_scales(runner, configure, family: str, scale: str) -> None:
    shape, settings = FAMILIES[family]
    configure(**settings)
    for training in (True, False):
        call = Call(shape, torch.float64, training=training)
        runner.check(dataclasses.replace(call, affine=scale != "none", signed=scale == "signed"))


@families
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_over_the_input_changes_no_bit(
    runner, configure, family: str, training: bool, dtype: torch.dtype
) -> None:
    shape, settings = FAMILIES[family]
    configure(**settings)
    call = Call(shape, dtype, training=training, residual=True)
    tensors = runner.draw(call)
    apart = runner.forward(call, tensors)
    assert_same_bits(runner.forward(call, tensors, inplace=True), apart)
    if training:
        assert_same_bits(runner.forward(call, tensors, moves=True), apart)


@only_emulated
@families
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_schedule_changes_no_bit(runner, configure, family: str, dtype: torch.dtype) -> None:
    shape, settings = FAMILIES[family]
    call = Call(shape, dtype, ELU, 1.0, residual=True)
    runs = []
    for seed in range(3):
        configure(seed=seed, **settings)
        runs.append(runner.both(call, inplace=seed == 2))
    for run in runs[1:]:
        assert_same_bits(run, runs[0])


@only_emulated
@pytest.mark.parametrize("cluster_limit", [4096, 6144])
def test_the_schedule_of_clusters_changes_no_bit(
    runner, emulator, configure, cluster_limit: int
) -> None:
    call = Call((3, 2, 735), torch.bfloat16)
    runs = []
    for seed in range(4):
        configure(seed=seed, shared_limit=cluster_limit)
        runs.append(runner.both(call))
        assert kernels(emulator) == ["fwd_slab", "bwd_slab"]
        assert all(launch.cluster_blocks > 1 for launch in emulator.launches())
    for run in runs[1:]:
        assert_same_bits(run, runs[0])


@families
@pytest.mark.parametrize("training", [True, False])
def test_nan_stays_in_its_channel(runner, configure, family: str, training: bool) -> None:
    """In training all of the channel, else the number itself; others are as if it were not there."""
    shape, settings = FAMILIES[family]
    configure(**settings)
    call = Call(shape, torch.bfloat16, residual=True, training=training)
    tensors = runner.draw(call)
    clean = runner.forward(call, tensors)
    clean |= runner.backward(call, tensors, clean)
    last = (-1, 1, -1) if len(shape) == 3 else (-1, 1)
    tensors.x[last] = NAN
    spoilt = runner.forward(call, tensors, inplace=True)
    spoilt |= runner.backward(call, tensors, spoilt)
    for name, tensor in spoilt.items():
        axis = 1 if tensor.dim() > 1 else 0
        own = tensor.select(axis, 1)
        others = [c for c in range(shape[1]) if c != 1]
        kept, expected = (t.index_select(axis, torch.tensor(others, device=t.device))
                          for t in (tensor, clean[name]))  # fmt: skip
        assert torch.equal(kept, expected), name
        if name == "grad_residual":
            continue  # dy, wherever the sign of NaN leads
        if training and name != "grad_bias":
            assert bool(own.isnan().all()), name
        elif name in ("out", "grad_x"):
            assert bool(tensor[last].isnan()) == (name == "out"), name
            assert int(own.isnan().sum()) == int(name == "out"), name


@families
@pytest.mark.parametrize("training", [True, False])
def test_a_slope_without_an_inverse_makes_nan(
    runner, configure, family: str, training: bool
) -> None:
    """Of its channel, in everything that there is."""
    shape, settings = FAMILIES[family]
    configure(**settings)
    call = Call(shape, torch.float32, prelu=True, residual=True, training=training)
    tensors = runner.draw(call)
    for slope in (0.0, -0.5, NAN, torch.inf):
        tensors.slope[1] = slope
        out = runner.forward(call, tensors)
        out["out"].abs_()  # a NaN has any sign
        results = {"out": out["out"]} | runner.backward(call, tensors, out)
        for name, tensor in results.items():
            spoilt = tensor.movedim(1, 0).flatten(1) if tensor.dim() > 1 else tensor[:, None]
            assert spoilt.isnan().all(1).nonzero().flatten().tolist() == [1], name
            assert spoilt.isnan().any(1).nonzero().flatten().tolist() == [1], name


@families
def test_the_branch_is_the_sign_of_what_was_stored(runner, configure, family: str) -> None:
    """-0 is negative, +0 is not, and the smallest slopes keep signs and stay finite."""
    shape, settings = FAMILIES[family]
    configure(**settings)
    call = Call(shape, torch.float16, param=1e-6, training=False, affine=False, mean=0.0)
    tensors = runner.draw(call)
    tensors.running_mean.zero_()
    tensors.x.mul_(1e-2).view(-1)[:4] = torch.tensor([0.0, -0.0, 1e-3, -1e-3])
    forward = runner.forward(call, tensors)
    out, sign = forward["out"], torch.signbit(tensors.x)
    assert torch.equal(torch.signbit(out), sign)
    assert bool((out[sign] == 0).any())
    grad = runner.backward(call, tensors, forward, wanted=["grad_x", "grad_bias"])["grad_x"]
    shares = (grad / tensors.grad_out)[tensors.grad_out != 0]
    assert torch.equal(shares.abs() > 0.01, ~sign[tensors.grad_out != 0])


@families
def test_the_smallest_slope_stays_finite(runner, configure, family: str) -> None:
    """Its inverse is infinite, and what it leaves of most numbers is -0."""
    shape, settings = FAMILIES[family]
    configure(**settings)
    call = Call(shape, torch.float32, param=1.5e-45, training=False)
    tensors = runner.draw(call)
    forward = runner.forward(call, tensors)
    assert bool((torch.signbit(forward["out"]) & (forward["out"] == 0)).any())
    for name, gradient in runner.backward(call, tensors, forward).items():
        assert bool(gradient.isfinite().all()), name


@families
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_saturated_elu_stays_finite(runner, configure, family: str, dtype: torch.dtype) -> None:
    shape, settings = FAMILIES[family]
    configure(**settings)
    call = Call(shape, dtype, ELU, 0.5)
    tensors = runner.draw(call)
    tensors.weight.fill_(50.0)
    forward = runner.check_forward(call, tensors)
    assert bool((forward["out"] == -0.5).any())
    for name, gradient in runner.check_backward(call, tensors, forward).items():
        assert bool(gradient.isfinite().all()), name


@families
def test_a_large_mean_leaves_the_variance_right(runner, configure, family: str) -> None:
    shape, settings = FAMILIES[family]
    configure(**settings)
    call = Call(shape, torch.float32, mean=1000.0)
    tensors = runner.draw(call)
    var = runner.forward(call, tensors)["var"].double().cpu()
    exact = exact_forward(call, tensors)["var"]
    # Means of a few numbers are rounded by up to 2^-15, which counts twice in a square of 1. Sums of
    # squares would be off by 2^-24 of a million.
    assert float((var / exact - 1).abs().max()) < 2 * 2 * 2**-15


def test_the_oracle_sees_a_wrong_number(runner) -> None:
    call = Call((2, 3, 49))
    tensors = runner.draw(call)
    exact = exact_forward(call, tensors)
    actual = runner.forward(call, tensors)
    actual["out"][0, 1, 3] += 1e-4
    with pytest.raises(AssertionError, match="out"):
        assert_within_rounding(actual, exact, forward_sizes(call, tensors, exact), 98)
