# SPDX-License-Identifier: MIT
"""Base-OC, its local control, and that the two differ in nothing but reach."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ocnet.modules import BaseLocal, BaseOC, LocalContext

SHAPES = {
    "stages.0.f_key.0.weight": (5, 6, 1, 1),
    "stages.0.f_key.0.bias": (5,),
    "stages.0.f_key.1.weight": (5,),
    "stages.0.f_key.1.bias": (5,),
    "stages.0.f_key.1.running_mean": (5,),
    "stages.0.f_key.1.running_var": (5,),
    "stages.0.f_value.weight": (5, 6, 1, 1),
    "stages.0.f_value.bias": (5,),
    "stages.0.W.weight": (6, 5, 1, 1),
    "stages.0.W.bias": (6,),
    "conv_bn_dropout.0.weight": (6, 12, 1, 1),
    "conv_bn_dropout.0.bias": (6,),
    "conv_bn_dropout.1.weight": (6,),
    "conv_bn_dropout.1.bias": (6,),
    "conv_bn_dropout.1.running_mean": (6,),
    "conv_bn_dropout.1.running_var": (6,),
}


def base_oc(**options) -> BaseOC:
    return BaseOC(6, 6, 5, 5, backend="reference", **options)


def shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the state, the shared transform under one of its two names."""
    state = module.state_dict()
    return {name: tuple(value.shape) for name, value in state.items() if ".f_query." not in name}


def test_published_names_and_shapes() -> None:
    assert shapes(base_oc()) == SHAPES
    assert len([name for name in shapes(base_oc(sizes=(1, 2))) if ".f_value." in name]) == 4


def test_control_has_the_same_parameters() -> None:
    control = BaseLocal(6, 6, 5, 5)
    assert shapes(control) == SHAPES
    module = base_oc()
    control.load_state_dict({n: v for n, v in module.state_dict().items() if n in SHAPES})
    assert control.stages[0].f_key[1].momentum == module.stages[0].f_key[1].momentum
    assert int(control.stages[0].W.weight.count_nonzero()) == 0


@pytest.mark.parametrize(
    "module", [base_oc(sizes=(1, 2)), BaseLocal(6, 6, 5, 5)], ids=["oc", "local"]
)
def test_context_comes_first_and_sums_over_sizes(module: nn.Module) -> None:
    module.eval()
    for stage in module.stages:
        nn.init.normal_(stage.W.weight)
    seen: list[Tensor] = []
    module.conv_bn_dropout.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    x = torch.randn(2, 6, 5, 4)
    out = module(x)
    assert out.shape == (2, 6, 5, 4)
    context = sum(stage(x) for stage in module.stages)
    assert torch.equal(seen[0], torch.cat([context, x], dim=1))
    assert context.abs().max() > 0


def test_dropout_acts_in_training_only() -> None:
    module, x = base_oc(dropout=1.0), torch.randn(2, 6, 3, 3)
    assert float(module(x).detach().abs().max()) == 0
    assert float(module.eval()(x).detach().abs().max()) > 0


def test_channels_of_the_output() -> None:
    assert BaseOC(6, 8, 5, 3, backend="reference")(torch.randn(2, 6, 3, 3)).shape == (2, 8, 3, 3)
    assert BaseLocal(6, 8, 5, 5)(torch.randn(2, 6, 3, 3)).shape == (2, 8, 3, 3)


def test_control_is_the_windowed_mean_of_the_product() -> None:
    block = LocalContext(6, 5, 5, 4, window=3).eval()
    nn.init.normal_(block.W.weight)
    x = torch.randn(2, 6, 5, 7)
    product = block.f_key(x) * block.f_value(x)
    padded = F.pad(product, (1, 1, 1, 1))
    parts = [padded[:, :, i : i + 5, j : j + 7] for i in range(3) for j in range(3)]
    want = block.W(sum(parts) / 9)
    # Nine terms and one projection of five, each rounded once.
    bound = 16 * torch.finfo(torch.float32).eps * float(want.detach().abs().max())
    torch.testing.assert_close(block(x), want, rtol=0, atol=bound)


@pytest.mark.parametrize("window", [1, 3, 5])
def test_control_reaches_no_further_than_its_window(window: int) -> None:
    block = LocalContext(6, 5, 5, window=window).eval()
    nn.init.normal_(block.W.weight)
    x = torch.randn(1, 6, 11, 11, requires_grad=True)
    block(x)[0, :, 5, 5].sum().backward()
    touched = x.grad[0].abs().sum(0) > 0
    want = torch.zeros(11, 11, dtype=torch.bool)
    r = window // 2
    want[5 - r : 6 + r, 5 - r : 6 + r] = True
    assert torch.equal(touched, want)


def test_object_context_reaches_everywhere() -> None:
    module = base_oc().eval()
    nn.init.normal_(module.stages[0].W.weight)
    x = torch.randn(1, 6, 11, 11, requires_grad=True)
    module(x)[0, :, 5, 5].sum().backward()
    assert bool((x.grad[0].abs().sum(0) > 0).all())


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"value_channels must equal key_channels, 5, .* got 7"):
        BaseLocal(6, 6, 5, 7)
    with pytest.raises(ValueError, match="LocalContext: window must be odd, got 4"):
        LocalContext(6, 5, 5, window=4)
    with pytest.raises(ValueError, match="BaseOC: sizes must name at least one"):
        base_oc(sizes=())
    with pytest.raises(ValueError, match="BaseOC: sizes must be at least 1, got 0"):
        base_oc(sizes=(1, 0))
