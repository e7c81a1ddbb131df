# SPDX-License-Identifier: MIT
"""The object-context block against the published formula written out."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ocnet.modules.object_context as object_context_file
from ocnet.modules import ObjectContext
from tests.modules.comparing import assert_close, assert_steps_agree, run


def make_block(scale: int = 1, out_channels: int | None = None) -> ObjectContext:
    block = ObjectContext(6, 5, 7, out_channels, scale, backend="reference")
    nn.init.normal_(block.W.weight)
    nn.init.normal_(block.W.bias)
    return block


def published(block: ObjectContext, x: Tensor) -> Tensor:
    """The published block, line by line: the shared transform runs twice."""
    pooled = F.max_pool2d(x, block.scale, block.scale) if block.scale > 1 else x
    n, _, h, w = pooled.shape
    value = block.f_value(pooled).flatten(2).mT
    query = block.f_key(pooled).flatten(2).mT
    key = block.f_key(pooled).flatten(2)
    context = torch.softmax((query @ key) * key.shape[1] ** -0.5, dim=-1) @ value
    context = block.W(context.mT.reshape(n, -1, h, w))
    if block.scale > 1:
        context = F.interpolate(context, x.shape[2:], mode="bilinear", align_corners=True)
    return context


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("scale", [1, 2, 3])
def test_equals_the_published_block(scale: int, training: bool) -> None:
    """Output, every gradient and, after the published double update, the running statistics."""
    block = make_block(scale, out_channels=4).double().train(training)
    twin = copy.deepcopy(block)
    twin.f_key[1].momentum = 0.1
    x = torch.randn(2, 6, 7, 9, dtype=torch.float64)
    got = run(block, block, x)
    want = run(lambda x: published(twin, x), twin, x)
    assert got["out"].shape == (2, 4, 7, 9)
    assert_steps_agree(got, want, 2 * 7 * 9 + 6 + 5 + 7)


def test_running_statistics_move_by_019() -> None:
    block = make_block().double()
    x = torch.randn(2, 6, 4, 5, dtype=torch.float64)
    projected = block.f_key[0](x)
    block(x)
    mean, var = projected.mean((0, 2, 3)), projected.var((0, 2, 3), unbiased=True)
    eps = torch.finfo(torch.float64).eps
    # Sums over 40 values and a few roundings.
    torch.testing.assert_close(block.f_key[1].running_mean, 0.19 * mean, rtol=64 * eps, atol=eps)
    torch.testing.assert_close(block.f_key[1].running_var, 0.81 + 0.19 * var, rtol=64 * eps, atol=0)


def test_context_is_zero_at_the_start() -> None:
    block = ObjectContext(6, 5, 7, scale=2, backend="reference")
    x = torch.randn(2, 6, 6, 6, requires_grad=True)
    out = block(x)
    assert torch.equal(out, torch.zeros_like(out))
    out.sum().backward()
    assert block.W.weight.grad.abs().max() > 0
    assert block.f_value.weight.grad.abs().max() == 0
    assert block.f_key[0].weight.grad.abs().max() == 0


def test_query_is_the_key_and_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def spy(query: Tensor, key: Tensor, value: Tensor, *, backend: str) -> Tensor:
        seen.append((query is key, backend))
        return value

    monkeypatch.setattr(object_context_file, "oc_attention", spy)
    block = ObjectContext(6, 5, 7, backend="cpu")
    calls = []
    block.f_key.register_forward_hook(lambda *_: calls.append(1))
    block(torch.randn(1, 6, 3, 3))
    assert seen == [(True, "cpu")]
    assert len(calls) == 1


def test_layouts_agree() -> None:
    block = make_block().double().eval()
    x = torch.randn(2, 6, 5, 7, dtype=torch.float64)
    permuted = block(x.contiguous(memory_format=torch.channels_last))
    assert_close(permuted, block(x), 35 + 6 + 5 + 7)


def test_attention_rows_are_rows_of_the_matrix() -> None:
    block = make_block().double().eval()
    x = torch.randn(2, 6, 4, 5, dtype=torch.float64)
    key = block.f_key(x).flatten(2)
    matrix = torch.softmax(key.mT @ key * 5**-0.5, dim=-1)
    points = torch.tensor([[0, 0], [3, 4], [2, 1]])
    rows = block.attention_rows(x, points)
    want = matrix[:, points[:, 0] * 5 + points[:, 1]].reshape(2, 3, 4, 5)
    assert_close(rows, want, 20 + 6 + 5)
    each = block.attention_rows(x, torch.stack([points, points.flip(0)]))
    assert torch.equal(each[0], rows[0])
    assert torch.equal(each[1], rows[1].flip(0))


def test_attention_rows_of_a_pooled_block() -> None:
    block = make_block(scale=2).eval()
    x = torch.randn(1, 6, 9, 8)
    rows = block.attention_rows(x, torch.tensor([[8, 7], [0, 0], [5, 2]]))
    unpooled = make_block()
    unpooled.load_state_dict(block.state_dict())
    # 9 x 8 pixels become 4 x 4: row 5 is at 5 * 3 / 8 = 1.9, column 2 at 2 * 3 / 7 = 0.9.
    points = torch.tensor([[3, 3], [0, 0], [2, 1]])
    assert torch.equal(rows, unpooled.eval().attention_rows(F.max_pool2d(x, 2), points))


@pytest.mark.parametrize("nested", [False, True], ids=["alone", "nested"])
@pytest.mark.parametrize("absent", ["nothing", "f_query.", "f_key."])
def test_a_shared_transform_has_two_names_and_is_read_under_one(absent: str, nested: bool) -> None:
    source, target = make_block(), make_block()
    if nested:
        source, target = nn.ModuleList([source]), nn.ModuleList([target])
    state = {name: value.clone() for name, value in source.state_dict().items()}
    assert len([name for name in state if "f_query." in name]) == 6
    state["0.f_query.1.num_batches_tracked" if nested else "f_query.1.num_batches_tracked"] = (
        torch.tensor(7)
    )
    state = {name: value for name, value in state.items() if absent not in name}
    target.load_state_dict(state)
    for name, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], value)
    block = target[0] if nested else target
    assert block.f_query is block.f_key


@pytest.mark.parametrize("change", ["value", "shape"])
def test_other_query_keys_are_refused(change: str) -> None:
    state = dict(make_block().state_dict())
    old = state["f_query.0.weight"]
    state["f_query.0.weight"] = old + 1 if change == "value" else old[:2]
    with pytest.raises(RuntimeError, match=r"f_query.0.weight must equal f_key.0.weight"):
        make_block().load_state_dict(state)


def test_maps_smaller_than_a_window_are_one_pixel_then() -> None:
    block = make_block(scale=3).double().eval()
    x = torch.randn(1, 6, 2, 8, dtype=torch.float64)
    twin = make_block().double().eval()
    twin.load_state_dict(block.state_dict())
    pooled = twin(x.amax(2, keepdim=True)[..., :6].unflatten(3, (2, 3)).amax(4))
    want = F.interpolate(pooled, (2, 8), mode="bilinear", align_corners=True)
    assert_close(block(x), want, 16 + 6 + 5 + 7)
    assert block.attention_rows(x, torch.tensor([[1, 7]])).shape == (1, 1, 1, 2)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="ObjectContext: scale must be at least 1, got 0"):
        ObjectContext(6, 5, 7, scale=0)
    with pytest.raises(TypeError, match=r"ObjectContext: scale must be an integer, got 1\.5"):
        ObjectContext(6, 5, 7, scale=1.5)
    with pytest.raises(ValueError, match="backend"):
        ObjectContext(6, 5, 7, backend="fast")(torch.randn(1, 6, 2, 2))
    with pytest.raises(
        ValueError, match=r"must lie in a map of 4 rows and 5 columns, got \(4, 0\)"
    ):
        make_block(scale=2).eval().attention_rows(torch.randn(1, 6, 4, 5), torch.tensor([[4, 0]]))
