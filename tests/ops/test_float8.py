# SPDX-License-Identifier: MIT
"""Attention in 8 bits as users and torch see it: the flag, refusals, errors, the op."""

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from ocnet.ops import _hopper, explain, oc_attention
from ocnet.ops._backends import SUPPORTED
from ocnet.ops.oc_attention import float8_cuda, float8_reference
from ocnet.ops.oc_attention.problem import Float8Call, Problem
from ocnet.ops.oc_attention.reference import naive_attention
from ocnet.testing import FEATURES, AttentionCase, make_inputs
from tests.ops.float8_bounds import allowed_difference

OP = torch.ops.ocnet.oc_attention_fp8.default
HALF = torch.bfloat16


@pytest.fixture(
    params=[
        "reference",
        pytest.param("emulated", marks=pytest.mark.native),
        pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.native]),
    ]
)
def subject(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def backend(subject: str, request: pytest.FixtureRequest, monkeypatch) -> str:
    """The name that the op knows it by; the CUDA back end in the emulator takes CPU tensors."""
    if subject == "emulated":
        request.getfixturevalue("emulator").configure()
        monkeypatch.setattr(float8_cuda._BACKEND, "_half", "emulated")
        monkeypatch.setattr(
            float8_cuda,
            "supports",
            lambda problem: float8_cuda._refuse(problem, "cpu") or SUPPORTED,
        )
    if subject == "cuda" and torch.cuda.get_device_capability() != _hopper.CAPABILITY:
        pytest.skip("8-bit products are for compute capability 9.0")
    return "reference" if subject == "reference" else "cuda"


def maps_of(case: AttentionCase, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    x = make_inputs(case, device=device, requires_grad=False)
    return x.query, x.key, x.value


def small_maps(dtype: torch.dtype = HALF) -> tuple[Tensor, Tensor, Tensor]:
    return maps_of(AttentionCase(1, 6, 10, (4, 5), (3, 7), dtype))


def error(actual: Tensor, exact: Tensor) -> float:
    return float((actual.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("layout", ["nchw", "channels_last", "cropped", "expanded"])
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "separate"])
def test_maps_of_any_layout(backend: str, device: str, layout: str, shared: bool) -> None:
    for dtype in (torch.bfloat16, torch.float16):
        maps = maps_of(AttentionCase(2, 20, 12, (5, 7), (6, 4), dtype, layout, shared), device)
        out = oc_attention(*maps, fp8=True, backend=backend)
        assert out.dtype == dtype
        assert out.stride() == oc_attention(*maps, backend="reference").stride()
        rows = [each.cpu().flatten(2).mT for each in (*maps, out)]
        key = None if shared else rows[1]
        call = Float8Call(rows[0], key, rows[2], 20**-0.5, torch.empty_like(rows[3]))
        float8_reference.forward(call)
        assert bool(
            ((rows[3].double() - call.out.double()).abs() <= allowed_difference(call)).all()
        )


# What docs/ops/oc_attention.md says of 48 x 48 pixels, with values of the same model and of noise,
# and a tenth more.
ERRORS = {
    "activated": (1.3e-2, 5.3e-2),
    "clustered": (4.0e-3, 5.2e-2),
    "smooth": (6.8e-3, 4.5e-2),
    "peaked": (2.7e-2, 2.7e-2),
}


@pytest.mark.parametrize("features", FEATURES)
def test_errors_are_those_of_the_docs(features: str) -> None:
    generator = torch.Generator().manual_seed(0)
    shape = (1, 256, 48, 48)
    query = FEATURES[features](shape, generator).to(HALF)
    for model, documented in zip((features, "peaked"), ERRORS[features], strict=True):
        value = FEATURES[model](shape, generator).to(HALF)
        out = oc_attention(query, query, value, fp8=True, backend="reference")
        exact = naive_attention(query.double(), query.double(), value.double())
        assert documented / 1.1 <= error(out, exact) <= documented * 1.1


def test_rounding_is_what_the_docstring_says() -> None:
    numbers = torch.tensor([[[448.0, -3.0], [0.0, 0.0], [1.0, 0.6]]])
    tokens, scales = float8_reference.quantised(numbers, 2)
    assert scales.flatten().tolist() == pytest.approx([1.0, 1.0, 1 / 448])
    # 0.6 * 448 = 268.8 lies between 256 and 288.
    assert tokens.tolist() == [[[448.0, -3.0], [0.0, 0.0], [448.0, 256.0]]]
    channels, scales = float8_reference.quantised(numbers, 1)
    assert scales.flatten().tolist() == pytest.approx([1.0, 3 / 448])
    assert channels[0, :, 1].tolist() == [-448.0, 0.0, 88.0]


def test_weights_that_are_equal_stay_so() -> None:
    """A divisor of exact weights would show: 1/3 is no number of e4m3."""
    query = torch.zeros(1, 4, 1, 3, dtype=HALF)
    value = torch.ones(1, 2, 1, 3, dtype=HALF)
    out = oc_attention(query, query, value, fp8=True, backend="reference")
    assert torch.equal(out, torch.ones_like(out))


def test_shared_scores_are_symmetric() -> None:
    """With the identity as value, the result is the matrix, whose logarithms are symmetric but for
    the divisors."""
    query = maps_of(AttentionCase(1, 16, 1, (4, 4), dtype=torch.float16, shared=True))[0] * 0.3
    own = torch.eye(16, dtype=torch.float16).reshape(1, 16, 4, 4)
    matrix = oc_attention(query, query, own, fp8=True, backend="reference").flatten(2)[0].double()
    skew = matrix.log() - matrix.log().mT
    # log P_ij - log P_ji = log Z_j - log Z_i, up to the rounding of weights to 4 bits.
    divisors = skew.mean(0)
    assert float((skew - (divisors[None] - divisors[:, None])).abs().max()) <= 4 * 2.0**-4


@pytest.mark.filterwarnings("ignore:oc_attention")
def test_auto_keeps_the_flag() -> None:
    maps = small_maps()
    automatic = oc_attention(*maps, fp8=True)
    assert torch.equal(automatic, oc_attention(*maps, fp8=True, backend="reference"))
    assert not torch.equal(automatic, oc_attention(*maps))


def test_auto_says_that_the_slow_one_runs() -> None:
    with pytest.warns(UserWarning, match="no compiled back end takes this call"):
        oc_attention(*small_maps(), fp8=True)


def test_back_ends_without_8_bits_refuse() -> None:
    maps = small_maps()
    for name in ("cpu", "triton"):
        with pytest.raises(NotImplementedError, match=f"got '{name}': it has no 8-bit products"):
            oc_attention(*maps, fp8=True, backend=name)
    with pytest.raises(NotImplementedError, match="got 'cuda': it takes CUDA tensors"):
        oc_attention(*maps, fp8=True, backend="cuda")


def test_explain() -> None:
    maps = small_maps()
    told = explain(oc_attention, *maps, fp8=True)
    assert told.chosen == "reference"
    assert told.reasons["cpu"] == told.reasons["triton"] == "it has no 8-bit products"
    assert "CUDA tensors" in told.reasons["cuda"]
    assert explain(oc_attention, *maps, fp8=True, backend="cpu").chosen is None
    assert explain(oc_attention, *maps).reasons["cpu"] != told.reasons["cpu"]


@pytest.mark.parametrize(
    ("e", "ev", "dtype", "words"),
    [
        (257, 8, HALF, "up to 256 channels of queries and 512 of values, not E=257, Ev=8"),
        (513, 8, HALF, "up to 512 channels"),
        (8, 8, torch.float32, "no 8-bit products of torch.float32"),
        (8, 8, torch.float64, "no 8-bit products of torch.float64"),
    ],
)
def test_what_the_kernels_do_not_take(e: int, ev: int, dtype: torch.dtype, words: str) -> None:
    problem = Problem(torch.device("cuda"), dtype, 1, 4, 4, e, ev, True)
    refusal = float8_cuda._refuse(problem, "cuda")
    assert refusal is not None
    assert words in refusal.reason


@pytest.mark.parametrize(
    ("built", "capability", "words"),
    [
        (False, (9, 0), "the library was built without code for sm_90a"),
        (True, (10, 0), "for compute capability 9.0, not for some GPU"),
        (True, (9, 0), "not yet confirmed on a device"),
    ],
)
def test_devices(monkeypatch, built: bool, capability: tuple[int, int], words: str) -> None:
    monkeypatch.setattr(float8_cuda._BACKEND, "supports", lambda problem: SUPPORTED)
    monkeypatch.setattr(float8_cuda, "_is_built", lambda: built)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "some GPU")
    problem = Problem(torch.device("cuda"), HALF, 1, 4, 4, 8, 8, True)
    support = float8_cuda.supports(problem)
    assert support.ok == (built and capability == (9, 0))
    assert words in support.reason


@pytest.mark.parametrize("which", [0, 1, 2])
def test_gradients_are_refused(which: int) -> None:
    maps = small_maps()
    maps[which].requires_grad_()
    words = "oc_attention: fp8 must be False where a gradient is wanted, got True"
    with pytest.raises(ValueError, match=words):
        oc_attention(*maps, fp8=True, backend="reference")
    with torch.no_grad():
        out = oc_attention(*maps, fp8=True, backend="reference")
    assert not out.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wide_maps_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match="query must be one of bfloat16, float16, got float"):
        oc_attention(*small_maps(dtype), fp8=True)


