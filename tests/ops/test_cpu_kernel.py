# SPDX-License-Identifier: MIT
"""What is special to the C++ CPU kernel: tiles, threads, strides, memory, what no number may do."""

import ctypes
import itertools
from collections.abc import Iterator
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from ocnet.ops import _extension
from ocnet.testing import (
    AttentionCase,
    assert_as_accurate,
    assert_same_nonfinite,
    eager_results,
    make_inputs,
    oracle_results,
    run_op,
    summed_magnitudes,
)

pytestmark = [pytest.mark.native, pytest.mark.usefixtures("_cpu_kernels")]

INF, NAN = float("inf"), float("nan")
# Tokens of a resident block and of a streamed tile, and the channels of the widest panel (csrc/cpu).
RESIDENT, STREAM, PANEL = 96, 192, 32


class Call(NamedTuple):
    """Token matrices of one call, (N, tokens, channels)."""

    query: Tensor
    key: Tensor | None
    value: Tensor
    grad_out: Tensor
    scale: float


@pytest.fixture
def _pairs() -> Iterator[None]:
    """Multiply bfloat16 in pairs, step by step where the processor has no instruction for it."""
    function = ctypes.CDLL(str(_extension.load("cpu").path)).ocnet_cpu_pairs_in_steps
    function.argtypes, function.restype = [ctypes.c_bool], ctypes.c_bool
    if not function(True):
        pytest.skip("the kernels of pairs are built for AVX-512 only")
    yield
    function(False)


def make_call(n: int, l: int, s: int | None, e: int, ev: int, dtype=torch.float32) -> Call:
    def draw(tokens: int, channels: int) -> Tensor:
        return torch.randn(n, tokens, channels, dtype=torch.float64).to(dtype)

    keys = l if s is None else s
    key = None if s is None else draw(s, e)
    return Call(draw(l, e), key, draw(keys, ev), draw(l, ev), e**-0.5)


def run(call: Call, wanted: tuple[bool, bool, bool] = (True, True, True)) -> list[Tensor | None]:
    """Return out, lse, and the gradients of query, key and value where they are wanted."""
    query, key, value, grad_out, scale = call
    wide = torch.float64 if query.dtype == torch.float64 else torch.float32
    out, lse = torch.empty_like(grad_out), torch.empty(query.shape[:2], dtype=wide)
    rest = None if query.dtype == wide else torch.empty_like(out)
    torch.ops.ocnet_cpu.oc_attention_fwd(query, key, value, scale, False, out, lse, rest)
    grads = [
        torch.empty_like(t, memory_format=torch.contiguous_format) if w and t is not None else None
        for t, w in zip((query, key, value), wanted, strict=True)
    ]
    torch.ops.ocnet_cpu.oc_attention_bwd(
        grad_out, query, key, value, out, lse, rest, scale, False, *grads
    )
    return [out, lse, *grads]


def plain(call: Call) -> list[Tensor | None]:
    """Return the same by the plain formula, in the dtype of the call."""
    query, value = (t.detach().clone().requires_grad_() for t in (call.query, call.value))
    key = query if call.key is None else call.key.detach().clone().requires_grad_()
    scores = query @ key.mT * call.scale
    out = scores.softmax(-1) @ value
    out.backward(call.grad_out)
    grad_key = None if call.key is None else key.grad
    lse = scores.detach().logsumexp(-1)
    # The softmax of a row with a score of +inf is NaN, and so is its lse.
    lse[lse == INF] = NAN
    return [out.detach(), lse, query.grad, grad_key, value.grad]


def assert_same_bits(left: list[Tensor | None], right: list[Tensor | None]) -> None:
    for name, a, b in zip(("out", "lse", "query", "key", "value"), left, right, strict=True):
        if a is not None and b is not None:
            assert torch.equal(a, b), f"{name}: {int((a != b).sum())} of {a.numel()} differ"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("keys", [None, 401, 20], ids=["shared", "separate", "few"])
