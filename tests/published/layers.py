# SPDX-License-Identifier: MIT
"""The published layers, from their formulas, on the tensors of a state dict.

Nothing here is fast, and nothing is shared with the package: every layer is torch's convolution, sums and
exponentials written out, so that the two agree only if both are right.
"""

import re
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-5
MOMENTUM = 0.1
SLOPE = 0.01


@dataclass
class State:
    """Tensors by published name, and how norms and activations read them.

    Attributes:
        tensors: Parameters and buffers; buffers are replaced as training moves them.
        training: Whether norms take the statistics of their batch, and move the running ones.
        magnitudes: Whether scales are ``|weight| + eps``.
        relu: Whether heads have ReLU, and not the leaky one.
    """

    tensors: dict[str, Tensor]
    training: bool = False
    magnitudes: bool = True
    relu: bool = False

    @classmethod
    def of(cls, module: nn.Module, **options: bool) -> "State":
        """Copy the tensors of a module; parameters are leaves that learn."""
        parameters = dict(module.named_parameters(remove_duplicate=False))
        tensors = {}
        for name, value in module.state_dict().items():
            copy = value.detach().clone()
            tensors[name] = copy.requires_grad_(name in parameters)
        # A shared transform has two names and is one leaf.
        for name in tensors:
            twin = re.sub(r"(^|\.)f_query\.", r"\1f_key.", name)
            if value_of(module, name) is value_of(module, twin):
                tensors[name] = tensors[twin]
        return cls(tensors, training=module.training, **options)

    def conv(self, name: str, x: Tensor, stride: int = 1, dilation: int = 1) -> Tensor:
        weight = self.tensors[f"{name}.weight"]
        padding = dilation * (weight.shape[-1] // 2)
        bias = self.tensors.get(f"{name}.bias")
        return F.conv2d(x, weight, bias, stride, padding, dilation)

    def norm(self, name: str, x: Tensor) -> Tensor:
        """Normalise; the running statistics move by a tenth."""
        shape = (1, -1, 1, 1)
        if self.training:
            count = x.numel() // x.shape[1]
            mean = x.mean((0, 2, 3))
            var = (x - mean.view(shape)).square().mean((0, 2, 3))
            for key, batch in (("running_mean", mean), ("running_var", var * count / (count - 1))):
                old = self.tensors[f"{name}.{key}"]
                self.tensors[f"{name}.{key}"] = (1 - MOMENTUM) * old + MOMENTUM * batch.detach()
        else:
            mean, var = (self.tensors[f"{name}.{k}"] for k in ("running_mean", "running_var"))
        scale = self.tensors[f"{name}.weight"]
        if self.magnitudes:
            scale = scale.abs() + EPS
        normal = (x - mean.view(shape)) / torch.sqrt(var.view(shape) + EPS)
        return normal * scale.view(shape) + self.tensors[f"{name}.bias"].view(shape)

    def act(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, x, torch.zeros_like(x) if self.relu else SLOPE * x)

    def abn(self, name: str, x: Tensor) -> Tensor:
        return self.act(self.norm(name, x))

    def conv_abn(self, name: str, x: Tensor, dilation: int = 1) -> Tensor:
        """A ``Sequential`` of a convolution and its norm; the norm may be in one of its own."""
        norm = f"{name}.1.0" if f"{name}.1.0.weight" in self.tensors else f"{name}.1"
        return self.abn(norm, self.conv(f"{name}.0", x, 1, dilation))

    def two_layers(self, name: str, x: Tensor) -> Tensor:
        nested = ".0" if f"{name}.1.0.weight" in self.tensors else ""
        x = self.abn(f"{name}.1{nested}", self.conv(f"{name}.0", x))
        return self.abn(f"{name}.3{nested}", self.conv(f"{name}.2", x))


def value_of(module: nn.Module, name: str) -> Tensor:
    owner, _, leaf = name.rpartition(".")
    value: Tensor = getattr(module.get_submodule(owner), leaf)
    return value


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The plain formula, with its matrix."""
    n, e, h, w = query.shape
    scores = e**-0.5 * query.flatten(2).transpose(1, 2) @ key.flatten(2)
    weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
    context = weights @ value.flatten(2).transpose(1, 2)
    return context.transpose(1, 2).reshape(n, value.shape[1], h, w)


def resize(x: Tensor, size: tuple[int, int], corners: bool = True) -> Tensor:
    """Bilinear interpolation by the two matrices that it is."""
    rows, columns = (
        _interpolation(old, new, corners).to(x) for old, new in zip(x.shape[-2:], size, strict=True)
    )
    return torch.einsum("ri,ncij,kj->ncrk", rows, x, columns)


def _interpolation(old: int, new: int, corners: bool) -> Tensor:
    matrix = torch.zeros(new, old, dtype=torch.float64)
    for i in range(new):
        if corners:
            at = i * (old - 1) / (new - 1) if new > 1 else 0.0
        else:
            at = max(0.0, (i + 0.5) * old / new - 0.5)
        low = min(int(at), old - 1)
        high = min(low + 1, old - 1)
        matrix[i, low] += 1 - (at - low)
        matrix[i, high] += at - low
    return matrix


def cells(size: int, parts: int) -> list[slice]:
    step = size // parts
    return [slice(i * step, size if i == parts - 1 else (i + 1) * step) for i in range(parts)]
