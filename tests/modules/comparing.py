# SPDX-License-Identifier: MIT
"""A training step of a module as named tensors, and how close two of them must be."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


def run(forward: Callable[[Tensor], Tensor], module: nn.Module, x: Tensor) -> dict[str, Tensor]:
    x = x.clone().requires_grad_()
    out = forward(x)
    out.backward(torch.linspace(-1, 1, out.numel(), dtype=out.dtype).reshape(out.shape))
    grads = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    stats = {name: b.clone() for name, b in module.named_buffers()}
    return {"out": out.detach(), "x": x.grad, **grads, **stats}


def assert_close(got: Tensor, want: Tensor, terms: int, scale: Tensor | None = None) -> None:
    """Float64 results that sum ``terms`` products agree to the worst case of rounding."""
    assert got.dtype == torch.float64
    size = float((want if scale is None else scale).detach().abs().max())
    bound = terms * torch.finfo(torch.float64).eps * size
    torch.testing.assert_close(got, want, rtol=0, atol=bound)


def assert_steps_agree(got: dict[str, Tensor], want: dict[str, Tensor], terms: int) -> None:
    """Compare what ``run`` returns.

    Gradients before a batch norm are small differences of large ones: the largest sets the scale.
    """
    assert got.keys() == want.keys()
    scale_of_all = torch.stack([value.abs().max() for value in want.values()])
    for name, value in want.items():
        assert_close(got[name], value, terms, scale_of_all)