@pytest.mark.parametrize("n", [1, 3])
def test_same_bits_for_any_number_of_threads(n: int, keys: int | None, dtype) -> None:
    # Enough queries for several copies of the sums of few keys.
    call = make_call(n, 1301 if keys == 20 else 301, keys, 40, 24, dtype)
    expected = run(call)
    for threads in (2, 2, 3, 1):
        torch.set_num_threads(threads)
        assert_same_bits(run(call), expected)


@pytest.mark.parametrize("keys", [None, 7], ids=["shared", "separate"])
def test_a_batch_item_does_not_depend_on_the_others(keys: int | None) -> None:
    # More items than are packed together: the second round reuses the memory of the first.
    call = make_call(70, 5, keys, 3, 2)
    together = run(call)
    for item in (0, 1, 63, 64, 69):
        part = slice(item, item + 1)
        key = None if call.key is None else call.key[part]
        alone = run(Call(call.query[part], key, call.value[part], call.grad_out[part], call.scale))
        assert_same_bits(alone, [None if t is None else t[part] for t in together])


def check(case: AttentionCase) -> None:
    inputs = make_inputs(case)
    actual, oracle = run_op(inputs, "cpu").named(), oracle_results(inputs).named()
    eager = [results.named() for results in eager_results(inputs)]
    sizes = summed_magnitudes(inputs).named()
    keys = case.size if case.key_size is None else case.key_size
    terms = case.e + case.ev + case.size[1] + keys[1]
    for name, result in actual.items():
        runs = [results[name] for results in eager]
        assert_as_accurate(f"{case}: {name}", result, oracle[name], runs, sizes[name], terms)


