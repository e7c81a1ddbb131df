# SPDX-License-Identifier: MIT
"""In-place ABN in compiled networks: every place where overwriting could go wrong unseen."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ocnet.ops import inplace_abn

# Said by torch itself: when it traces any Function, graph inputs that are no leaves, and in Inductor.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),
    pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning"),
]


class Layer(nn.Module):
    """A convolution and the op after it."""

    def __init__(self, inplace: bool, channels: int = 6) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.weight = nn.Parameter(torch.rand(channels) + 0.5)
        self.bias = nn.Parameter(torch.rand(channels) - 0.5)
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.inplace = inplace

    def norm(self, x: Tensor) -> Tensor:
        return inplace_abn(
            x, self.weight, self.bias, self.running_mean, self.running_var, self.training,
            inplace=self.inplace,
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class Stack(nn.Module):
    """Three layers, put together by a function of a layer and its input."""

    def __init__(self, inplace: bool, body: Callable[[Layer, Tensor], Tensor]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(inplace) for _ in range(3))
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = self.body(layer, x)
        return x


def after_a_break(layer: Layer, x: Tensor) -> Tensor:
    h = layer.conv(x)
    torch._dynamo.graph_break()
    return layer.norm(h)


def with_the_input_used_after(layer: Layer, x: Tensor) -> Tensor:
    h = layer.conv(x)
    return layer.norm(h) + h


def with_the_input_kept(layer: Layer, x: Tensor) -> Tensor:
    h = layer.conv(x)
    return layer.norm(h.relu()) + h.exp()


def checkpointed(layer: Layer, x: Tensor) -> Tensor:
    return checkpoint(layer, x, use_reentrant=False)


BODIES = {
    "plain": (lambda layer, x: layer(x), True),
    "input used after": (with_the_input_used_after, True),
    "input kept by the layer before": (with_the_input_kept, True),
    "graph input": (lambda layer, x: layer.norm(x), True),
    "after a graph break": (after_a_break, False),
    "checkpointed": (checkpointed, True),
}


def trained(net: nn.Module, call: Callable[[Tensor], Tensor], x: Tensor) -> list[Tensor]:
    """Return what one step makes: output, gradients, running statistics."""
    x = x.clone().requires_grad_()
    out = call(x)
    out.square().mean().backward()
    assert x.grad is not None
    grads = [p.grad for p in net.parameters() if p.grad is not None]
    return [out.detach(), x.grad, *grads, *net.buffers()]


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("name", BODIES)
def test_compiled_is_eager(name: str, inplace: bool, mode: str) -> None:
    body, fullgraph = BODIES[name]
    eager = Stack(False, body).train(mode == "train")
    net = Stack(inplace, body).train(mode == "train")
    net.load_state_dict(eager.state_dict())
    x = torch.randn(2, 6, 9, 7)
    want = trained(eager, eager, x)
    torch._dynamo.reset()
    compiled = torch.compile(net, fullgraph=fullgraph, backend="aot_eager")
    got = trained(net, compiled, x)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("inplace", [False, True])
def test_a_module_compiled_alone(inplace: bool) -> None:
    """What is overwritten is then an input of the graph."""
    eager = Stack(False, BODIES["plain"][0])
    net = copy.deepcopy(eager)
    want = trained(eager, eager, x := torch.randn(2, 6, 9, 7))
    torch._dynamo.reset()
    for layer in net.layers:
        layer.inplace = inplace
        layer.norm = torch.compile(layer.norm, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(trained(net, net, x), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("inplace", [False, True])
def test_compiled_without_gradients(inplace: bool) -> None:
    net = Stack(inplace, BODIES["plain"][0])
    x = torch.randn(2, 6, 9, 7)
    want = copy.deepcopy(net)(x).detach()
    torch._dynamo.reset()
    with torch.no_grad():
        got = torch.compile(net, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("inplace", [False, True])
def test_inductor_writes_over_the_convolution_and_copies_nothing(inplace: bool) -> None:
    from torch._inductor.utils import run_and_get_code

    torch._dynamo.reset()
    eager = Stack(False, BODIES["plain"][0])
    net = Stack(inplace, BODIES["plain"][0])
    net.load_state_dict(eager.state_dict())
    x = torch.randn(2, 6, 9, 7).contiguous(memory_format=torch.channels_last)
    want = trained(eager, eager, x)
    net.to(memory_format=torch.channels_last)
    compiled = torch.compile(net, fullgraph=True)
    got, codes = run_and_get_code(trained, net, compiled, x)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    forward, backward = codes
    name = "inplace_abn_fwd_" if inplace else "inplace_abn_fwd"
    assert forward.count(f"ocnet.{name}.default(") == 3
    assert backward.count("ocnet.inplace_abn_bwd.default(") == 3
    # Beside the layers nothing the size of a map is made: no clone, no other layout.
    body = forward[forward.index("def call(") : forward.index("def get_args")]
    assert "empty_strided_cpu((2, 6, 9, 7)" not in body
