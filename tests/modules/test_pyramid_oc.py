# SPDX-License-Identifier: MIT
"""The Pyramid-OC module against the published code written out: slices, loops, concatenation."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import ocnet.modules.pyramid_oc as pyramid_oc_file
from ocnet.models import load_checkpoint
from ocnet.modules import PyramidOC
from ocnet.ops import pyramid_attention
from tests.modules.comparing import assert_close, assert_steps_agree, run

C, E, EV, OUT = 6, 5, 7, 4
PUBLISHED = {
    "stages.0.f_key.0.weight": (256, 512, 1, 1),
    "stages.0.f_key.0.bias": (256,),
    "stages.0.f_key.1.weight": (256,),
    "stages.0.f_key.1.bias": (256,),
    "stages.0.f_key.1.running_mean": (256,),
    "stages.0.f_key.1.running_var": (256,),
    "stages.0.f_value.weight": (512, 512, 1, 1),
    "stages.0.f_value.bias": (512,),
    "stages.0.W.weight": (512, 512, 1, 1),
    "stages.0.W.bias": (512,),
    "conv_bn_dropout.0.weight": (512, 4096, 1, 1),
    "conv_bn_dropout.0.bias": (512,),
    "up_dr.0.weight": (2048, 512, 1, 1),
    "up_dr.0.bias": (2048,),
    "up_dr.1.running_mean": (2048,),
}


def make(sizes: tuple[int, ...] = (1, 2, 3, 6)) -> PyramidOC:
    module = PyramidOC(C, OUT, E, EV, dropout=0.0, sizes=sizes, backend="reference").double()
    for stage in module.stages:
        nn.init.normal_(stage.W.weight)
    return module


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def edges(size: int, parts: int) -> list[slice]:
    step = size // parts
    return [slice(i * step, size if i == parts - 1 else (i + 1) * step) for i in range(parts)]


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    n, e, h, w = query.shape
    scores = e**-0.5 * query.flatten(2).mT @ key.flatten(2)
    context = torch.softmax(scores, dim=-1) @ value.flatten(2).mT
    return context.mT.reshape(n, value.shape[1], h, w)


def published_context(block: nn.Module, x: Tensor, size: int) -> Tensor:
    """One block: whole-map transforms, the shared one run twice, then cell by cell."""
    value, query, key = block.f_value(x), block.f_key(x), block.f_key(x)
    rows = []
    for down in edges(x.shape[2], size):
        cells = [(..., down, across) for across in edges(x.shape[3], size)]
        rows.append(torch.cat([attend(query[c], key[c], value[c]) for c in cells], dim=3))
    return block.W(torch.cat(rows, dim=2))


def published(module: PyramidOC, x: Tensor) -> Tensor:
    parts = [module.up_dr(x)]
    parts += [published_context(*each) for each in stages_of(module, x)]
    return module.conv_bn_dropout(torch.cat(parts, dim=1))


def stages_of(module: PyramidOC, x: Tensor) -> list[tuple[nn.Module, Tensor, int]]:
    return [(block, x, size) for block, size in zip(module.stages, module.sizes, strict=True)]


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize(
    ("shape", "sizes"),
    [
        ((2, 13, 9), (1, 2, 3, 6)),
        ((2, 5, 4), (1, 2, 3, 6)),
        ((1, 49, 49), (6,)),
        ((1, 12, 18), (6, 1)),
    ],
    ids=str,
)
def test_equals_the_published_module(
    shape: tuple[int, int, int], sizes: tuple[int, ...], training: bool
) -> None:
    """Output, every gradient and, after the published double update, the running statistics."""
    module = make(sizes).train(training)
    twin = copy.deepcopy(module)
    for stage in twin.stages:
        stage.f_key[1].momentum = 0.1
    n, h, w = shape
    x = noise(n, C, h, w)
    got = run(module, module, x)
    want = run(lambda x: published(twin, x), twin, x)
    assert got["out"].shape == (n, OUT, h, w)
    assert_steps_agree(got, want, n * h * w + C + E + EV)


def test_statistics_of_the_key_norm_are_those_of_the_whole_map() -> None:
    module, x = make(), noise(2, C, 7, 10)
    projected = [stage.f_key[0](x) for stage in module.stages]
    module(x)
    for stage, keys in zip(module.stages, projected, strict=True):
        mean, var = keys.mean((0, 2, 3)), keys.var((0, 2, 3), unbiased=True)
        assert_close(stage.f_key[1].running_mean, 0.19 * mean, 2 * 7 * 10, keys)
        assert_close(stage.f_key[1].running_var, 0.81 + 0.19 * var, 2 * 7 * 10, keys.square())


def test_gradients_reach_everything() -> None:
    module = make().eval()
    grads = run(module, module, noise(2, C, 7, 8))
    for name, _ in module.named_parameters():
        assert float(grads[name].abs().max()) > 0, name
    assert float(grads["x"].abs().min()) > 0


def test_context_is_zero_at_the_start() -> None:
    module = PyramidOC(C, OUT, E, EV, backend="reference")
    seen: list[Tensor] = []
    module.conv_bn_dropout.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    module(torch.randn(2, C, 8, 8))
    assert seen[0].shape[1] == 8 * OUT
    assert int(seen[0][:, 4 * OUT :].count_nonzero()) == 0


def test_features_come_first_then_contexts_in_order() -> None:
    module, x = make().eval(), noise(1, C, 8, 9)
    seen: list[Tensor] = []
    module.conv_bn_dropout.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    module(x)
    assert torch.equal(seen[0][:, : 4 * OUT], module.up_dr(x))
    for i, each in enumerate(stages_of(module, x)):
        context = seen[0][:, (4 + i) * OUT : (5 + i) * OUT]
        assert_close(context, published_context(*each), 8 * 9 + C + E + EV)


def test_one_call_has_all_scales_and_transforms_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def spy(stages, scales, *, backend):
        seen.append(([query is key for query, key, _ in stages], list(scales), backend))
        return pyramid_attention(stages, scales, backend=backend)

    monkeypatch.setattr(pyramid_oc_file, "pyramid_attention", spy)
    module, calls = make(), []
    for stage in module.stages:
        stage.f_key.register_forward_hook(lambda *_: calls.append(1))
    module(noise(1, C, 6, 6))
    assert seen == [([True] * 4, [1, 2, 3, 6], "reference")]
    assert len(calls) == 4


def test_layouts_agree() -> None:
    module, x = make().eval(), noise(2, C, 7, 9)
    permuted = module(x.contiguous(memory_format=torch.channels_last))
    assert_close(permuted, module(x), 63 + C + E + EV)


def test_attention_rows_are_those_of_the_cells() -> None:
    module, x = make().eval(), noise(2, C, 7, 9)
    points = torch.cartesian_prod(torch.arange(7), torch.arange(9))
    maps = module.attention_rows(x, points)
    assert len(maps) == 4
    # With one-hot values the channels of a pixel's context are its row.
    one_hot = torch.eye(63, dtype=torch.float64).reshape(1, 63, 7, 9).expand(2, -1, -1, -1)
    for rows, (block, _, size) in zip(maps, stages_of(module, x), strict=True):
        key, context = block.f_key(x), torch.zeros_like(one_hot)
        cells = [(..., down, across) for down in edges(7, size) for across in edges(9, size)]
        for cell in cells:
            context[cell] = attend(key[cell], key[cell], one_hot[cell])
        assert_close(rows, context.flatten(2).mT.reshape(2, 63, 7, 9), 63 + C + E)


def test_published_names_shapes_and_counts() -> None:
    with torch.device("meta"):
        module = PyramidOC(512, 512, 256, 512)
    state = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    assert state.items() >= PUBLISHED.items()
    assert len(state) == 76
    # 15.23 million of the published head, less its 3 x 3 convolution and its classifier of 19.
    assert sum(p.numel() for p in module.parameters()) == 5_782_016


@pytest.mark.parametrize("load", [nn.Module.load_state_dict, load_checkpoint])
def test_shared_transforms_have_two_names(load: Callable[..., object]) -> None:
    source, target = make(), make()
    state = {name: value.clone() for name, value in source.state_dict().items()}
    assert len(state) == 76
    load(target, dict(state))
    for name, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], value)
    state["stages.2.f_query.0.weight"] += 1
    complaint = r"stages\.2\.f_query\.0\.weight must equal"
    with pytest.raises((RuntimeError, ValueError), match=complaint):
        load(target, state)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="PyramidOC: sizes must name at least one"):
        PyramidOC(C, OUT, E, EV, sizes=())
    with pytest.raises(ValueError, match="PyramidOC: sizes must be at least 1, got 0"):
        PyramidOC(C, OUT, E, EV, sizes=(1, 0))
    with pytest.raises(ValueError, match="points must lie within 7 x 9 pixels"):
        make().eval().attention_rows(noise(1, C, 7, 9), torch.tensor([[7, 0]]))
