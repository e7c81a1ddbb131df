# SPDX-License-Identifier: MIT
"""Activated batch norm that keeps its output and not its input, alone and over several processes."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ocnet.modules.abn import ABN, ACTIVATIONS
from ocnet.ops import inplace_abn
from ocnet.ops.inplace_abn.surroundings import is_recomputation

# Slopes of prelu are held above it: the backward pass divides by them.
LEAST_SLOPE = 1e-3


class InPlaceABN(ABN):
    """``ABN`` whose backward pass needs only the output: the next layer keeps that anyway.

    ``activation(scale * (x - mean) / sqrt(var + eps) + bias)``; see
    :func:`ocnet.ops.inplace_abn` for the formulas and the error law.

    Args:
        num_features: Channels ``C``.
        eps: Added to the variance, and to the magnitude of the weight.
        momentum: As in ``ABN``, like the next two.
        affine: See ``momentum``.
        track_running_stats: See ``momentum``.
        activation: ``leaky_relu``, ``elu``, ``identity`` (``none``), ``prelu``; and ``relu`` where
            statistics are frozen.
        activation_param: Slope of ``leaky_relu`` or scale of ``elu``, above 0; where the slopes of
            ``prelu`` begin.
        slope: Old name of ``activation_param``.
        count_batches: As in ``ABN``.
        inplace: Let the result overwrite the input, see the op. By default it does not: what is
            saved for backward is the same.
        scale_mode: ``abs_eps``, ``|weight| + eps``, as in the reference library; ``signed`` keeps the
            sign, and is batch norm to within ``eps``.
        scale_eps: In place of ``eps`` in the scale.
        backend: Of the op.

    Note:
        State keys are those of ``ABN``, and ``slope`` with ``prelu``, whose slopes are used as at least
        1e-3. The reference library overwrites its input always.

    Source: Rota Bulò, Porzi, Kontschieder, CVPR 2018 (arXiv 1712.02616).
    """

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
        inplace: bool = False,
        scale_mode: str = "abs_eps",
        scale_eps: float | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, activation, activation_param,
            slope=slope, count_batches=count_batches,
        )  # fmt: skip
        self.inplace = inplace
        self.scale_mode = scale_mode
        self.scale_eps = scale_eps
        self.backend = backend
        begin = float(self.activation_param)
        slopes = torch.full((num_features,), begin) if activation == "prelu" else None
        self.slope: nn.Parameter | None
        self.register_parameter("slope", None if slopes is None else nn.Parameter(slopes))

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Return the normalised and activated map, of the shape, dtype and layout of ``x``.

        Args:
            x: ``(N, C, ...)``; not to be used afterwards if ``inplace``.
            residual: Added before the activation; of the shape of ``x``.

        Raises:
            ValueError: Other channels, one value per channel in training, an unknown activation, or
                ``relu`` with the statistics of the batch.
        """
        self._check(x)
        batch = self.takes_batch_statistics()
        moves = batch and self.running_mean is not None and not is_recomputation()
        momentum = self._momentum() if moves else 0.1
        param = self.used_slopes() if self.activation == "prelu" else self.activation_param
        y = inplace_abn(
            x, self.weight, self.bias, self.running_mean, self.running_var, batch, momentum,
            self.eps, "identity" if self.activation == "none" else self.activation, param,
            scale_mode=self.scale_mode, scale_eps=self.scale_eps, residual=residual,
            inplace=self.inplace, backend=self.backend, **self._group_options(),
        )  # fmt: skip
        if moves:
            self._count_batch()
        return y

    def used_slopes(self) -> Tensor:
        """Return the slopes of ``prelu`` as they are used."""
        if self.slope is None:
            raise ValueError(
                f"{type(self).__name__}: activation must be given to the constructor to be prelu, "
                "which has slopes to learn, got an assignment"
            )
        return self.slope.clamp_min(LEAST_SLOPE)

    def _group_options(self) -> dict[str, Any]:
        return {}

    def _activations(self) -> tuple[str, ...]:
        return ACTIVATIONS


class _Shared:
    """A process group as an attribute: copies of a layer talk to the same ranks."""

    def __init__(self, group: Any) -> None:
        self.group = group

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Shared":
        return self


class InPlaceABNSync(InPlaceABN):
    """``InPlaceABN`` with the statistics of all ranks of a process group, in training.

    Args:
        *args: As ``InPlaceABN``.
        group: Ranks to synchronise over; ``None``: those of the default group, looked up in each
            call, or this process alone where there is none. For a rank that is not a member it works
            alone.
        **kwargs: As ``InPlaceABN``.

    Note:
        Ranks may have batches of any size, or none. Use ``DistributedDataParallel`` or FSDP around the
        network: gradients of weight and bias are this rank's. ``layer`` is the name of the layer in
        errors about ranks that do not come; ``name_layers`` sets it throughout a network.
    """

    def __init__(self, *args: Any, group: Any = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._group = _Shared(group)
        self.layer = ""

    @property
    def group(self) -> Any:
        """The process group; ``None`` for the default one."""
        return self._group.group

    def set_group(self, group: Any) -> None:
        """Synchronise over another process group from the next call on."""
        self._group = _Shared(group)

    def _check(self, x: Tensor) -> None:
        # How many values there are over all ranks, the op finds out.
        name = type(self).__name__
        if x.dim() < 2 or x.shape[1] != self.num_features:
            raise ValueError(
                f"{name}: x must have shape (N, {self.num_features}, ...), got {tuple(x.shape)}"
            )
        self._check_activation()

    def _group_options(self) -> dict[str, Any]:
        if not (dist.is_available() and dist.is_initialized()):
            return {}
        group = dist.group.WORLD if self.group is None else self.group
        return {"group": group, "layer": self.layer}


def name_layers(model: nn.Module) -> None:
    """Tell every ``InPlaceABNSync`` of a network its name there, for errors about missing ranks."""
    for name, module in model.named_modules():
        if isinstance(module, InPlaceABNSync):
            module.layer = name
