# SPDX-License-Identifier: MIT
"""Interlaced attention against the published code written out: pads, views, permutations."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ocnet.modules import ISA, InterlacedContext
from tests.modules.comparing import assert_close, assert_steps_agree, run

C, E, EV, OUT = 6, 5, 7, 4
ONE, TWO = ((8, 8),), ((4, 3), (2, 5))
SIZES = [(2, 13, 9), (2, 3, 5), (2, 16, 24)]


def make(*factors: tuple[int, int]) -> ISA:
    options = {"down_factors": factors} if factors else {}
    return ISA(C, OUT, E, EV, dropout=0.0, backend="reference", **options).double()


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def unit(sa: nn.Module, x: Tensor) -> Tensor:
    """The published attention unit, on a batch of groups."""
    n, _, h, w = x.shape
    value, query, key = (f(x).flatten(2) for f in (sa.f_value, sa.f_query, sa.f_key))
    scores = query.shape[1] ** -0.5 * query.mT @ key
    context = torch.softmax(scores, dim=-1) @ value.mT
    return sa.W(context.mT.reshape(n, -1, h, w))


def padding(size: int, factor: int) -> tuple[int, int]:
    missing = (size + factor - 1) // factor * factor - size
    return missing // 2, missing - missing // 2


def published_context(block: InterlacedContext, x: Tensor) -> Tensor:
    dh, dw = block.down_factor
    (n, c, h, w), (top, bottom), (left, right) = (
        x.shape,
        padding(x.shape[2], dh),
        padding(x.shape[3], dw),
    )
    x = F.pad(x, (left, right, top, bottom))
    oh, ow = x.shape[2] // dh, x.shape[3] // dw
    x = x.view(n, c, oh, dh, ow, dw).permute(0, 3, 5, 1, 2, 4).reshape(-1, c, oh, ow)
    x = unit(block.long_range_sa, x)
    c = x.shape[1]
    x = x.view(n, dh, dw, c, oh, ow).permute(0, 4, 5, 3, 1, 2).reshape(-1, c, dh, dw)
    x = unit(block.short_range_sa, x)
    x = x.view(n, oh, ow, c, dh, dw).permute(0, 3, 1, 4, 2, 5).reshape(n, c, dh * oh, dw * ow)
    return x[:, :, top : top + h, left : left + w]


def published(module: ISA, x: Tensor) -> Tensor:
    features = module.up_conv(x) if len(module.stages) > 1 else x
    contexts = [published_context(block, x) for block in module.stages]
    return module.conv_bn(torch.cat([features, *contexts], dim=1))


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize(
    ("factors", "shape"),
    [(ONE, (1, 97, 97)), *((factors, shape) for factors in (ONE, TWO) for shape in SIZES)],
    ids=str,
)
def test_equals_the_published_module(
    factors: tuple[tuple[int, int], ...], shape: tuple[int, int, int], training: bool
) -> None:
    """Output, every gradient and the running statistics, padded pixels among them."""
    module = make(*factors).train(training)
    twin = copy.deepcopy(module)
    n, h, w = shape
    x = noise(n, C, h, w)
    got = run(module, module, x)
    want = run(lambda x: published(twin, x), twin, x)
    assert got["out"].shape == (n, OUT, h, w)
    # The most pixels that one sum runs over, those of a padded map, twice: the units follow on
    # each other.
    pixels = n * (h + 8) * (w + 8)
    assert_steps_agree(got, want, 2 * (pixels + C + E + EV))


def test_padding_takes_part_in_the_statistics() -> None:
    module, x = make(), noise(1, C, 13, 9)
    block = module.stages[0]
    keys = block.long_range_sa.f_key[0](F.pad(x, (3, 4, 1, 2)))
    module(x)
    mean, keys = block.long_range_sa.f_key[1].running_mean, keys.detach()
    assert_close(mean, 0.1 * keys.mean((0, 2, 3)), 256, keys)
    assert float((mean - 0.1 * keys[..., 1:14, 3:12].mean((0, 2, 3))).abs().max()) > 1e-3


def test_gradients_reach_everything() -> None:
    module = make(*TWO).eval()
    grads = run(module, module, noise(2, C, 7, 8))
    for name, _ in module.named_parameters():
        assert float(grads[name].abs().max()) > 0, name
    assert float(grads["x"].abs().min()) > 0


def test_every_pixel_reaches_every_other() -> None:
    block = InterlacedContext(C, E, EV, OUT, (3, 4), backend="reference").double().eval()
    x = noise(1, C, 7, 10).requires_grad_()
    block(x)[0, :, 2, 5].sum().backward()
    assert float(x.grad.abs().sum(1).min()) > 0


@pytest.mark.parametrize("factors", [ONE, TWO], ids=str)
def test_features_come_first_then_contexts_in_order(factors: tuple[tuple[int, int], ...]) -> None:
    module, x = make(*factors).eval(), noise(1, C, 8, 9)
    seen: list[Tensor] = []
    module.conv_bn.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    module(x)
    features = x if len(factors) == 1 else module.up_conv(x)
    assert torch.equal(seen[0], torch.cat([features, *(stage(x) for stage in module.stages)], 1))


def test_layouts_agree() -> None:
    module, x = make().eval(), noise(2, C, 7, 9)
    permuted = module(x.contiguous(memory_format=torch.channels_last))
    assert_close(permuted, module(x), 64 + C + E + EV)


def test_attention_rows_are_those_of_the_groups() -> None:
    block = InterlacedContext(C, E, EV, OUT, (3, 4), backend="reference").double().eval()
    x = noise(2, C, 7, 10)
    points = torch.cartesian_prod(torch.arange(7), torch.arange(10))
    far, near = block.attention_rows(x, points)
    padded = F.pad(x, (1, 1, 1, 1))  # to 9 x 12
    row, column = torch.meshgrid(torch.arange(9), torch.arange(12), indexing="ij")
    steps = (
        (far, block.long_range_sa, padded, row % 3 * 4 + column % 4),
        (near, block.short_range_sa, block.long_range_sa(padded), row // 3 * 3 + column // 4),
    )
    for rows, sa, features, group in steps:
        assert rows.shape == (2, 70, 7, 10)
        query, key = sa.f_query(features).flatten(2), sa.f_key(features).flatten(2)
        scores = E**-0.5 * query.mT @ key
        together = group.flatten()[:, None] == group.flatten()
        matrix = torch.softmax(scores.masked_fill(~together, -torch.inf), dim=-1)
        want = matrix.reshape(2, 9, 12, 9, 12)[:, 1:8, 1:11, 1:8, 1:11].reshape(2, 70, 7, 10)
        assert_close(rows, want, 108 + C + E)
    # What is missing from 1 is what the padding was given.
    assert float(far.detach().sum((2, 3)).min()) < 0.99
    each = make((3, 4), (2, 5)).eval().attention_rows(x, points)
    assert [tuple(rows.shape) for pair in each for rows in pair] == [(2, 70, 7, 10)] * 4


def test_published_names_shapes_and_counts() -> None:
    with torch.device("meta"):
        module = ISA(512, 512, 256, 512)
    state = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    norm = ("weight", "bias", "running_mean", "running_var")
    wanted = {"conv_bn.0.weight": (512, 1024, 1, 1), **{f"conv_bn.1.{n}": (512,) for n in norm}}
    for step in ("long_range_sa", "short_range_sa"):
        for f in ("f_key", "f_query"):
            at = f"stages.0.{step}.{f}"
            wanted |= {f"{at}.0.weight": (256, 512, 1, 1), f"{at}.2.weight": (256, 256, 1, 1)}
            wanted |= {f"{at}.{i}.{n}": (256,) for i in (1, 3) for n in norm}
        wanted[f"stages.0.{step}.f_value.weight"] = (512, 512, 1, 1)
        wanted[f"stages.0.{step}.W.0.weight"] = (512, 512, 1, 1)
        wanted |= {f"stages.0.{step}.W.1.{n}": (512,) for n in norm}
    assert state == wanted
    # 2.37 million in the published inventory.
    assert sum(p.numel() for p in module.parameters()) == 2_366_464


def test_several_factors_widen_the_features() -> None:
    state = make(*TWO).state_dict()
    assert state["up_conv.0.weight"].shape == (2 * OUT, C, 1, 1)
    assert state["conv_bn.0.weight"].shape == (OUT, 4 * OUT, 1, 1)
    assert not [name for name in make().state_dict() if name.startswith("up_conv")]


def test_the_output_transform_does_not_start_at_zero() -> None:
    for sa in (make().stages[0].long_range_sa, make().stages[0].short_range_sa):
        assert float(sa.W[0].weight.detach().abs().min()) > 0
        assert sa.f_value.bias is None


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="ISA: down_factors must name at least one block"):
        ISA(C, OUT, E, EV, down_factors=())
    with pytest.raises(ValueError, match=r"down_factor must be two integers, got \(8,\)"):
        ISA(C, OUT, E, EV, down_factors=((8,),))
    with pytest.raises(ValueError, match="InterlacedContext: down_factor must be at least 1"):
        ISA(C, OUT, E, EV, down_factors=((8, 0),))
    with pytest.raises(
        ValueError, match=r"must lie in a map of 7 rows and 9 columns, got \(7, 0\)"
    ):
        make().eval().attention_rows(noise(1, C, 7, 9), torch.tensor([[7, 0]]))
