# SPDX-License-Identifier: MIT
"""The norms that networks can be built with, by name."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from ocnet.modules.abn import ABN
from ocnet.modules.inplace_abn import InPlaceABN, InPlaceABNSync

# Called as norm(channels, **options of ABN).
Norm = Callable[..., nn.Module]


class SyncABN(ABN):
    """``ABN`` with the statistics of all ranks in training, by torch's ``SyncBatchNorm``: on GPUs only."""

    def _normalise(self, x: Tensor) -> Tensor:
        together = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        if not (together and self.takes_batch_statistics()):
            return super()._normalise(x)
        if x.device.type != "cuda":
            raise ValueError(
                f"SyncABN: x must be on a CUDA device, as torch's SyncBatchNorm takes no other, got "
                f"{x.device}; norm='inplace_abn_sync' runs on any"
            )
        norm = nn.SyncBatchNorm(
            self.num_features, self.eps, self.momentum, self.affine, self.track_running_stats,
            device="meta",
        )  # fmt: skip
        # The module of torch is the only way to its kernels; it borrows what this layer has.
        for name, values in (*self._parameters.items(), *self._buffers.items()):
            setattr(norm, name, values)
        y: Tensor = norm.train()(x)
        return y


class ReLUAfter(InPlaceABN):
    """``InPlaceABN`` without activation, then an addition and a ReLU, which has no inverse.

    What the published backbones do. It keeps both the normalised map and the result.
    """

    relu_after = True

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Return ``relu(norm(x) + residual)``."""
        y = super().forward(x)
        return F.relu(y) if residual is None else F.relu(y + residual, inplace=True)


class ReLUAfterSync(ReLUAfter, InPlaceABNSync):
    """``ReLUAfter`` with the statistics of all ranks."""


_NORMS: dict[str, type[ABN]] = {
    "batchnorm": ABN,
    "syncbn": SyncABN,
    "inplace_abn": InPlaceABN,
    "inplace_abn_sync": InPlaceABNSync,
}
_WITH_RELU_AFTER = {InPlaceABN: ReLUAfter, InPlaceABNSync: ReLUAfterSync}


def norm_names() -> tuple[str, ...]:
    """Return the names that :func:`norm_layer` knows."""
    return tuple(_NORMS)


def norm_layer(name: str, backend: str = "auto") -> Norm:
    """Return the norm of a name, to be called as ``norm(channels, **options)``.

    Args:
        name: ``batchnorm``, ``syncbn`` (torch's, on GPUs), ``inplace_abn`` or ``inplace_abn_sync``.
        backend: Back end of ``ocnet.ops.inplace_abn``.

    Raises:
        ValueError: Another name.
    """
    if name not in _NORMS:
        raise ValueError(f"create: norm must be one of {', '.join(_NORMS)}, got {name!r}")
    layer = _NORMS[name]
    options: dict[str, Any] = {"backend": backend} if issubclass(layer, InPlaceABN) else {}
    # The published networks have no counters of batches, so their state has none.
    return partial(layer, count_batches=False, **options)


BATCHNORM = norm_layer("batchnorm")


def activated(norm: Norm, activation: str) -> Norm:
    """Return a norm that activates, whatever it is: in-place ones have no ReLU of their own.

    Args:
        norm: What :func:`norm_layer` returned, or a class.
        activation: ``relu``, ``leaky_relu`` or ``identity``.
    """
    layer: Any = norm.func if isinstance(norm, partial) else norm
    if activation == "relu" and layer in _WITH_RELU_AFTER:
        options = norm.keywords if isinstance(norm, partial) else {}
        return partial(_WITH_RELU_AFTER[layer], **{**options, "activation": "identity"})
    return partial(norm, activation=activation)


def nested(norm: Norm) -> Norm:
    """Return a norm inside a ``Sequential`` of its own, for published key names that end in ``.0``."""

    def made(channels: int, **options: Any) -> nn.Sequential:
        return nn.Sequential(norm(channels, **options))

    return made
