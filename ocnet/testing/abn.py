# SPDX-License-Identifier: MIT
"""Calls of ``inplace_abn``: their sizes, tensors made for them, and what any correct result is near to."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ocnet.ops import inplace_abn
from ocnet.ops.inplace_abn.problem import elu_floor
from ocnet.ops.inplace_abn.reference import effective_scale, naive_inplace_abn

LAYOUTS = ("nchw", "channels_last", "cropped", "expanded", "transposed")
ACTIVATIONS = (
    ("leaky_relu", 0.01),
    ("leaky_relu", 0.2),
    ("elu", 1.0),
    ("elu", 0.5),
    ("identity", 1.0),
    ("prelu", 0.25),
)
EPS = 1e-5


@dataclass(frozen=True)
class ABNCase:
    """One legal call.

    Attributes:
        shape: ``(N, C, ...)``.
        dtype: Of the maps.
        layout: ``nchw``, ``channels_last``, ``cropped`` (no dense planes), ``expanded`` (a batch stride
            of zero), ``transposed`` (rows and columns swapped); of the input.
        grad_layout: Of the gradient of the output, likewise.
        activation: A name.
        param: Slope or scale; of ``prelu`` the mean of the slopes.
        affine: Whether there are weight and bias; weights have both signs.
        signed: Whether the scale keeps the sign of the weight.
        training: Whether statistics are those of the batch.
        residual: Whether a map is added before the activation.
        mean: Of the input.
    """

    shape: tuple[int, ...] = (2, 5, 6, 7)
    dtype: torch.dtype = torch.float32
    layout: str = "nchw"
    grad_layout: str = "nchw"
    activation: str = "leaky_relu"
    param: float = 0.01
    affine: bool = True
    signed: bool = False
    training: bool = True
    residual: bool = False
    mean: float = 0.5

    def __str__(self) -> str:
        """Return a readable test id."""
        words = [
            str(self.dtype).removeprefix("torch."),
            self.layout,
            "x".join(map(str, self.shape)),
        ]
        words += [f"{self.activation}{self.param}", "train" if self.training else "eval"]
        words += [word for word in ("affine", "signed", "residual") if getattr(self, word)]
        return "-".join(words)


@dataclass(frozen=True)
class ABNInputs:
    """Leaf tensors of one call."""

    case: ABNCase
    x: Tensor
    weight: Tensor | None
    bias: Tensor | None
    slope: Tensor | None
    residual: Tensor | None
    running_mean: Tensor
    running_var: Tensor
    grad_out: Tensor

    def leaves(self) -> dict[str, Tensor]:
        """Return what gradients are taken of, by name."""
        names = ("x", "weight", "bias", "slope", "residual")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def copy(self, dtype: torch.dtype) -> "ABNInputs":
        """Return the same numbers in another dtype, dense, as new leaves."""

        def leaf(values: Tensor | None, to: torch.dtype) -> Any:
            if values is None:
                return None
            return values.detach().to(to).contiguous().clone().requires_grad_(values.requires_grad)

        wide = torch.float64 if dtype == torch.float64 else torch.float32
        vectors = ("weight", "bias", "slope", "running_mean", "running_var")
        maps = {n: leaf(getattr(self, n), dtype) for n in ("x", "residual", "grad_out")}
        return ABNInputs(self.case, **maps, **{n: leaf(getattr(self, n), wide) for n in vectors})


Results = dict[str, Tensor]


def in_layout(values: Tensor, layout: str) -> Tensor:
    """Return the numbers in other strides; ``expanded`` repeats the first image's."""
    if layout == "channels_last":
        return values.movedim(1, -1).contiguous().movedim(-1, 1)
    if layout == "cropped":
        padded = torch.full((*values.shape[:-1], values.shape[-1] + 2), torch.nan).to(values)
        padded[..., 1:-1] = values
        return padded[..., 1:-1]
    if layout == "expanded":
        return values[:1].expand_as(values)
    if layout == "transposed":
        return values.transpose(-1, -2).contiguous().transpose(-1, -2)
    return values


