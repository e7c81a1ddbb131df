# SPDX-License-Identifier: MIT
"""Calls of the native ops of in-place ABN, their results in float64, and what those may be off by."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ocnet.ops.inplace_abn import reference
from ocnet.ops.inplace_abn.problem import (
    ELU,
    IDENTITY,
    LEAKY_RELU,
    RELU,
    BackwardCall,
    ForwardCall,
    accumulator,
    elu_floor,
)
from ocnet.testing.assertions import rounding_floor

EPS, SCALE_EPS, MOMENTUM = 1e-5, 1e-4, 0.3
VECTORS = ("grad_weight", "grad_bias", "grad_slope")
Results = dict[str, Tensor]


@dataclass(frozen=True)
class Call:
    """One legal call; of planes if ``shape`` has three sizes, else of rows."""

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    activation: int = LEAKY_RELU
    param: float = 0.25
    training: bool = True
    residual: bool = False
    prelu: bool = False
    affine: bool = True
    signed: bool = False
    mean: float = 0.5
    seed: int = 0


@dataclass(frozen=True)
class Tensors:
    """What a call is given; vectors are of the accumulation dtype."""

    x: Tensor
    residual: Tensor | None
    grad_out: Tensor
    weight: Tensor | None
    bias: Tensor | None
    slope: Tensor | None
    running_mean: Tensor
    running_var: Tensor

    def double(self) -> "Tensors":
        return self._map(lambda t: t.double().cpu())

    def to(self, device: str) -> "Tensors":
        return self._map(lambda t: t.to(device))

    def _map(self, change: Any) -> "Tensors":
        pairs = ((f.name, getattr(self, f.name)) for f in dataclasses.fields(self))
        return Tensors(**{name: None if t is None else change(t) for name, t in pairs})


def draw(call: Call) -> Tensors:
    """Draw the tensors of a call. Weights have both signs, and none is so small that it cancels."""
    g = torch.Generator().manual_seed(call.seed)
    c, wide = call.shape[1], accumulator(call.dtype)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(c, generator=g, dtype=torch.float64)

    sign = torch.where(torch.rand(c, generator=g) < 0.4, -1.0, 1.0)
    return Tensors(
        x=(normal(*call.shape) + call.mean).to(call.dtype),
        residual=normal(*call.shape).to(call.dtype) if call.residual else None,
        grad_out=(normal(*call.shape) + 0.2).to(call.dtype),
        weight=(sign * uniform(0.5, 1.5)).to(wide) if call.affine else None,
        bias=normal(c).to(wide) if call.affine else None,
        slope=uniform(0.1, 0.6).to(wide) if call.prelu else None,
        running_mean=normal(c).to(wide),
        running_var=uniform(0.5, 2.0).to(wide),
    )


def run_forward(
    ops: Any,
    call: Call,
    tensors: Tensors,
    *,
    inplace: bool = False,
    moves: bool = False,
    packed: Tensor | None = None,
) -> Results:
    """Run one forward pass; ``moves``: the new running statistics are written over the old ones."""
    x = tensors.x.clone() if inplace else tensors.x
    out = x if inplace else torch.empty_like(x)
    mean, var, new_mean, new_var = (
        torch.empty_like(tensors.running_mean) if call.training else None for _ in range(4)
    )
    running = tensors.running_mean.clone(), tensors.running_var.clone()
    if moves:
        new_mean, new_var = running
    ops.inplace_abn_fwd(
        x, tensors.residual, tensors.weight, tensors.bias, tensors.slope, packed, *running,
        call.training, MOMENTUM, EPS, SCALE_EPS, call.activation, call.param, call.signed,
        out, mean, var, new_mean, new_var,
    )  # fmt: skip
    named = {"out": out, "mean": mean, "var": var, "new_mean": new_mean, "new_var": new_var}
    return {name: tensor for name, tensor in named.items() if tensor is not None}


def run_backward(
    ops: Any, call: Call, tensors: Tensors, out: Tensor, var: Tensor, wanted: Sequence[str]
) -> Results:
    """Run one backward pass for the gradients that are wanted."""
    grads = _empty_gradients(call, tensors, wanted)
    ops.inplace_abn_bwd(
        out, tensors.residual, tensors.grad_out, tensors.weight, tensors.bias, tensors.slope, var,
        call.training, EPS, SCALE_EPS, call.activation, call.param, call.signed,
        *(grads.get(name) for name in ("grad_x", "grad_residual", *VECTORS)),
    )  # fmt: skip
    return grads


def run_backward_in_steps(
    ops: Any, call: Call, tensors: Tensors, out: Tensor, var: Tensor, wanted: Sequence[str]
) -> Results:
    """Run the two steps of the synchronised form, on one rank."""
    grads = _empty_gradients(call, tensors, wanted)
    count = var.new_full((1,), out.numel() // out.shape[1]) if call.training else None
    sums = var.new_empty((2, out.shape[1]))
    given = (
        out, tensors.residual, tensors.grad_out, tensors.weight, tensors.bias, tensors.slope,
    )  # fmt: skip
    pointwise = (SCALE_EPS, call.activation, call.param, call.signed)
    ops.inplace_abn_bwd_reduce(*given, count, *pointwise, sums, *(grads.get(n) for n in VECTORS))
    used = (sums, count) if call.training else (None, None)
    ops.inplace_abn_bwd_apply(
        *given, var, *used, EPS, *pointwise, grads.get("grad_x"), grads.get("grad_residual")
    )
    return grads


def _empty_gradients(call: Call, tensors: Tensors, wanted: Sequence[str]) -> Results:
    return {
        name: torch.empty_like(tensors.running_mean if name in VECTORS else tensors.x)
        for name in wanted
    }


def every_gradient(call: Call) -> list[str]:
    names = ["grad_x"]
    names += ["grad_residual"] * call.residual + ["grad_weight", "grad_bias"] * call.affine
    return names + ["grad_slope"] * call.prelu


# --- in float64 ---


def exact_forward(call: Call, tensors: Tensors, packed: Tensor | None = None) -> Results:
    """Return what the formulas give in float64 for the same numbers."""
    t = tensors.double()
    written = [torch.empty_like(t.x), *(torch.empty_like(t.running_mean) for _ in range(4))]
    given = None if packed is None else packed.double().cpu()
    reference.forward(
        ForwardCall(
            t.x, t.residual, t.weight, t.bias, t.slope, given, t.running_mean, t.running_var,
            call.training, MOMENTUM, EPS, SCALE_EPS, call.activation, call.param, call.signed,
            *written,
        )
    )  # fmt: skip
    names = ("out", "mean", "var", "new_mean", "new_var") if call.training else ("out",)
    return dict(zip(names, written, strict=False))


def exact_backward(
    call: Call, tensors: Tensors, out: Tensor, var: Tensor, monkeypatch: Any
) -> Results:
    """Likewise, from the output and the variance that there are."""
    t = tensors.double()
    # What a saturated ELU is taken to be depends on what was stored.
    monkeypatch.setattr(reference, "elu_floor", lambda _: elu_floor(call.dtype))
    names = every_gradient(call)
    grads = {n: torch.empty_like(t.running_mean if n in VECTORS else t.x) for n in names}
    reference.backward(
        BackwardCall(
            out.double().cpu(), t.residual, t.grad_out, t.weight, t.bias, t.slope,
            var.double().cpu(), call.training, EPS, SCALE_EPS, call.activation, call.param,
            call.signed, *(grads.get(n) for n in ("grad_x", "grad_residual", *VECTORS)),
        )
    )  # fmt: skip
    return grads


class _Channels:
    """Vectors of channels beside a map, and means over what is not a channel."""

    def __init__(self, call: Call, tensors: Tensors) -> None:
        self.t = tensors.double()
        self.others = (0,) if len(call.shape) == 2 else (0, 2)
        self.count = self.t.x.numel() // call.shape[1]
        ones = torch.ones_like(self.t.running_mean)
        weight = ones if self.t.weight is None else self.t.weight
        self.scale = self.of(weight.abs() + SCALE_EPS * call.affine)
        self.bias = 0.0 if self.t.bias is None else self.of(self.t.bias.abs())
        self.residual = 0.0 if self.t.residual is None else self.t.residual.abs()

    def of(self, vector: Tensor) -> Tensor:
        return vector.view(1, -1) if len(self.others) == 1 else vector.view(1, -1, 1)

    def mean(self, values: Tensor) -> Tensor:
        return values.mean(self.others)


def forward_sizes(call: Call, tensors: Tensors, exact: Results) -> Results:
    """Return the sizes of the terms that results are made of: rounding errors go with them."""
    c = _Channels(call, tensors)
    mean = exact["mean"] if call.training else c.t.running_mean
    var = exact["var"] if call.training else c.t.running_var
    deviation = (c.t.x - c.of(mean)).abs()
    normal = c.scale / torch.sqrt(c.of(var) + EPS)
    # That of the variance, of which half goes into the inverse of its root.
    of_var = var + 2 * c.mean(c.t.x.abs() * deviation)
    around = c.t.x.abs() + c.of(c.mean(c.t.x.abs()))
    size = normal * (around + deviation * c.of(of_var / (var + EPS)))
    sizes = {"out": size + c.bias + c.residual, "mean": c.mean(c.t.x.abs()), "var": of_var}
    for name, kept in (("mean", c.t.running_mean), ("var", c.t.running_var)):
        sizes[f"new_{name}"] = kept.abs() + 2 * MOMENTUM * sizes[name]
    return {name: sizes[name] for name in exact}


def backward_sizes(
    call: Call, tensors: Tensors, out: Tensor, var: Tensor, exact: Results
) -> Results:
    """Likewise, of the gradients."""
    c = _Channels(call, tensors)
    z, dz = out.double().cpu(), c.t.grad_out.abs()
    negative = torch.signbit(z)
    slope = call.param if c.t.slope is None else c.of(c.t.slope)
    y, dy = z.abs(), dz
    if call.activation == LEAKY_RELU:
        y, dy = torch.where(negative, z.abs() / slope, y), torch.where(negative, dz * slope, dz)
    elif call.activation == ELU:
        lowest = -1 + elu_floor(call.dtype)
        y = torch.where(negative, torch.log1p((z / call.param).clamp(min=lowest)).abs(), y)
        dy = torch.where(negative, dz * (z.abs() + call.param), dz)
    else:
        assert call.activation in (IDENTITY, RELU)
    centred = y + c.residual + c.bias
    invstd = torch.rsqrt(c.of(var.double().cpu()) + EPS)
    first, second = c.of(c.mean(dy)), c.of(c.mean(centred * dy))
    own = c.scale * invstd * (dy + first) + invstd / c.scale * centred * second
    scale = c.scale.flatten()
    sizes = {
        "grad_x": own if call.training else c.scale * invstd * dy,
        "grad_residual": dy,
        "grad_weight": c.count * second.flatten() / scale,
        "grad_bias": c.count * first.flatten(),
        "grad_slope": c.count * c.mean(y * dz * negative),
    }
    return {name: sizes[name] for name in exact}


def assert_within_rounding(actual: Results, exact: Results, sizes: Results, count: int) -> None:
    """Assert that every number is as near to the exact one as any correct result must be."""
    assert actual.keys() == exact.keys() == sizes.keys()
    for name, result in actual.items():
        want = exact[name]
        info = torch.finfo(result.dtype)
        smallest = info.smallest_normal * info.eps  # subnormals are no nearer to each other
        limit = rounding_floor(result, want, sizes[name], count) + smallest
        error = (result.double().cpu() - want).abs()
        assert bool((error <= limit).all()), f"{name}: {(error / limit).max()} times the limit"


def assert_same_bits(left: Results, right: Results) -> None:
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        a, b = (t.contiguous().cpu().view(torch.uint8) for t in (tensor, right[name]))
        assert torch.equal(a, b), f"{name}: {int((tensor != right[name]).sum())} differ"
