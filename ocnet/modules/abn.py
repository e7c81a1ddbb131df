# SPDX-License-Identifier: MIT
"""Batch norm with its activation in one layer, by torch's own ops."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Self

from ocnet.ops._checks import shape_of
from ocnet.ops.inplace_abn.surroundings import is_recomputation

ACTIVATIONS = ("leaky_relu", "elu", "relu", "identity", "prelu", "none")
# Names of the first version of the reference library.
ACT_RELU, ACT_LEAKY_RELU, ACT_ELU, ACT_NONE = "relu", "leaky_relu", "elu", "none"

_STATISTICS = ("running_mean", "running_var")


class ABN(nn.Module):
    """Normalise each channel over the batch and the pixels, then activate.

    ``activation(weight * (x - mean) / sqrt(var + eps) + bias)``, with the statistics of the batch
    (biased variance) in training and the running ones in evaluation. In training each running
    statistic moves as ``running = (1 - momentum) * running + momentum * batch``, the variance by
    its unbiased estimate.

    ``eps``, ``momentum``, ``activation`` and ``activation_param`` are read in every call, so
    assigning to them takes effect.

    Args:
        num_features: Channels ``C``.
        eps: Added to the variance.
        momentum: Weight of the batch in the running statistics, a fraction. ``None``: they are the
            plain average over all batches so far.
        affine: Learn ``weight`` and ``bias``. Without, both are ``None``.
        track_running_stats: Keep running statistics. Without, evaluation takes those of its batch.
        activation: ``leaky_relu``, ``elu``, ``relu`` or ``identity``; ``none`` is the old name of
            the last.
        activation_param: Slope of ``leaky_relu`` below zero, or the scale of ``elu``; at least 0.
        slope: Old name of ``activation_param``.
        count_batches: Keep ``num_batches_tracked``, which only a ``momentum`` of ``None`` needs. The
            published networks have none.

    Note:
        State keys are those of ``torch.nn.BatchNorm2d``, and of the reference library. ``weight``
        enters with its sign; the in-place layers use ``|weight| + eps``. The activation overwrites
        the normalised map, which batch norm does not keep for its backward. ``half()`` and
        ``bfloat16()`` leave the running statistics as they are, and so does what activation
        checkpointing computes again.

    Source: Rota Bulò, Porzi, Kontschieder, CVPR 2018 (arXiv 1712.02616), for the layer and its
    constructor.
    """

    _version = 2
    # Of layers that activate by a ReLU of their own, after an addition.
    relu_after = False

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        activation: str = "leaky_relu",
        activation_param: float = 0.01,
        *,
        slope: float | None = None,
        count_batches: bool = True,
    ) -> None:
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.momentum = momentum
        self.affine = affine
        self.track_running_stats = track_running_stats
        self.activation = activation
        self.activation_param = activation_param if slope is None else slope
        self.frozen = False
        self._check_activation()
        for name in ("weight", "bias"):
            values = nn.Parameter(torch.empty(num_features)) if affine else None
            self.register_parameter(name, values)
        for name in _STATISTICS:
            self.register_buffer(name, torch.empty(num_features) if track_running_stats else None)
        if momentum is None and not count_batches:
            raise ValueError(
                f"{type(self).__name__}: count_batches must be true for a momentum of None, got False"
            )
        counted = track_running_stats and count_batches
        counter = torch.tensor(0, dtype=torch.int64) if counted else None
        self.register_buffer("num_batches_tracked", counter)
        self.reset_parameters()

    def reset_running_stats(self) -> None:
        """Set the running mean to 0, the running variance to 1, and the count of batches to 0."""
        if self.running_mean is not None and self.running_var is not None:
            self.running_mean.zero_()
            self.running_var.fill_(1)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.zero_()

    def reset_parameters(self) -> None:
        """Set ``weight`` to 1, ``bias`` to 0, and the running statistics to their start."""
        self.reset_running_stats()
        if self.weight is not None and self.bias is not None:
            nn.init.ones_(self.weight)
            nn.init.zeros_(self.bias)

    def freeze(self) -> Self:
        """Use the running statistics for good, in training too, and learn neither weight nor bias."""
        if self.running_mean is None:
            raise ValueError(
                f"{type(self).__name__}: track_running_stats must be true to freeze, got False"
            )
        self.frozen = True
        return self.requires_grad_(False)

    def unfreeze(self) -> Self:
        """Undo :meth:`freeze`."""
        self.frozen = False
        return self.requires_grad_(True)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Return the normalised and activated map, of the shape and dtype of ``x``.

        Args:
            x: ``(N, C, ...)``, floating.
            residual: Added before the activation; of the shape of ``x``.

        Raises:
            ValueError: Other channels, one value per channel in training, or an unknown activation.
        """
        self._check(x)
        y = self._normalise(x)
        if residual is not None:
            y = y + residual
        activation, param = self.activation, self.activation_param
        if activation == "leaky_relu":
            return F.leaky_relu(y, param, inplace=True)
        if activation == "elu":
            return F.elu(y, param, inplace=True)
        return F.relu(y, inplace=True) if activation == "relu" else y

    def takes_batch_statistics(self) -> bool:
        """Return whether a call would normalise by the statistics of its batch."""
        return (self.training and not self.frozen) or self.running_mean is None

    def _normalise(self, x: Tensor) -> Tensor:
        mean, var = self.running_mean, self.running_var
        weight: Tensor | None = self.weight
        bias: Tensor | None = self.bias
        if x.dtype != torch.float64 and weight is not None and bias is not None:
            # torch takes vectors of 16-bit maps in one dtype, that of the statistics.
            weight, bias = weight.float(), bias.float()
        batch = self.takes_batch_statistics()
        if not batch or mean is None or var is None:
            return F.batch_norm(x, mean, var, weight, bias, batch, 0.0, self.eps)
        if is_recomputation():
            # What it saves must be alike, but nothing is to move again.
            mean, var = mean.clone(), var.clone()
            return F.batch_norm(x, mean, var, weight, bias, True, 0.0, self.eps)
        momentum = self._momentum()
        if isinstance(momentum, float):
            y = F.batch_norm(x, mean, var, weight, bias, True, momentum, self.eps)
        else:
            # Moved all the way, statistics become those of the batch, and follow on the device.
            batch_mean, batch_var = torch.zeros_like(mean), torch.zeros_like(var)
            y = F.batch_norm(x, batch_mean, batch_var, weight, bias, True, 1.0, self.eps)
            mean.lerp_(batch_mean, momentum)
            var.lerp_(batch_var, momentum)
        self._count_batch()
        return y

    def _momentum(self) -> float | Tensor:
        """Return the momentum of the next batch: a number, or one on the device that is not read."""
        if self.momentum is not None:
            return float(self.momentum)
        assert self.num_batches_tracked is not None
        assert self.running_mean is not None
        return 1.0 / (self.num_batches_tracked + 1).to(self.running_mean.dtype)

    def _count_batch(self) -> None:
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)

    def _check(self, x: Tensor) -> None:
        name = type(self).__name__
        if x.dim() < 2 or x.shape[1] != self.num_features:
            raise ValueError(
                f"{name}: x must have shape (N, {self.num_features}, ...), got {shape_of(x)}"
            )
        if self.takes_batch_statistics() and x.numel() <= x.shape[1]:
            raise ValueError(
                f"{name}: x must have more than one value per channel in training, because the "
                f"variance of one value is zero, got {shape_of(x)}"
            )
        self._check_activation()

    def _check_activation(self) -> None:
        name, allowed = type(self).__name__, self._activations()
        if self.activation not in allowed:
            raise ValueError(
                f"{name}: activation must be one of {', '.join(allowed)}, got {self.activation!r}"
            )
        # Below zero the sign of the output no longer tells the branch, which the in-place backward
        # reads.
        if self.activation_param < 0:
            raise ValueError(
                f"{name}: activation_param must be at least 0, got {self.activation_param}"
            )

    def _activations(self) -> tuple[str, ...]:
        return tuple(name for name in ACTIVATIONS if name != "prelu")

    def extra_repr(self) -> str:
        """Return the constructor's arguments, the activation with its parameter in brackets."""
        activation = self.activation
        if activation in ("leaky_relu", "elu"):
            activation = f"{activation}[{self.activation_param}]"
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, "
            f"activation={activation}"
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = {name: self._buffers[name] for name in _STATISTICS}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, old in before.items():
            new = self._buffers[name]
            # Sixteen bits are too few: a momentum of 0.1 would no longer move them.
            if old is not None and new is not None and new.dtype.itemsize < old.dtype.itemsize == 4:
                self._buffers[name] = old.to(new.device)
        return self

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        *args: Any,
        **kwargs: Any,
    ) -> None:
        key = prefix + "num_batches_tracked"
        old = (local_metadata.get("version") or 0) < self._version
        if self.num_batches_tracked is None:
            state_dict.pop(key, None)
        elif old and key not in state_dict:
            state_dict[key] = torch.tensor(0, dtype=torch.int64)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args, **kwargs)