def make_abn_inputs(case: ABNCase, seed: int = 0, device: str = "cpu") -> ABNInputs:
    """Draw the tensors of a case; the same seed gives the same numbers on every device."""
    g = torch.Generator().manual_seed(seed)
    c = case.shape[1]
    wide = torch.float64 if case.dtype == torch.float64 else torch.float32

    def draw(shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64)

    def a_map(layout: str, mean: float = 0.0) -> Tensor:
        values = (draw(case.shape) + mean).to(case.dtype)
        return in_layout(values, layout).to(device)

    def vector(values: Tensor, wanted: bool = True, grad: bool = True) -> Tensor | None:
        return values.to(wide).to(device).requires_grad_(grad) if wanted else None

    sign = torch.where(torch.rand(c, generator=g) < 0.4, -1.0, 1.0)
    weight = vector((0.5 + torch.rand(c, generator=g)) * sign, case.affine)
    slopes = case.param * (0.5 + torch.rand(c, generator=g))
    running_mean = vector(draw((c,)) * 0.3 + case.mean, grad=False)
    running_var = vector(0.5 + torch.rand(c, generator=g), grad=False)
    assert running_mean is not None
    assert running_var is not None
    return ABNInputs(
        case,
        a_map(case.layout, case.mean).requires_grad_(),
        weight,
        vector(0.5 * draw((c,)), case.affine),
        vector(slopes, case.activation == "prelu"),
        a_map(case.layout).requires_grad_() if case.residual else None,
        running_mean,
        running_var,
        a_map(case.grad_layout),
    )


def random_abn_cases(
    count: int,
    seed: int,
    dtypes: tuple[torch.dtype, ...],
    max_side: int = 23,
    max_channels: int = 70,
) -> Iterator[ABNCase]:
    """Draw legal calls: odd sizes, every rank, layout, dtype and activation."""
    rng = random.Random(seed)
    for _ in range(count):
        sides = [rng.choice((1, 2, 3, 7, 8, rng.randint(1, max_side))) for _ in range(3)]
        rank = rng.choice((2, 3, 4, 4, 4, 5))
        spatial = sides[: rank - 2] if rank < 5 else [2, *sides[:2]]
        channels = rng.choice((1, 2, 3, 4, 8, 16, 19, 33, 64, rng.randint(1, max_channels)))
        batch = rng.choice((1, 2, 3, 5))
        layouts = [la for la in LAYOUTS if rank > 3 or la not in ("transposed", "cropped")]
        activation, param = rng.choice(ACTIVATIONS)
        if batch * torch.Size(spatial).numel() < 2:
            batch = 2
        yield ABNCase(
            (batch, channels, *spatial), rng.choice(dtypes), rng.choice(layouts), rng.choice(layouts),
            activation, param, affine=rng.random() < 0.8, signed=rng.random() < 0.3,
            training=rng.random() < 0.75, residual=rng.random() < 0.3,
            mean=rng.choice((0.0, 0.5, 3.0)),
        )  # fmt: skip


def _call(inputs: ABNInputs, function: object, x: Tensor, **options: object) -> Results:
    case = inputs.case
    moved = inputs.running_mean.clone(), inputs.running_var.clone()
    assert callable(function)
    out = function(
        x, inputs.weight, inputs.bias, *moved, case.training, 0.1, EPS, case.activation,
        case.param if inputs.slope is None else inputs.slope,
        scale_mode="signed" if case.signed else "abs_eps", residual=inputs.residual, **options,
    )  # fmt: skip
    leaves = inputs.leaves()
    grads = torch.autograd.grad(out, list(leaves.values()), inputs.grad_out)
    named = {f"grad_{name}": grad for name, grad in zip(leaves, grads, strict=True)}
    statistics = dict(zip(("running_mean", "running_var"), moved, strict=True))
    return {"out": out.detach(), **named, **statistics}


def run_abn(inputs: ABNInputs, backend: str, *, inplace: bool = False) -> Results:
    """Run the op, forward and backward; over a copy of the input if in place."""
    # A copy of the same strides that is no leaf.
    x = inputs.x * 1 if inplace else inputs.x
    return _call(inputs, inplace_abn, x, backend=backend, exact=False, inplace=inplace)


def run_naive_abn(inputs: ABNInputs, dtype: torch.dtype) -> Results:
    """Run the plain formula on the same numbers in a dtype."""
    plain = inputs.copy(dtype)
    return _call(plain, naive_inplace_abn, plain.x)


