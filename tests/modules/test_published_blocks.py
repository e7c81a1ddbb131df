# SPDX-License-Identifier: MIT
"""Every context block against the published formulas: two training steps and an evaluation, in float64.

Maps are odd, and larger than a few cells: 33 x 45.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ocnet.heads import Decoder, Edge
from ocnet.modules import (
    ASPOC,
    ASPOCR,
    ISA,
    OCR,
    PSP,
    BaseOC,
    BaseOCContext,
    InPlaceABN,
    InterlacedContext,
    ObjectContext,
    PyramidOC,
    SpatialGather,
    activated,
    nested,
    norm_layer,
)
from ocnet.modules.isa import SelfAttention
from ocnet.ops import Blocks
from tests.models.slim import awake
from tests.published import blocks
from tests.published.layers import State

C, E, EV, REGIONS = 6, 5, 7, 3
H, W = 33, 45
ABN = norm_layer("inplace_abn")
RELU = activated(norm_layer("batchnorm"), "relu")
EPS = torch.finfo(torch.float64).eps
DILATIONS = (2, 5, 9)
FACTORS = ((8, 8), (4, 5))

Step = Callable[..., Tensor]


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def two_inputs() -> tuple[Tensor, ...]:
    return noise(2, C, H, W), noise(2, REGIONS, H, W)


class Gathered(nn.Module):
    """OCR with its gathering of regions."""

    def __init__(self, bias: bool, norm: object) -> None:
        super().__init__()
        self.gather = SpatialGather()
        self.ocr = OCR(C, E, 4, 0.0, bias, norm=norm)

    def forward(self, x: Tensor, logits: Tensor) -> Tensor:
        return self.ocr(x, self.gather(x, logits))


class Joined(nn.Module):
    """A head of two results, joined to compare both."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, *inputs: Tensor) -> Tensor:
        return torch.cat([result.flatten() for result in self.head(*inputs)])


def joined(results: tuple[Tensor, Tensor]) -> Tensor:
    return torch.cat([result.flatten() for result in results])


CASES: dict[str, tuple[Callable[[], nn.Module], Step, Callable[[], tuple[Tensor, ...]]]] = {
    **{
        f"oc-{'shared' if shared else 'separate'}-{scale}": (
            lambda shared=shared, scale=scale: ObjectContext(
                C, E, EV, 4, scale, norm=ABN, shared=shared
            ),
            lambda s, x, shared=shared, scale=scale: blocks.object_context(s, "", x, scale, shared),
            lambda: (noise(2, C, H, W),),
        )
        for shared in (True, False)
        for scale in (1, 2)
    },
    **{
        f"{name}-{'shared' if shared else 'separate'}": (make, step, lambda: (noise(2, C, H, W),))
        for shared in (True, False)
        for name, make, step in (
            (
                "base-oc",
                lambda shared=shared: BaseOC(C, C, E, EV, 0.0, (1, 2), norm=ABN, shared=shared),
                lambda s, x, shared=shared: blocks.base_oc(s, "", x, (1, 2), shared),
            ),
            (
                "base-oc-context",
                lambda shared=shared: BaseOCContext(C, C, E, EV, (2,), norm=ABN, shared=shared),
                lambda s, x, shared=shared: blocks.base_oc_context(s, "", x, (2,), shared),
            ),
            (
                "asp-oc",
                lambda shared=shared: ASPOC(
                    C, 4, dilations=DILATIONS, dropout=0.0, norm=ABN, shared=shared
                ),
                lambda s, x, shared=shared: blocks.asp_oc(s, "", x, DILATIONS, shared),
            ),
        )
    },
    "pyramid-oc": (
        lambda: PyramidOC(C, C, E, EV, 0.0, norm=ABN),
        lambda s, x: blocks.pyramid_oc(s, "", x, (1, 2, 3, 6)),
        lambda: (noise(2, C, H, W),),
    ),
    "isa-unit": (
        lambda: SelfAttention(C, E, EV, 4, Blocks(H, W), norm=ABN),
        lambda s, x: blocks.attention_unit(s, "", x),
        lambda: (noise(2, C, H, W),),
    ),
    "isa-block": (
        lambda: InterlacedContext(C, E, EV, 4, norm=ABN),
        lambda s, x: blocks.interlaced(s, "", x, (8, 8)),
        lambda: (noise(2, C, H, W),),
    ),
    "isa": (
        lambda: ISA(C, 4, E, EV, 0.0, norm=ABN),
        lambda s, x: blocks.isa(s, "", x, ((8, 8),)),
        lambda: (noise(2, C, H, W),),
    ),
    "isa-two-factors": (
        lambda: ISA(C, 4, E, EV, 0.0, FACTORS, norm=ABN),
        lambda s, x: blocks.isa(s, "", x, FACTORS),
        lambda: (noise(2, C, H, W),),
    ),
    "ocr-openseg": (
        lambda: Gathered(True, ABN),
        lambda s, x, z: blocks.ocr(s, "ocr.", x, z),
        two_inputs,
    ),
    "ocr-hrnet": (
        lambda: Gathered(False, nested(RELU)),
        lambda s, x, z: blocks.ocr(s, "ocr.", x, z),
        two_inputs,
    ),
    "asp-ocr": (
        lambda: ASPOCR(C, 4, dilations=DILATIONS, dropout=0.0, norm=ABN),
        lambda s, x, z: blocks.asp_ocr(s, "", x, z, DILATIONS),
        two_inputs,
    ),
    "psp": (
        lambda: PSP(C, 4, norm=ABN),
        lambda s, x: blocks.psp(s, "", x),
        lambda: (noise(2, C, H, W),),
    ),
    "decoder": (
        lambda: Joined(Decoder(C, 4, REGIONS, 8, ABN)),
        lambda s, x, y: joined(blocks.decoder(s, "head.", x, y)),
        lambda: (noise(2, C, 17, 23), noise(2, 4, H, W)),
    ),
    "edge": (
        lambda: Joined(Edge((C, 4, 5), 8, ABN)),
        lambda s, *x: joined(blocks.edge(s, "head.", x)),
        lambda: (noise(2, C, H, W), noise(2, 4, 17, 23), noise(2, 5, 9, 12)),
    ),
}