def test_autocast_narrows_wide_maps() -> None:
    maps = small_maps(torch.float32)
    with torch.autocast("cpu", HALF):
        out = oc_attention(*maps, fp8=True, backend="reference")
    assert torch.equal(
        out, oc_attention(*(each.to(HALF) for each in maps), fp8=True, backend="reference")
    )


def test_float64_stays_wide_under_autocast_and_is_refused() -> None:
    with torch.autocast("cpu", HALF), pytest.raises(NotImplementedError, match="of 16 bits"):
        oc_attention(*small_maps(torch.float64), fp8=True, backend="reference")


def test_no_images(backend: str, device: str) -> None:
    maps = [torch.empty(0, 4, 3, 3, dtype=HALF, device=device)] * 3
    assert oc_attention(*maps, fp8=True, backend=backend).shape == (0, 4, 3, 3)


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "separate"])
@pytest.mark.parametrize("layout", ["nchw", "channels_last", "cropped"])
def test_opcheck(backend: str, device: str, layout: str, shared: bool) -> None:
    maps = maps_of(AttentionCase(2, 6, 10, (4, 5), (3, 7), HALF, layout, shared), device)
    opcheck(OP, (maps[0], None if shared else maps[1], maps[2], None, backend))


@pytest.mark.parametrize("dynamic", [True, False])
def test_compile_fullgraph(backend: str, device: str, dynamic: bool) -> None:
    torch._dynamo.reset()

    def step(query: Tensor, value: Tensor) -> Tensor:
        keys = torch.nn.functional.leaky_relu(query)
        return oc_attention(keys, keys, value, fp8=True, backend=backend) * 2

    compiled = torch.compile(step, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for size in ((4, 5), (7, 3), (6, 6)):
        query, _, value = maps_of(AttentionCase(1, 6, 10, size, dtype=HALF, shared=True), device)
        assert torch.equal(compiled(query, value), step(query, value))


def test_flops_are_counted() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    counts = []
    for fp8 in (False, True):
        with FlopCounterMode(display=False) as counter:
            oc_attention(*small_maps(), fp8=fp8, backend="reference")
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0
