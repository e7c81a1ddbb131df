# SPDX-License-Identifier: MIT
"""Calls of the Triton kernels of in-place ABN on small maps, and what their results are compared with."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from ocnet.ops.inplace_abn import reference
from ocnet.ops.inplace_abn.problem import (
    ELU,
    IDENTITY,
    LEAKY_RELU,
    RELU,
    ApplyCall,
    BackwardCall,
    ForwardCall,
    ReduceCall,
    StatsCall,
    elu_floor,
)
from ocnet.testing import assert_as_accurate

FP16, FP32, FP64 = torch.float16, torch.float32, torch.float64
EPS = 1e-5
NAMES = {IDENTITY: "identity", LEAKY_RELU: "leaky", ELU: "elu", RELU: "relu"}


@dataclass(frozen=True)
class Case:
    """Sizes ``(N, C, L)`` of planes or ``(R, C)`` of rows, and what the call asks for."""

    shape: tuple[int, ...]
    dtype: torch.dtype = FP32
    activation: int = LEAKY_RELU
    param: float = 0.1
    slope: bool = False
    residual: bool = False
    affine: bool = True
    signed: bool = False
    training: bool = True
    mean: float = 0.5

    def __str__(self) -> str:
        words = ["x".join(map(str, self.shape)), str(self.dtype).removeprefix("torch.")]
        words.append(f"{NAMES[self.activation]}{self.param}")
        words += [word for word in ("slope", "residual", "signed") if getattr(self, word)]
        return "-".join((*words, "train" if self.training else "frozen"))


Results = dict[str, Tensor]


class Data:
    """Tensors of a case, and calls of a back end that reads them in a dtype of its own."""

    def __init__(self, case: Case, seed: int = 0) -> None:
        g = torch.Generator().manual_seed(seed)
        c = case.shape[1]
        self.case = case

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=g, dtype=FP64)

        self.x = (draw(*case.shape) + case.mean).to(case.dtype)
        self.grad = draw(*case.shape).to(case.dtype)
        self.residual = draw(*case.shape).to(case.dtype) if case.residual else None
        sign = torch.where(torch.arange(c) % 3 == 1, -1.0, 1.0)
        self.weight = ((0.5 + draw(c).abs()) * sign).float() if case.affine else None
        self.bias = (0.5 * draw(c)).float() if case.affine else None
        self.slope = (case.param * (0.5 + draw(c).abs())).float() if case.slope else None
        self.running = draw(c).float(), (0.5 + draw(c).abs()).float()

    def vector(self) -> Tensor:
        return torch.empty(self.case.shape[1], dtype=self.wide)

    def pointwise(self) -> tuple[Any, ...]:
        return EPS, self.case.activation, self.case.param, self.case.signed

    @property
    def wide(self) -> torch.dtype:
        return FP64 if self.x.dtype == FP64 else FP32

    def double(self) -> "Data":
        """The same numbers in float64."""
        other = Data(self.case)
        for name in ("x", "grad", "residual", "weight", "bias", "slope"):
            tensor = getattr(self, name)
            setattr(other, name, None if tensor is None else tensor.double())
        other.running = self.running[0].double(), self.running[1].double()
        return other

    def forward(self, backend: Any, packed: Tensor | None = None) -> Results:
        out = torch.empty_like(self.x)
        training = self.case.training
        names = ("mean", "var", "new_mean", "new_var") if training else ()
        statistics = {name: self.vector() for name in names}
        call = ForwardCall(
            self.x, self.residual, self.weight, self.bias, self.slope, packed, *self.running,
            training, 0.1, EPS, *self.pointwise(), out,
            *(statistics.get(name) for name in ("mean", "var", "new_mean", "new_var")),
        )  # fmt: skip
        backend.forward(call)
        return {"out": out, **statistics}

    def maps(self, out: Tensor) -> tuple[Any, ...]:
        return out, self.residual, self.grad, self.weight, self.bias, self.slope

    def wanted(self, out: Tensor) -> Results:
        """Tensors for all gradients that there are."""
        maps = {"grad_x": True, "grad_residual": self.case.residual}
        vectors = {
            "grad_weight": self.case.affine, "grad_bias": self.case.affine,
            "grad_slope": self.case.slope,
        }  # fmt: skip
        grads = {name: torch.empty_like(out) for name, wanted in maps.items() if wanted}
        return grads | {name: self.vector() for name, wanted in vectors.items() if wanted}

    def count(self) -> Tensor | None:
        number = self.x.numel() // self.case.shape[1]
        return torch.full((1,), number, dtype=self.wide) if self.case.training else None

    def backward(self, backend: Any, out: Tensor, var: Tensor, grads: Results) -> Results:
        case = self.case
        names = ("grad_x", "grad_residual", "grad_weight", "grad_bias", "grad_slope")
        backend.backward(
            BackwardCall(
                *self.maps(out), var, case.training, EPS, *self.pointwise(), *map(grads.get, names)
            )
        )
        return grads

    def in_steps(self, backend: Any, out: Tensor, var: Tensor) -> Results:
        grads, sums = self.wanted(out), torch.empty(2, self.case.shape[1], dtype=self.wide)
        names = ("grad_weight", "grad_bias", "grad_slope")
        maps, count = self.maps(out), self.count()
        backend.reduce(
            ReduceCall(*maps, count, *self.pointwise(), sums, *(grads.get(n) for n in names))
        )
        used = sums if self.case.training else None
        names = ("grad_x", "grad_residual")
        backend.apply(
            ApplyCall(
                *maps, var, used, count, EPS, *self.pointwise(), *(grads.get(n) for n in names)
            )
        )
        return {"sums": sums, **grads}


def packed_of(backend: Any, x: Tensor, wide: torch.dtype) -> Tensor:
    """Return the packed statistics of a map."""
    packed = torch.empty(2 * x.shape[1] + 1, dtype=wide)
    backend.stats(StatsCall(x, packed))
    return packed


def magnitudes(data: Data, out: Tensor, statistics: tuple[Tensor, Tensor]) -> Results:
    """Sums of the absolute values of the terms of each result; of float64 data."""
    channels = reference._Channels(out)
    of, count = channels.of, data.x.numel() // data.case.shape[1]
    mean, var = statistics
    maps = data.maps(out)
    call = ReduceCall(*maps, data.count(), *data.pointwise(), data.vector(), None, None, None)
    dy, centred, y, scale = reference._recovered(call, channels)
    invstd = (var + EPS).rsqrt()
    others = torch.zeros_like(out)
    if data.bias is not None:
        others = others + of(data.bias).abs()
    if data.residual is not None:
        others = others + data.residual.abs()
    reach = y.abs() + others
    first, second = channels.sum(dy.abs()), channels.sum(reach * dy.abs())
    # of ELU's derivative, which is a difference
    slack = (data.grad * (out.abs() + data.case.param)).abs()
    grad_x = of(scale.abs() * invstd) * (dy.abs() + slack)
    if data.case.training:
        slope = invstd / (scale.abs() * count)
        grad_x = grad_x + of(scale.abs() * invstd * first / count)
        grad_x = grad_x + of(slope * second) * centred.abs()
        grad_x = grad_x + of(slope * channels.sum(centred * dy).abs()) * reach
    apart = (data.x - of(mean)).abs()
    steep = max(1.0, data.case.param) if data.slope is None else of(data.slope.clamp(min=1.0))
    shift = data.x.abs() + of(mean).abs()
    return {
        "out": (of(scale.abs() * invstd) * shift + others) * steep,
        "mean": channels.sum(data.x.abs()) / count,
        "var": channels.sum(apart * apart) / count,
        "new_mean": channels.sum(data.x.abs()) / count + data.running[0].abs(),
        "new_var": channels.sum(apart * apart) / max(count - 1, 1) + data.running[1].abs(),
        "sums": torch.stack((first, second)),
        "grad_x": grad_x,
        "grad_residual": dy.abs() + slack,
        "grad_weight": second / scale.abs(),
        "grad_bias": first,
        "grad_slope": channels.sum((y * data.grad).abs()),
    }


def check(case: Case, backend: Any, patch: pytest.MonkeyPatch) -> None:
    """Assert that every step of a back end is as accurate as the eager one in the same dtype."""
    # The reference in float64 takes saturated numbers as the dtype of the case does.
    patch.setattr(reference, "elu_floor", lambda _: elu_floor(case.dtype))
    data, exact = Data(case), Data(case).double()
    actual, oracle, eager = (
        run.forward(maker)
        for run, maker in ((data, backend), (exact, reference), (data, reference))
    )
    out = actual["out"]
    kept, var = (oracle["mean"], oracle["var"]) if case.training else exact.running
    sizes = magnitudes(exact, out.double(), (kept, var))
    # What was rounded to float32 is given to all.
    given = actual["var"] if case.training else data.running[1]
    for run, results, maker, saved in (
        (data, actual, backend, out),
        (exact, oracle, reference, out.double()),
        (data, eager, reference, out),
    ):
        var = given.to(run.wide)
        results.update(run.backward(maker, saved, var, run.wanted(saved)))
        steps = run.in_steps(maker, saved, var)
        results["sums"] = steps.pop("sums")
        results.update({f"{name} in steps": grad for name, grad in steps.items()})
    terms = data.x.numel() // case.shape[1]
    for name, result in actual.items():
        size = sizes[name.removesuffix(" in steps")]
        assert_as_accurate(f"{case}: {name}", result, oracle[name], [eager[name]], size, terms)