def step(forward: Step, inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """Outputs and gradients of the inputs of one step; gradients of parameters add up."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    out = forward(*leaves)
    out.backward(torch.linspace(-1, 1, out.numel(), dtype=out.dtype).reshape(out.shape))
    return {"out": out.detach(), **{f"input {i}": x.grad for i, x in enumerate(leaves)}}


def close(got: Tensor, want: Tensor, scale: float, name: str) -> None:
    # Sums over all pixels of the batch, in two orders, through a dozen layers.
    bound = 12 * 2 * H * W * EPS * scale
    torch.testing.assert_close(got, want, rtol=0, atol=bound, msg=lambda m: f"{name}: {m}")


@pytest.mark.parametrize("name", CASES)
def test_equals_the_published_formulas(name: str) -> None:
    make, formula, draw = CASES[name]
    module = awake(make()).double().train()
    magnitudes = any(isinstance(m, InPlaceABN) for m in module.modules())
    state = State.of(module, magnitudes=magnitudes, relu=not magnitudes)
    for _ in range(2):
        inputs = draw()
        got = step(module, inputs)
        want = step(lambda *x: formula(state, *x), inputs)
        assert got.keys() == want.keys()
        for key, value in want.items():
            close(got[key], value, float(value.abs().max()), key)
    gradients = {n: state.tensors[n].grad for n, _ in module.named_parameters()}
    largest = max(float(g.abs().max()) for g in gradients.values())
    for key, parameter in module.named_parameters():
        assert parameter.grad is not None, key
        # Those before a norm are small differences of large ones: the largest sets the scale.
        close(parameter.grad, gradients[key], largest, key)
    for key, buffer in module.named_buffers():
        close(buffer, state.tensors[key], float(buffer.abs().max()), key)
    module.eval()
    state.training = False
    inputs = draw()
    want_out = formula(state, *inputs).detach()
    close(module(*inputs).detach(), want_out, float(want_out.abs().max()), "evaluation")


def test_the_running_statistics_of_a_shared_key_norm_move_by_019_and_then_by_036() -> None:
    block = ObjectContext(C, E, EV).double().train()
    x = noise(2, C, H, W)
    keys = block.f_key[0](x).detach()
    mean, var = keys.mean((0, 2, 3)), keys.var((0, 2, 3))
    for kept in (0.81, 0.81**2):
        block(x)
        norm = block.f_key[1]
        close(norm.running_mean, (1 - kept) * mean, 1.0, "mean")
        close(norm.running_var, kept + (1 - kept) * var, 1.0, "variance")


def test_a_formula_that_is_off_is_noticed() -> None:
    """The comparison itself: inputs off by a millionth, and one update of statistics too few."""
    block = awake(ObjectContext(C, E, EV, norm=ABN)).double().train()
    state = State.of(block)
    x = noise(1, C, H, W)
    got = block(x).detach()
    want = blocks.object_context(state, "", x, 1, True).detach()
    close(got, want, float(want.abs().max()), "")
    key = "f_key.1.running_mean"
    close(block.f_key[1].running_mean, state.tensors[key], 1.0, "")
    state.norm("f_key.1", state.conv("f_key.0", x))
    with pytest.raises(AssertionError):
        close(block.f_key[1].running_mean, state.tensors[key], 1.0, "")
    off = blocks.object_context(state, "", 1.000001 * x, 1, True).detach()
    with pytest.raises(AssertionError):
        close(got, off, float(want.abs().max()), "")