def around(size: int) -> tuple[int, int, int]:
    return size - 1, size, size + 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_sizes_around_a_tile(dtype) -> None:
    for l, s in itertools.product(around(RESIDENT), around(STREAM)):
        check(AttentionCase(1, 7, 5, (1, l), (1, s), dtype=dtype))
    for l in (*around(RESIDENT), *around(STREAM), 2 * STREAM + 1):
        check(AttentionCase(1, 7, 5, (1, l), dtype=dtype, shared=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_few_keys_of_every_width(dtype) -> None:
    for s in (1, *around(12), *around(PANEL), *around(RESIDENT), 180):
        check(AttentionCase(1, 64, 32, (1, 109), (1, s), dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_channels_around_a_panel(dtype) -> None:
    for e, ev in itertools.product(around(PANEL), around(PANEL)):
        for shared in (True, False):
            check(AttentionCase(1, e, ev, (1, 50), dtype=dtype, shared=shared))


def spread(tensor: Tensor) -> Tensor:
    """Return the same numbers with gaps between them in every dimension."""
    wide = torch.full([3 * size + 1 for size in tensor.shape], NAN, dtype=tensor.dtype)
    view = wide[tuple(slice(1, 1 + 3 * size, 3) for size in tensor.shape)]
    return view.copy_(tensor)


LAYOUTS = {
    "channels_first": lambda t: t.mT.contiguous().mT,
    "tokens_first": lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
    "gaps": spread,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("channels", [(37, 19), (64, 32)], ids=["odd", "panels"])
@pytest.mark.parametrize("keys", [None, 197, 20], ids=["shared", "separate", "few"])
def test_strides_change_no_bit(keys: int | None, channels, layout: str, dtype) -> None:
    call = make_call(2, 101, keys, *channels, dtype)
    arrange = LAYOUTS[layout]
    tensors = [None if t is None else arrange(t) for t in call[:4]]
    assert_same_bits(run(Call(*tensors, call.scale)), run(call))


def test_expanded_inputs() -> None:
    call = make_call(3, 9, 11, 4, 5)
    query, key = call.query[:1].expand(3, -1, -1), call.key[:, :1].expand(-1, 11, -1)
    value, grad_out = (
        call.value[..., :1].expand(-1, -1, 5),
        call.grad_out[:1, :1, :1].expand(3, 9, 5),
    )
    views = Call(query, key, value, grad_out, call.scale)
    # A gradient has the shape of the expanded view; empty_like must not inherit its overlap.
    dense = Call(*(t.contiguous() for t in views[:4]), call.scale)
    query, key, value, _, scale = views
    out, lse = torch.empty(3, 9, 5), torch.empty(3, 9)
    grads = [torch.empty(t.shape) for t in (query, key, value)]
    torch.ops.ocnet_cpu.oc_attention_fwd(query, key, value, scale, False, out, lse, None)
    torch.ops.ocnet_cpu.oc_attention_bwd(
        grad_out, query, key, value, out, lse, None, scale, False, *grads
    )
    assert_same_bits([out, lse, *grads], run(dense))


@pytest.mark.parametrize("l", [96, 101, 107, 108])
@pytest.mark.parametrize("s", [1, 19, 33, 192])
def test_few_keys_in_place_read_and_write_their_own_elements(s: int, l: int) -> None:
    # Rows of whole panels are not copied; NaN around the inputs and a mark around the results.
    call = make_call(2, l, s, 64, 32)

    def between(tensor: Tensor, number: float) -> tuple[Tensor, Tensor]:
        n, tokens, channels = tensor.shape
        whole = torch.full((n, tokens + 2, channels + 32), number)
        own = whole[:, 1:-1, 16:-16]
        return whole, own.copy_(tensor)

    query, key, value, grad_out = (between(t, NAN)[1] for t in call[:4])
    wholes, own = zip(*(between(t, 7.0) for t in (grad_out, query, key, value)), strict=True)
    lse = torch.empty(2, l)
    torch.ops.ocnet_cpu.oc_attention_fwd(query, key, value, call.scale, False, own[0], lse, None)
    torch.ops.ocnet_cpu.oc_attention_bwd(
        grad_out, query, key, value, own[0], lse, None, call.scale, False, *own[1:]
    )
    assert_same_bits([own[0], lse, *own[1:]], run(call))
    for whole, results in zip(wholes, own, strict=True):
        results.fill_(7.0)
        assert bool((whole == 7.0).all())


def test_writes_only_its_own_elements() -> None:
    call = make_call(2, 99, None, 6, 7)
    results = [torch.full((2, 4 * 99, 3 * c), 7.0) for c in (7, 6, 7)]
    out, grad_query, grad_value = (t[:, 1::4, 2::3] for t in results)
    lse = torch.empty(2, 99)
    torch.ops.ocnet_cpu.oc_attention_fwd(
        call.query, None, call.value, call.scale, False, out, lse, None
    )
    torch.ops.ocnet_cpu.oc_attention_bwd(
        call.grad_out,
        call.query,
        None,
        call.value,
        out,
        lse,
        None,
        call.scale,
        False,
        grad_query,
        None,
        grad_value,
    )
    assert_same_bits([out, lse, grad_query, None, grad_value], run(call))
    for whole, own in zip(results, (out, grad_query, grad_value), strict=True):
        own.fill_(7.0)
        assert bool((whole == 7.0).all())


@pytest.mark.parametrize("keys", [None, 200, 21], ids=["shared", "separate", "few"])
def test_absent_gradients_change_no_bit(keys: int | None) -> None:
    call = make_call(2, 130, keys, 9, 11)
    expected = run(call)
    for wanted in itertools.product((False, True), repeat=3):
        results = run(call, wanted)
        present = (wanted[0], wanted[1] and keys is not None, wanted[2])
        assert tuple(t is not None for t in results[2:]) == present
        assert_same_bits(results, expected)


@pytest.mark.parametrize("number", [INF, -INF, NAN], ids=str)
@pytest.mark.parametrize(
    "where", ["query", "key", "value", "grad_out", "first tile", "last tile", "all keys"]
)
@pytest.mark.parametrize("keys", [None, 5, 2 * STREAM + 9], ids=["shared", "few", "many"])
def test_nonfinite_numbers_stay_where_the_formula_has_them(keys, where: str, number: float) -> None:
    call = make_call(1, RESIDENT + 8, keys, 4, 3)
    # Positive features: an infinite one gives scores of one sign.
    query, value = call.query.abs() + 0.5, call.value
    key = None if call.key is None else call.key.abs() + 0.5
    side = query if key is None else key
    if where == "query":
        query[0, 7, 1] = number
    elif where == "value":
        value[0, -1, 1] = number
    elif where == "grad_out":
        call.grad_out[0, 7, 1] = number
    else:
        rows = {"key": slice(1), "first tile": slice(STREAM), "last tile": slice(STREAM, None)}
        side[0, rows.get(where, slice(None)), 0] = number
    call = Call(query, key, value, call.grad_out, call.scale)
    names = ("out", "lse", "grad_query", "grad_key", "grad_value")
    for name, result, wanted in zip(names, run(call), plain(call), strict=True):
        if result is not None:
            assert_same_nonfinite(f"{where}: {name}", result, wanted)
            finite = wanted.isfinite()
            # Sums of a few hundred terms of order 1, four digits above their rounding.
            torch.testing.assert_close(result[finite], wanted[finite], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("where", [0, STREAM - 1, STREAM + 2])
def test_lse_is_nan_where_a_score_is_infinite(where: int) -> None:
    call = make_call(1, 3, STREAM + 5, 1, 1)
    key = torch.ones_like(call.key)
    key[0, where] = INF
    query = torch.tensor([1.0, -1.0, 2.0]).reshape(1, 3, 1)
    out, lse = run(call._replace(query=query, key=key), (False, False, False))[:2]
    assert lse.isnan().tolist() == [[True, False, True]]
    assert_same_nonfinite("out", out[..., 0], lse)


def test_lse_of_a_row_of_negative_infinities() -> None:
    call = make_call(1, 3, STREAM + 5, 1, 1)
    key = torch.full_like(call.key, -INF)
    lse = run(call._replace(query=torch.ones_like(call.query), key=key), (False, False, False))[1]
    assert lse.tolist() == [[-INF] * 3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_weights_to_the_last_digits(dtype) -> None:
    # Two keys with scores 0 and x, values 0 and 1: the output is exp(x) / (1 + exp(x)).
    info = torch.finfo(dtype)
    smallest = torch.tensor(info.tiny, dtype=torch.float64).log().item()
    x = torch.linspace(0, smallest + 1, 4001, dtype=torch.float64).to(dtype).reshape(-1, 1, 1)
    key = torch.cat((torch.zeros_like(x), x), dim=1)
    value = torch.tensor([0.0, 1.0], dtype=dtype).reshape(1, 2, 1).expand(len(x), -1, -1)
    ones = torch.ones_like(x)
    out = run(Call(ones, key, value, ones, 1.0), (False, False, False))[0]
    exact = x.double().sigmoid()
    error = (out.double() / exact - 1).abs().max().item()
    # One ulp of exp, one rounding each of the sum and the quotient.
    assert error <= 3 * info.eps, error / info.eps


def test_weights_below_every_normal_number() -> None:
    x = torch.tensor([-90.0, -103.0, -105.0, -1e30, -INF]).reshape(-1, 1, 1)
    key = torch.cat((torch.zeros_like(x), x), dim=1)
    value = torch.tensor([1.0, INF]).reshape(1, 2, 1).expand(len(x), -1, -1)
    ones = torch.ones_like(x)
    out = run(Call(ones, key, value, ones, 1.0), (False, False, False))[0].flatten()
    # Weights that float32 can express, if only as subnormals, keep inf; a zero weight makes NaN.
    assert out[:2].tolist() == [INF, INF]
    assert bool(out[2:].isnan().all())


def test_subnormal_arithmetic_is_as_before() -> None:
    run(make_call(1, 200, None, 4, 4))
    assert (torch.tensor(1e-40) * torch.tensor(0.5)).item() > 0


def allocated(call: Call) -> int:
    """Return the bytes of all memory that the kernel asks for in one forward and backward pass."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        run(call)
    return sum(
        event.self_cpu_memory_usage
        for event in profile.key_averages()
        if event.key in ("aten::empty", "aten::empty_strided")
    )


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "separate"])
def test_memory_is_linear_in_the_tokens(shared: bool) -> None:
    torch.use_deterministic_algorithms(False)
    sizes = (1536, 3072)
    used = [allocated(make_call(1, l, None if shared else l, 4, 4)) for l in sizes]
    # More than the results, or the profiler does not see the kernel's own memory.
    assert used[0] > 4 * sizes[0] * (4 + 1 + 4 + 4 + 4)
    assert used[1] <= 2 * used[0]
    assert used[1] <= 4 * sizes[1] ** 2 / 8


@pytest.mark.parametrize("pairs", [False, True], ids=["numbers", "pairs"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_kept_copies_take_no_more_than_the_inputs(dtype, pairs: bool, request) -> None:
    if pairs:
        request.getfixturevalue("_pairs")
    channels, sizes = 64, (768, 1344)  # both whole blocks
    used = [allocated(make_call(1, l, None, channels, channels, dtype)) for l in sizes]
    of_a_token = (used[1] - used[0]) / (sizes[1] - sizes[0])
    # Of the features and the value in forward, of these and the gradient in backward; results, with
    # the residual; sums; maximum, total, lse twice and delta.
    copies, results, sums = 5, 4 if dtype != torch.float32 else 3, 3
    expected = (copies + results) * channels * dtype.itemsize + sums * channels * 4 + 5 * 4
    assert of_a_token == expected


def test_long_sums_do_not_drown_small_gradients() -> None:
    """Where rows attend to many tokens alike, the rounding of delta is the same for all of a row.

    Summed over 512 channels in one chain it alone would be beyond the bound.
    """
    case = AttentionCase(2, 64, 512, (17, 33), layout="channels_last", features="clustered")
    inputs = make_inputs(case, 1)
    exact, eager = oracle_results(inputs).grad_query, eager_results(inputs)[1].grad_query

    def error(actual: Tensor) -> float:
        return float((actual.double() - exact).norm() / exact.norm())

    bound = 2 * error(eager) + 4 * torch.finfo(torch.float32).eps
    assert error(run_op(inputs, "cpu").grad_query) <= bound


def test_refuses_what_would_leave_its_memory() -> None:
    call = make_call(1, 4, 6, 3, 2)
    out, lse = torch.empty(1, 4, 2), torch.empty(1, 4)
    forward = torch.ops.ocnet_cpu.oc_attention_fwd
    with pytest.raises(RuntimeError, match="lse must be a contiguous CPU tensor"):
        forward(call.query, call.key, call.value, 1.0, False, out, lse.double(), None)
    with pytest.raises(RuntimeError, match="out must be a CPU tensor"):
        forward(call.query, call.key, call.value, 1.0, False, out[:, :3], lse, None)
    with pytest.raises(RuntimeError, match="residual must be a CPU tensor"):
        forward(call.query, call.key, call.value, 1.0, False, out, lse, out[:, :3])
    with pytest.raises(RuntimeError, match="key must be a CPU tensor"):
        forward(call.query, call.key[..., :2], call.value, 1.0, False, out, lse, None)
    with pytest.raises(RuntimeError, match="value must be a CPU tensor"):
        forward(call.query, None, call.value, 1.0, False, out, lse, None)
    with pytest.raises(RuntimeError, match="query must have dtype"):
        forward(
            call.query.int(), call.key.int(), call.value.int(), 1.0, False, out.int(), lse, None
        )


def relative_error(actual: Tensor, exact: Tensor) -> float:
    return ((actual.double() - exact).norm() / exact.norm()).item()


FEATURES = {
    "leaky": lambda x: torch.nn.functional.leaky_relu(x, 0.01),
    "clustered": lambda x: (
        torch.nn.functional.leaky_relu(x[:, torch.arange(x.shape[1]) % 9], 0.01) + 0.3 * x
    ),
    "peaked": lambda x: x,
}


SIZES_IN_PAIRS = [
    (301, None, 256, 256),
    (1, None, 1, 1),
    (97, None, 33, 47),
    (1601, None, 16, 31),
    (301, 57, 255, 64),
    (193, 385, 31, 33),
    (777, 19, 64, 32),
]


@pytest.mark.usefixtures("_pairs")
@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize(("l", "s", "e", "ev"), SIZES_IN_PAIRS)
def test_accuracy_of_bfloat16_in_pairs(features: str, l, s, e: int, ev: int) -> None:
    call = make_call(2, l, s, e, ev)
    query = FEATURES[features](call.query)
    call = Call(*(None if t is None else t.bfloat16() for t in (query, *call[1:4])), call.scale)
    results = run(call)
    wide = Call(*(None if t is None else t.double() for t in call[:4]), call.scale)
    # One rounding of the weights and of the score gradients before their products, and one of the
    # result: 2 ** -9 each at most.
    gates = (3e-3, 1e-5, 5e-3, 5e-3, 3e-3)
    for gate, result, exact in zip(gates, results, plain(wide), strict=True):
        if result is not None and exact.norm() > 0:
            assert relative_error(result, exact) <= gate


@pytest.mark.usefixtures("_pairs")
@pytest.mark.parametrize("keys", [None, 401, 20], ids=["shared", "separate", "few"])
def test_pairs_give_the_same_bits_for_any_number_of_threads_and_layout(keys) -> None:
    call = make_call(2, 301, keys, 41, 23, torch.bfloat16)
    expected = run(call)
    for threads in (2, 3):
        torch.set_num_threads(threads)
        for arrange in LAYOUTS.values():
            tensors = [None if t is None else arrange(t) for t in call[:4]]
            assert_same_bits(run(Call(*tensors, call.scale)), expected)


@pytest.mark.usefixtures("_pairs")
@pytest.mark.parametrize("number", [INF, -INF, NAN], ids=str)
@pytest.mark.parametrize("where", ["query", "key", "value", "grad_out"])
@pytest.mark.parametrize("keys", [None, 2 * STREAM + 9], ids=["shared", "separate"])
def test_nonfinite_numbers_in_pairs(keys, where: str, number: float) -> None:
    call = make_call(1, RESIDENT + 9, keys, 5, 3, torch.bfloat16)
    query, value, grad_out = call.query.abs() + 0.5, call.value.clone(), call.grad_out.clone()
    key = None if call.key is None else call.key.abs() + 0.5
    # The last token of an odd number: its unit has a second half that is no token.
    changed = {"query": query, "key": query if key is None else key, "value": value}
    changed.get(where, grad_out)[0, -1, -1] = number
    call = Call(query, key, value, grad_out, call.scale)
    wide = Call(*(None if t is None else t.float() for t in call[:4]), call.scale)
    names = ("out", "lse", "grad_query", "grad_key", "grad_value")
    for name, result, wanted in zip(names, run(call), plain(wide), strict=True):
        if result is not None:
            assert_same_nonfinite(f"{where}: {name}", result.float(), wanted)


@pytest.mark.parametrize("l", [193, 1537, 2000])
@pytest.mark.parametrize("s", [None, 1, 19, 171, 500])
def test_many_blocks_and_few_keys(l: int, s: int | None) -> None:
    # Maps of more than one block, and of blocks of both sizes; sums of few keys in several copies.
    check(AttentionCase(1, 5, 3, (1, l), None if s is None else (1, s), shared=s is None))
    call = make_call(1, l, s, 5, 3)
    expected = run(call)
    torch.set_num_threads(2)
    for _ in range(3):
        assert_same_bits(run(call), expected)


def test_more_keys_than_queries_in_copies() -> None:
    check(AttentionCase(1, 5, 3, (1, 21), (1, 1700)))
