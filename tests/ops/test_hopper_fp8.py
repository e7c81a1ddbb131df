# SPDX-License-Identifier: MIT
"""Attention in 8 bits on Hopper, at the level of the native op: on a GPU and in the emulator.

The oracle is the eager back end, which rounds the same numbers in the same way.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ocnet.ops import _hopper
from ocnet.ops.oc_attention import float8_reference
from ocnet.ops.oc_attention.problem import Float8Call
from ocnet.testing import FEATURES
from tests.ops.float8_bounds import allowed_difference
from tests.ops.test_cuda_kernels import INF, NAN, place

pytestmark = pytest.mark.native

DTYPES = [torch.bfloat16, torch.float16]
only_emulated = pytest.mark.parametrize("subject", ["emulated"], indirect=True)
Maps = tuple[Tensor, Tensor | None, Tensor]


@pytest.fixture(params=["emulated", pytest.param("cuda", marks=pytest.mark.gpu)])
def subject(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(autouse=True)
def _only_hopper(subject: str) -> None:
    if subject == "cuda" and torch.cuda.get_device_capability() != _hopper.CAPABILITY:
        pytest.skip("8-bit products are for compute capability 9.0")


@pytest.fixture
def attend(subject: str, backend: str, device: str) -> Callable[..., Tensor]:
    op = getattr(torch.ops, f"ocnet_{subject}").oc_attention_fp8_fwd

    def attend(maps: Maps, scale: float | None = None, layout: str = "channels_last") -> Tensor:
        query, key, value = (None if t is None else place(t, layout, device) for t in maps)
        empty = torch.full((*query.shape[:2], value.shape[2]), NAN, dtype=query.dtype)
        out = place(empty, layout, device)
        op(query, key, value, scale_of(maps) if scale is None else scale, out)
        return out.cpu()

    return attend


def scale_of(maps: Maps) -> float:
    return maps[0].shape[-1] ** -0.5


def draw(n: int, l: int, s: int | None, e: int, ev: int, dtype=torch.bfloat16) -> Maps:
    """Draw maps of noise; without ``s`` the keys are the queries."""

    def noise(tokens: int, channels: int) -> Tensor:
        return torch.randn(n, tokens, channels, dtype=torch.float64).to(dtype)

    return noise(l, e), None if s is None else noise(s, e), noise(l if s is None else s, ev)


def call_of(maps: Maps, scale: float | None = None) -> Float8Call:
    query, key, value = maps
    out = torch.full((*query.shape[:2], value.shape[2]), NAN, dtype=query.dtype)
    return Float8Call(query, key, value, scale_of(maps) if scale is None else scale, out)


def expected(maps: Maps, scale: float | None = None) -> Tensor:
    call = call_of(maps, scale)
    float8_reference.forward(call)
    return call.out


def assert_as_reference(
    out: Tensor, maps: Maps, subject: str = "emulated", scale: float | None = None
) -> None:
    # Tensor cores keep about 14 bits of a sum, of whose smaller terms they cut what is below.
    kept = {} if subject == "emulated" else {"product": 2.0**-11}
    allowed = allowed_difference(call_of(maps, scale), **kept)
    apart = (out.double() - expected(maps, scale).double()).abs()
    assert bool((apart <= allowed).all()), (
        f"{float((apart / allowed).max()):.1f} of what is allowed"
    )


def error(actual: Tensor, exact: Tensor) -> float:
    return float((actual.double() - exact).norm() / exact.norm())


# One tile of keys and several, whole ones and tails; rows of one block of a
# cluster, of both, of several tiles; channels of one line and two, values of one part, two, slices.
SIZES = [
    (1, 1, 1, 1, 1),
    (1, 5, 3, 7, 9),
    (2, 50, 128, 128, 128),
    (1, 128, 129, 40, 20),
    (1, 129, 159, 129, 130),
    (2, 257, 70, 16, 256),
    (1, 20, 384, 256, 64),
    (1, 40, 300, 200, 300),
    (1, 33, 17, 256, 512),
]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_as_the_reference_in_every_layout(attend, subject: str, sizes: tuple[int, ...]) -> None:
    for dtype, layout in zip(DTYPES, ("nchw", "gaps"), strict=True):
        maps = draw(*sizes, dtype)
        out = attend(maps)
        assert_as_reference(out, maps, subject)
        assert torch.equal(attend(maps, layout=layout), out)


@pytest.mark.parametrize("tokens", [1, 100, 300])
def test_shared_keys(attend, subject: str, tokens: int) -> None:
    for dtype in DTYPES:
        maps = draw(2, tokens, None, 70, 40, dtype)
        out = attend(maps)
        assert_as_reference(out, maps, subject)
        assert torch.equal(out, attend((maps[0], maps[0].clone(), maps[2])))


@pytest.mark.parametrize("scale", [0.0, -0.5, 1.0, 3.0])
def test_any_scale(attend, subject: str, scale: float) -> None:
    maps = draw(1, 60, 200, 24, 20)
    assert_as_reference(attend(maps, scale), maps, subject, scale)


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "separate"])
@pytest.mark.parametrize("features", FEATURES)
def test_models_of_features(attend, subject: str, features: str, shared: bool) -> None:
    generator = torch.Generator().manual_seed(0)

    def drawn() -> Tensor:
        pixels = FEATURES[features]((1, 64, 12, 13), generator)
        return pixels.flatten(2).mT.to(torch.bfloat16)

    query = drawn()
    maps = (query, None if shared else drawn(), drawn())
    out = attend(maps)
    assert_as_reference(out, maps, subject)
    key = query if shared else maps[1]
    scores = scale_of(maps) * (query.double() @ key.double().mT)
    assert error(out, scores.softmax(-1) @ maps[2].double()) <= 6e-2


def test_bounds_are_narrow() -> None:
    """What is allowed between two computations is far below what 8 bits cost."""
    maps = draw(2, 100, 300, 64, 40)
    allowed = allowed_difference(call_of(maps))
    scores = scale_of(maps) * (maps[0].double() @ maps[1].double().mT)
    cost = expected(maps).double() - scores.softmax(-1) @ maps[2].double()
    assert float(allowed.norm()) <= float(cost.norm()) / 3


def test_tokens_far_apart_in_size(attend, subject: str) -> None:
    """Every token has a scale of its own, and every channel of values."""
    query, key, value = draw(2, 70, 150, 30, 20)
    sizes = torch.exp2(torch.arange(150) % 9 - 4.0).to(key.dtype)
    key = key * sizes[:, None]
    query = query / sizes[:70, None]
    value = value * sizes[:20]
    maps = (query, key, value)
    assert_as_reference(attend(maps, 0.01), maps, subject, 0.01)


def test_the_smallest_numbers_have_scales(attend, subject: str) -> None:
    query, key, value = draw(1, 40, 50, 20, 10)
    tiny, scale = 2.0**-127, 2.0**120
    maps = (query, key * tiny, value * tiny)
    assert_as_reference(attend(maps, scale), maps, subject, scale)


def test_largest_values_of_many_keys(attend, subject: str) -> None:
    """More tiles of keys than chunks whose maxima are compared: a chunk has several tiles then."""
    query, key, value = draw(1, 8, 33 * 128, 8, 70)
    value[0, [5, 2000, -1], [1, 2, 69]] = 100
    maps = (query, key, value)
    assert_as_reference(attend(maps), maps, subject)


def test_zeros_are_not_nan(attend, subject: str) -> None:
    query, key, value = draw(2, 50, 140, 30, 20)
    query[:, 3], key[:, 130], value[..., 7] = 0, 0, 0
    maps = (query, key, value)
    out = attend(maps)
    assert_as_reference(out, maps, subject)
    assert bool((out[..., 7] == 0).all())
    nothing = (query * 0, key * 0, value * 0)
    assert bool((attend(nothing) == 0).all())


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("which", ["query", "key", "value"])
def test_what_is_not_finite_becomes_nan(attend, which: str, bad: float) -> None:
    query, key, value = draw(2, 50, 140, 30, 20)
    {"query": query, "key": key, "value": value}[which][1, 7, 3] = bad
    out = attend((query, key, value))
    touched = torch.zeros_like(out, dtype=torch.bool)
    where = {"query": (1, 7), "key": (1,), "value": (1, slice(None), 3)}
    touched[where[which]] = True
    assert torch.equal(out.isnan(), touched)
    assert bool(out[~touched].isfinite().all())
    assert torch.equal(expected((query, key, value)).isnan(), touched)


def test_scores_out_of_range(attend) -> None:
    """A row whose scores overflow is NaN if one does upwards; those that do downwards weigh nothing."""
    query, key, value = draw(1, 40, 150, 8, 5)
    query[0, 3] = key[0, 20:] = 1
    key[0, 20:] *= -1e30
    key[0, :20] = 1
    query[0, 3] *= 1e30
    out = attend((query.abs(), key, value), 1.0)
    assert bool(out[0, 3].isfinite().all())
    out = attend((-query.abs(), key, value), 1.0)
    assert bool(out[0, 3].isnan().all())


@only_emulated
@pytest.mark.parametrize("sizes", [(1, 300, 900, 24, 40), (1, 30, 900, 24, 300)], ids=str)
@pytest.mark.parametrize("multiprocessors", [14, 132])
def test_tiles_that_are_cut(attend, emulator, multiprocessors: int, sizes: tuple[int, ...]) -> None:
    """Parts of tiles, of rows or of slices, which a second kernel adds."""
    emulator.configure(multiprocessors=multiprocessors)
    maps = draw(*sizes)
    assert_as_reference(attend(maps), maps)
    assert any("combine" in launch.kernel for launch in emulator.launches())


@only_emulated
def test_whole_tiles_are_not_combined(attend, emulator) -> None:
    emulator.configure(multiprocessors=2)
    maps = draw(1, 256, 256, 40, 30)
    assert_as_reference(attend(maps), maps)
    assert not any("combine" in launch.kernel for launch in emulator.launches())


@only_emulated
@pytest.mark.parametrize(
    ("channels", "tile"),
    [
        ((128, 128), "128, 128"),
        ((100, 129), "128, 256"),
        ((129, 128), "256, 128"),
        ((200, 300), "256, 256"),
    ],
)
def test_tiles_are_those_of_the_table(attend, emulator, channels, tile: str) -> None:
    emulator.configure()
    attend(draw(1, 3, 4, *channels))
    (kernel,) = (each.kernel for each in emulator.launches() if "fp8_fwd" in each.kernel)
    assert f"{tile}>" in kernel


def test_the_same_bits_every_time(attend, subject: str, request: pytest.FixtureRequest) -> None:
    maps = draw(2, 300, 400, 130, 70)
    first = attend(maps)
    for seed in range(1, 5):
        if subject == "emulated":
            request.getfixturevalue("emulator").configure(seed=seed)
        assert torch.equal(attend(maps), first)


def test_images_have_scales_of_their_own(attend) -> None:
    query, key, value = draw(3, 40, 130, 20, 30)
    value = value * torch.tensor([1, 100, 0.01], dtype=value.dtype)[:, None, None]
    together = attend((query, key, value))
    for i in range(3):
        assert torch.equal(
            together[i : i + 1], attend((query[i : i + 1], key[i : i + 1], value[i : i + 1]))
        )


def test_expanded_images(attend, subject: str, device: str) -> None:
    """A batch stride of zero."""
    maps = draw(1, 30, 40, 20, 10)
    query, key, value = (t.to(device).expand(3, -1, -1) for t in maps)
    out = torch.full((3, 30, 10), NAN, dtype=query.dtype, device=device)
    op = getattr(torch.ops, f"ocnet_{subject}").oc_attention_fp8_fwd
    op(query, key, value, scale_of(maps), out)
    assert torch.equal(out.cpu(), attend(maps).expand(3, -1, -1))


REFUSED = [
    ({"query": (1, 4, 257), "key": (1, 5, 257)}, "query must have at most 256 channels, got 257"),
    ({"value": (1, 5, 513), "out": (1, 4, 513)}, "value must have at most 512 channels, got 513"),
    ({"key": (1, 6, 8)}, r"key must have shape \(1, 5, 8\), got \(1, 6, 8\)"),
    (
        {"value": (2, 5, 8)},
        r"value must have shape \(1, 5, 8\), got \(2, 5, 8\)|key must have shape",
    ),
    ({"out": (1, 5, 8)}, r"out must have shape \(1, 4, 8\), got \(1, 5, 8\)"),
    ({"query": (4, 8)}, "query must have 3 dimensions, got 2"),
]


@pytest.mark.parametrize(("shapes", "message"), REFUSED, ids=lambda each: str(each)[:40])
def test_refusals(subject: str, backend: str, device: str, shapes, message: str) -> None:
    legal = {"query": (1, 4, 8), "key": (1, 5, 8), "value": (1, 5, 8), "out": (1, 4, 8)}
    made = [
        torch.zeros(shape, dtype=torch.bfloat16, device=device)
        for shape in (legal | shapes).values()
    ]
    op = getattr(torch.ops, f"ocnet_{subject}").oc_attention_fp8_fwd
    with pytest.raises(RuntimeError, match=f"oc_attention_fp8_fwd: ({message})"):
        op(*made[:3], 1.0, made[3])


def test_other_dtypes_are_refused(subject: str, backend: str, device: str) -> None:
    op = getattr(torch.ops, f"ocnet_{subject}").oc_attention_fp8_fwd
    maps = [torch.zeros(1, 4, 8, device=device) for _ in range(3)]
    with pytest.raises(RuntimeError, match="query must have dtype BFloat16 or Half, got Float"):
        op(maps[0], None, maps[1], 1.0, maps[2])
