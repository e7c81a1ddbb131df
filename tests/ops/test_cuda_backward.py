# SPDX-License-Identifier: MIT
"""The tensor-core backward of the CUDA kernels, at the level of the native op.

Output and lse come from float64, so that the errors are the backward's own. On a GPU and in the
emulator; what depends on a device's limits, in the emulator only.
"""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from ocnet.ops._layout import aligned_rows
from ocnet.testing import FEATURES

pytestmark = pytest.mark.native

NAN = float("nan")
SM_80, SM_86, SM_90 = (kilobytes * 1024 for kilobytes in (163, 99, 227))
# Relative Frobenius errors of the gradients of features and of values.
GATES = {
    "bfloat16": (5e-3, 3e-3),
    "float16": (6e-4, 4e-4),
    "tf32": (1e-3, 6e-4),
    "float32": (5e-6, 2e-6),
}
ROLES = ["both", "queries", "keys"]


class Call(NamedTuple):
    """Token matrices of one call, (N, tokens, channels)."""

    query: Tensor
    key: Tensor | None
    value: Tensor
    grad_out: Tensor
    out: Tensor
    lse: Tensor
    residual: Tensor | None
    exact: dict[str, Tensor]
    scale: float


@pytest.fixture(params=["emulated", pytest.param("cuda", marks=pytest.mark.gpu)])
def subject(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def backward(subject: str, backend: str, device: str) -> Callable[..., dict[str, Tensor]]:
    """Run a call backward; returns the gradients that are wanted, by name."""
    op = getattr(torch.ops, f"ocnet_{subject}").oc_attention_bwd

    def run(call: Call, wanted: str = "qkv", tf32: bool = False) -> dict[str, Tensor]:
        def rows(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else aligned_rows(tensor.to(device))

        shapes = {"grad_query": call.query, "grad_key": call.key, "grad_value": call.value}
        grads = {
            name: None
            if like is None or name.removeprefix("grad_")[0] not in wanted
            else torch.full_like(like, NAN, device=device)
            for name, like in shapes.items()
        }
        inputs = [rows(t) for t in (call.grad_out, call.query, call.key, call.value)]
        saved = [None if t is None else t.to(device) for t in (call.out, call.lse, call.residual)]
        op(*inputs, *saved, call.scale, tf32, *grads.values())
        return {name: grad.cpu() for name, grad in grads.items() if grad is not None}

    return run


def make_call(
    precision: str,
    n: int,
    l: int,
    s: int | None,
    e: int,
    ev: int,
    features: str = "activated",
    scale: float | None = None,
) -> Call:
    """Draw a call; without ``s``, the keys are the queries. Inputs for TF32 have no more digits."""
    dtype = torch.float32 if precision == "tf32" else getattr(torch, precision)
    generator = torch.Generator().manual_seed(7)

    def draw(tokens: int, channels: int, model: str = "peaked") -> Tensor:
        drawn = FEATURES[model]((n, channels, tokens, 1), generator)[..., 0].mT
        drawn = drawn.to(dtype).contiguous()
        return nearest_tf32(drawn) if precision == "tf32" else drawn

    query, key = draw(l, e, features), None if s is None else draw(s, e, features)
    value, grad_out = draw(l if s is None else s, ev), draw(l, ev)
    return complete_call(query, key, value, grad_out, e**-0.5 if scale is None else scale)


def complete_call(
    query: Tensor, key: Tensor | None, value: Tensor, grad_out: Tensor, scale: float
) -> Call:
    """Add what the forward pass would hand over, and the gradients, in float64."""
    q, v = (t.double().requires_grad_() for t in (query, value))
    k = q if key is None else key.double().requires_grad_()
    scores = scale * (q @ k.mT)
    out = scores.softmax(-1) @ v
    out.backward(grad_out.double())
    exact = {"grad_query": q.grad, "grad_value": v.grad}
    if key is not None:
        exact["grad_key"] = k.grad
    lse = scores.detach().logsumexp(-1)
    lse = lse.masked_fill(lse == torch.inf, NAN).float()  # as the softmax is
    out = out.detach()
    rounded = out.to(query.dtype)
    is_rounded = query.dtype != torch.float32
    residual = (out - rounded.double()).to(query.dtype) if is_rounded else None
    return Call(query, key, value, grad_out, rounded, lse, residual, exact, scale)


def nearest_tf32(numbers: Tensor) -> Tensor:
    return ((numbers.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def cut_to_tf32(numbers: Tensor) -> Tensor:
    return (numbers.view(torch.int32) & ~0x1FFF).view(torch.float32)


def assert_below_gates(call: Call, grads: dict[str, Tensor], precision: str) -> None:
    for name, grad in grads.items():
        exact = call.exact[name]
        error = float((grad.double() - exact).norm() / exact.norm())
        gate = GATES[precision][name == "grad_value"]
        assert error <= gate, f"{precision} {name}: {error:.2e}, allowed {gate:.2e}"


def assert_near(call: Call, grads: dict[str, Tensor], precision: str) -> None:
    """As below the gates, but of the terms that are summed: few of them may cancel."""
    query, value, grad_out = (t.double() for t in (call.query, call.value, call.grad_out))
    key = query if call.key is None else call.key.double()
    weights = (call.scale * (query @ key.mT)).softmax(-1)
    scores = abs(call.scale) * weights * (grad_out.abs() @ value.abs().mT)
    terms = {"grad_query": scores @ key.abs(), "grad_key": scores.mT @ query.abs()}
    terms["grad_value"] = weights.mT @ grad_out.abs()
    for name, grad in grads.items():
        error = float((grad.double() - call.exact[name]).norm() / terms[name].norm())
        gate = GATES[precision][name == "grad_value"]
        assert error <= gate, f"{precision} {name}: {error:.2e}, allowed {gate:.2e}"


def assert_same_bits(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        different = int((tensor != right[name]).sum())
        assert different == 0, f"{name}: {different} of {tensor.numel()} differ"


@pytest.mark.parametrize("keys", [None, 41], ids=["shared", "separate"])
@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("precision", GATES)
def test_errors_stay_below_the_gates(backward, precision: str, features: str, keys) -> None:
    peaked = keys is None and features == "peaked"
    if peaked and precision in ("tf32", "float32"):
        pytest.skip("sums in fp32 lose as much there: test_accuracy.py compares with them")
    call = make_call(precision, 1, 52, keys, 32, 40, features)
    assert_below_gates(call, backward(call, tf32=precision == "tf32"), precision)


@pytest.mark.parametrize("tokens", [1, 15, 16, 33, 65])
def test_ragged_tokens(backward, tokens: int) -> None:
    for keys in (None, 1, 18):
        call = make_call("float16", 1 + tokens % 2, tokens, keys, 9, 17)
        assert_near(call, backward(call), "float16")


@pytest.mark.parametrize("channels", [(1, 1), (7, 130), (129, 15), (257, 3), (3, 257)], ids=str)
@pytest.mark.parametrize("precision", ["bfloat16", "tf32"])
def test_ragged_channels(backward, precision: str, channels: tuple[int, int]) -> None:
    for keys in (None, 11):
        call = make_call(precision, 1, 18, keys, *channels)
        assert_near(call, backward(call), precision)


@pytest.mark.parametrize("keys", [None, 21], ids=["shared", "separate"])
@pytest.mark.parametrize("precision", GATES)
def test_gradients_do_not_depend_on_what_else_is_wanted(backward, precision: str, keys) -> None:
    call = make_call(precision, 1, 33, keys, 18, 140)
    tf32 = precision == "tf32"
    every = backward(call, tf32=tf32)
    for wanted in ("q", "v", "k", "qv", "kv"):
        some = backward(call, wanted, tf32)
        letters = wanted if keys else wanted.replace("k", "")
        assert {name.removeprefix("grad_")[0] for name in some} == set(letters)
        assert_same_bits(some, {name: every[name] for name in some})


def test_few_keys_far_apart_in_float16(backward) -> None:
    """Weights of 2e-5 are subnormal in float16; the kernel multiplies them by a power of two."""
    call = make_call("float16", 1, 2, 4, 8, 16)
    # Two queries of 50,000 keys that score alike: of those, four are looked at.
    away = call.lse + torch.full_like(call.lse, 50_000 / 4).log()
    grad = backward(call._replace(lse=away), "v")["grad_value"].double()
    exact = call.exact["grad_value"] * 4 / 50_000
    # grad_value itself is subnormal, with steps of 2^-24.
    assert (grad - exact).abs().max() <= 2.0**-25 + 2.0**-10 * exact.abs().max()


def test_infinities_stay_with_their_token(backward) -> None:
    """Padding of tiles has weight 0, and 0 * inf never happens."""
    call = make_call("bfloat16", 1, 19, 5, 16, 16)
    call.value[0, 2, 3] = torch.inf
    call.out[0, :, 3] = torch.inf
    grads = backward(call)
    assert grads["grad_value"].isfinite().all()  # does not depend on the value
    clean = make_call("bfloat16", 1, 19, 5, 16, 16)
    clean.grad_out[0, 4, 1] = torch.inf
    grads = backward(clean)
    assert grads["grad_query"][0, 4].isnan().all()
    others = torch.arange(19) != 4
    assert grads["grad_query"][0, others].isfinite().all()
    assert grads["grad_value"][0, :, 1].isinf().all()
    assert grads["grad_value"][0, :, torch.arange(16) != 1].isfinite().all()


@pytest.mark.parametrize("argument", ["query", "key", "value", "grad_out"])
def test_rows_must_be_aligned(subject: str, backend: str, device: str, argument: str) -> None:
    op = getattr(torch.ops, f"ocnet_{subject}").oc_attention_bwd
    call = make_call("float32", 2, 8, 8, 8, 8)
    tensors = {
        name: getattr(call, name).to(device)
        for name in ("grad_out", "query", "key", "value", "out", "lse")
    }
    apart = torch.zeros(2, 8, 9, device=device)
    for wrong in (tensors[argument].mT.contiguous().mT, apart[..., :8], apart.view(-1)[1:]):
        given = wrong if wrong.dim() == 3 else wrong[:128].view(2, 8, 8)
        changed = tensors | {argument: given}
        match = f"oc_attention_bwd: {argument} must have channel stride 1 and rows aligned to 16"
        with pytest.raises(RuntimeError, match=match):
            op(*changed.values(), None, 0.3, False, None, None, None)


def test_channels_have_a_limit(subject: str, backend: str, device: str) -> None:
    op = getattr(torch.ops, f"ocnet_{subject}").oc_attention_bwd
    wide, narrow = torch.zeros(1, 2, 520, device=device), torch.zeros(1, 2, 4, device=device)
    lse = torch.zeros(1, 2, device=device)
    with pytest.raises(RuntimeError, match="query must have at most 512 channels, got 520"):
        op(narrow, wide, None, narrow, narrow, lse, None, 0.3, False, None, None, None)


only_emulated = pytest.mark.parametrize("subject", ["emulated"], indirect=True)


class Row(NamedTuple):
    """A call that a row of the table is for, on a device with this much shared memory."""

    precision: str
    channels: tuple[int, int]
    limit: int
    rows: int
    cols: int
    width: int
    resident: bool = True


ROWS = [
    Row("bfloat16", (128, 128), SM_86, 64, 32, 128),
    Row("float16", (256, 256), SM_80, 64, 32, 256),
    Row("bfloat16", (256, 512), SM_90, 64, 16, 256),
    Row("float16", (256, 512), SM_80, 32, 16, 256),
    Row("bfloat16", (256, 256), SM_86, 32, 16, 256),
    Row("bfloat16", (512, 512), SM_86, 64, 32, 256, resident=False),
    Row("tf32", (128, 128), SM_80, 64, 32, 128),
    Row("float32", (128, 64), SM_80, 64, 32, 128),
    Row("tf32", (128, 256), SM_90, 64, 16, 256),
    Row("tf32", (256, 256), SM_90, 48, 16, 256),
    Row("float32", (256, 256), SM_80, 32, 16, 256),
    Row("tf32", (512, 512), SM_80, 64, 16, 256, resident=False),
    Row("float32", (256, 256), SM_86, 64, 16, 256, resident=False),
]


def plan(
    emulator, precision: str, channels: tuple[int, int], limit: int, role: str = "both", **sizes
):
    """Plan a launch; ``None`` where no row of the table fits."""
    element_bytes = 2 if "16" in precision else 4
    sizes = {"images": 1, "own": 20, "other": 20, "multiprocessors": 132} | sizes
    return emulator.plan_bwd(
        element_bytes, *channels, role, True, role != "queries", limit, *sizes.values()
    )


@only_emulated
@pytest.mark.parametrize(
    "row", ROWS, ids=lambda row: f"{row.precision}-{row.channels}-{row.limit // 1024}"
)
def test_every_row_of_the_table(backward, emulator, row: Row) -> None:
    """Each for shared keys: those need the most room."""
    planned = plan(emulator, row.precision, row.channels, row.limit)
    tile = planned.tile
    assert (tile.rows, tile.cols, tile.width, tile.resident) == row[3:]
    call = make_call(row.precision, 1, 20, None, *row.channels)
    emulator.configure(shared_limit=row.limit)
    grads = backward(call, tf32=row.precision == "tf32")
    (main,) = (one for one in emulator.launches() if "mma_bwd" in one.kernel)
    assert main.threads == 4 * row.rows
    assert main.shared_bytes == planned.layout.bytes + emulator.group_bytes
    assert main.blocks == planned.blocks == -(-max(row.channels) // row.width)
    assert_below_gates(call, grads, row.precision)


def test_the_table_has_no_gap_and_no_row_too_many(emulator) -> None:
    used = set()
    steps = [1, 16, 17, *range(32, 513, 32)]
    for precision, role, limit in itertools.product(
        ("bfloat16", "float32"), ROLES, (SM_86, SM_80, SM_90)
    ):
        for channels in itertools.product(steps, steps):
            planned = plan(emulator, precision, channels, limit, role)
            assert planned is not None, (precision, role, limit, channels)
            assert planned.layout.bytes <= limit
            tile = planned.tile
            used.add((precision, tile.rows, tile.cols, tile.width, tile.resident))
    tried = {("bfloat16" if "16" in row.precision else "float32", *row[3:]) for row in ROWS}
    assert len(used) == emulator.bwd_tile_count()
    assert used == tried


@pytest.mark.parametrize("multiprocessors", [1, 7, 132])
def test_blocks_cover_every_output_and_step_once(emulator, multiprocessors: int) -> None:
    sizes = {"images": 2, "own": 70, "other": 1000, "multiprocessors": multiprocessors}
    for channels in ((64, 512), (512, 64), (128, 128)):
        planned = plan(emulator, "bfloat16", channels, SM_80, **sizes)
        seen = set()
        for block in range(planned.blocks):
            image, row, piece, split, first, end = emulator.locate_bwd_block(planned, block)
            assert 0 <= split < planned.splits
            assert first < end
            for step in range(first, end):
                assert (image, row, piece, step) not in seen
                seen.add((image, row, piece, step))
        rows = range(0, 70, planned.tile.rows)
        slices = range(-(-max(channels) // planned.tile.width))
        assert planned.steps == -(-1000 // planned.tile.cols)
        assert seen == set(itertools.product(range(2), rows, slices, range(planned.steps)))


def test_splits_fill_a_device_and_no_more(emulator) -> None:
    splits = emulator.bwd_splits
    assert splits(4 * 148, 295, 132) <= 3  # 97 x 97, batch 4: the tail is little
    for blocks, steps in ((36, 72), (148, 295), (1, 295), (3, 1024), (133, 100)):
        count = splits(blocks, steps, 132)
        assert 1 < count <= steps

        def time(parts: int, blocks: int = blocks, steps: int = steps) -> int:
            return -(-blocks * parts // 132) * (-(-steps // parts) + 4 * (parts > 1))

        assert time(count) < time(1)
        assert time(count) == min(time(parts) for parts in range(1, min(steps, 128) + 1))
    assert splits(1, 1, 132) == 1
    assert splits(10_000, 10_000, 1) == 1
    assert splits(132, 100, 132) == 1


@only_emulated
@pytest.mark.parametrize("precision", ["float16", "tf32"])
@pytest.mark.parametrize("keys", [None, 5], ids=["shared", "separate"])
def test_shares_of_the_streamed_tokens_are_combined(backward, emulator, precision: str, keys):
    """Few tokens against many: what blocks sum of them agrees with the sum of one block."""
    tf32, wanted = precision == "tf32", "qv" if keys is None else "kv"
    call = make_call(precision, 1, 230, keys, 12, 20)
    emulator.configure(multiprocessors=1)
    whole = backward(call, wanted, tf32)
    assert not any("combine" in one.kernel for one in emulator.launches())
    emulator.configure()
    split = backward(call, wanted, tf32)
    assert sum("combine" in one.kernel for one in emulator.launches()) == 2
    assert_below_gates(call, split, precision)
    for name, grad in split.items():
        # Sums of fp32 in another order, then one rounding to the storage type.
        step = torch.finfo(grad.dtype).eps + 300 * torch.finfo(torch.float32).eps
        largest = whole[name].double().abs().max()
        assert (grad.double() - whole[name].double()).abs().max() <= step * largest
    emulator.configure(seed=5)
    assert_same_bits(backward(call, wanted, tf32), split)
    assert_same_bits(backward(call, "v", tf32), {"grad_value": split["grad_value"]})


@only_emulated
@pytest.mark.parametrize("limit", [SM_86, SM_80])
@pytest.mark.parametrize("precision", GATES)
def test_the_schedule_changes_no_bit(backward, emulator, precision: str, limit: int) -> None:
    for keys in (None, 37):
        call = make_call(precision, 1, 20, keys, 33, 130)
        emulator.configure(shared_limit=limit)
        expected = backward(call, tf32=precision == "tf32")
        for seed in (1, 2):
            emulator.configure(shared_limit=limit, seed=seed)
            assert_same_bits(backward(call, tf32=precision == "tf32"), expected)


def test_inputs_for_tf32_are_rounded_to_nearest(backward) -> None:
    """In every product, and in delta: where the softmax is peaked, errors of the two cancel."""
    call = make_call("float32", 1, 20, None, 64, 24, "peaked")
    names = ("query", "value", "grad_out")
    rounded = call._replace(**{name: nearest_tf32(getattr(call, name)) for name in names})
    assert_same_bits(backward(call, tf32=True), backward(rounded, tf32=True))
    cut = call._replace(**{name: cut_to_tf32(getattr(call, name)) for name in names})
    assert not torch.equal(
        backward(call, tf32=True)["grad_value"], backward(cut, tf32=True)["grad_value"]
    )


@only_emulated
@pytest.mark.parametrize("precision", ["bfloat16", "tf32"])
def test_tiles_change_no_bit(backward, emulator, precision: str) -> None:
    """Resident or streamed in parts, wide or narrow: sums have one order."""
    channels = (250, 512) if precision == "bfloat16" else (100, 200)
    call = make_call(precision, 1, 40, None, *channels)
    results, tiles = [], set()
    for limit in (SM_86, SM_80, SM_90):
        emulator.configure(shared_limit=limit)
        results.append(backward(call, tf32=precision == "tf32"))
        tile = plan(emulator, precision, channels, limit).tile
        tiles.add((tile.rows, tile.cols, tile.resident))
    assert len(tiles) > 1
    for result in results[1:]:
        assert_same_bits(result, results[0])