def abn_scheme(inputs: ABNInputs) -> tuple[Results, Results]:
    """Recover the input from an output that was rounded once, everything else in float64.

    Returns:
        The results, whose errors are those that any implementation of the scheme has; and for each
        result the sum of the absolute values of its terms, which rounding in sums is relative to.
    """
    case, dtype, p = inputs.case, inputs.case.dtype, inputs.copy(torch.float64)
    shape = [1, -1] + [1] * (p.x.dim() - 2)
    others = [0, *range(2, p.x.dim())]

    def of(values: Tensor | None, otherwise: float) -> Tensor:
        filled = torch.full((p.x.shape[1],), otherwise, dtype=torch.float64)
        return (filled if values is None else values.detach().cpu()).view(shape)

    x, grad = p.x.detach().cpu(), p.grad_out.cpu()
    residual = torch.zeros_like(x) if p.residual is None else p.residual.detach().cpu()
    weight = None if p.weight is None else effective_scale(p.weight.detach(), EPS, case.signed)
    scale, bias, slope = of(weight, 1.0), of(p.bias, 0.0), of(p.slope, case.param)
    mean = x.mean(others, keepdim=True) if case.training else of(p.running_mean, 0.0)
    var = ((x - mean) ** 2).mean(others, keepdim=True) if case.training else of(p.running_var, 1.0)
    invstd = torch.rsqrt(var + EPS)
    y = scale * (x - mean) * invstd + bias + residual
    negative, leaky = torch.signbit(y), case.activation in ("leaky_relu", "prelu")
    z = torch.where(negative, slope * y, y) if leaky else y
    z = torch.where(negative, case.param * torch.expm1(y), y) if case.activation == "elu" else z
    z = torch.relu(y) if case.activation == "relu" else z
    z = z.to(dtype).double()

    back, dy = z, grad
    if leaky:
        back, dy = torch.where(negative, z / slope, z), torch.where(negative, slope * grad, grad)
    elif case.activation == "elu":
        inner = (z / case.param).clamp(min=-1 + elu_floor(dtype))
        back = torch.where(negative, torch.log1p(inner), z)
        dy = torch.where(negative, grad * (z + case.param), grad)
    elif case.activation == "relu":
        dy = torch.where(z > 0, grad, 0.0)
    centred = back - residual - bias
    count = x.numel() // x.shape[1]
    first, second = dy.sum(others, keepdim=True), (centred * dy).sum(others, keepdim=True)
    own = scale * invstd
    dx = own * dy
    size = (scale.abs() * invstd) * dy.abs()
    # Of y as the difference of two terms, which near constant channels are far larger than it.
    terms = scale.abs() * invstd * (x.abs() + mean.abs())
    reach = terms + back.abs() + residual.abs() + bias.abs()
    second_size = (reach * dy.abs()).sum(others, keepdim=True)
    if case.training:
        bound = scale.abs() * (count - 1) ** 0.5
        centred = torch.minimum(torch.maximum(centred, -bound), bound)
        dx = dx - own * first / count - invstd / scale * centred * second / count
        size = size + own.abs() * dy.abs().mean(others, keepdim=True)
        size = size + (invstd / scale.abs()) * (
            reach * second.abs() / count + centred.abs() * second_size / count
        )
    sign = torch.ones_like(scale)
    if p.weight is not None and not case.signed:
        sign = torch.where(of(p.weight, 1.0) < 0, -1.0, 1.0).double()
    zero = torch.zeros_like(z)
    share = 0.1 * count / max(count - 1, 1) if case.training else 0.0
    kept = 0.9 if case.training else 1.0
    keep = p.running_mean.cpu(), p.running_var.cpu()
    values = {
        "out": z,
        "grad_x": dx,
        "grad_weight": (sign * second / scale).flatten(),
        "grad_bias": first.flatten(),
        "grad_slope": torch.where(negative, back * grad, zero).sum(others),
        "grad_residual": dy,
        "running_mean": kept * keep[0] + (1 - kept) * mean.flatten(),
        "running_var": kept * keep[1] + share * var.flatten(),
    }
    spread = (x - mean) ** 2
    sizes = {
        "out": terms + bias.abs() + residual.abs(),
        "grad_x": size,
        "grad_weight": (second_size / scale.abs()).flatten(),
        "grad_bias": dy.abs().sum(others),
        "grad_slope": torch.where(negative, (back * grad).abs(), zero).sum(others),
        "grad_residual": dy.abs() + (grad * z).abs(),
        "running_mean": keep[0].abs() + 0.1 * x.abs().mean(others),
        "running_var": keep[1].abs() + 0.1 * spread.mean(others),
    }
    names = {"out", *(f"grad_{name}" for name in inputs.leaves()), "running_mean", "running_var"}
    return {n: values[n] for n in names}, {n: sizes[n] for n in names}
