# SPDX-License-Identifier: MIT
"""What the Triton back ends share: which calls they take, where they launch, names of strides."""

import contextlib
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from ocnet._env import triton_interpreted
from ocnet.ops._backends import SUPPORTED, Support

MIN_CAPABILITY = (8, 0)


class OnDevice(Protocol):
    """Any problem: it is somewhere, in some dtype."""

    @property
    def device(self) -> torch.device:
        """Where its tensors are."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Of all its maps."""
        ...


P = TypeVar("P", bound=OnDevice)


def supports(
    problem: P, refuse: Callable[[P, str], Support | None], load: Callable[[], Any]
) -> Support:
    """Take fp16, bf16 and fp32 on NVIDIA GPUs; in Triton's interpreter, fp16 and fp32 on the CPU.

    Args:
        problem: The call.
        refuse: Returns why no compiled kernel for a type of device takes it, or ``None``.
        load: Imports the kernels.

    Returns:
        Whether Triton kernels take it, and the reason when they do not.
    """
    interpreted = triton_interpreted()
    refusal = refuse(problem, "cpu" if interpreted else "cuda")
    if refusal is not None:
        return refusal
    if problem.dtype == torch.float64:
        return Support(False, "its kernels sum in float32, which is not enough for torch.float64")
    if interpreted and problem.dtype == torch.bfloat16:
        return Support(False, "Triton's interpreter does not compute torch.bfloat16 correctly")
    try:
        load()
    except ImportError as error:
        return Support(False, f"triton cannot be imported ({error})", missing_build=True)
    return SUPPORTED if interpreted else _supports_gpu(problem.device)


def _supports_gpu(device: torch.device) -> Support:
    if torch.version.hip is not None:
        return Support(False, "its tiles are made for NVIDIA GPUs, and this torch is built for AMD")
    capability = torch.cuda.get_device_capability(device)
    if capability < MIN_CAPABILITY:
        return Support(
            False,
            "it needs compute capability {}.{} or later, and ".format(*MIN_CAPABILITY)
            + "{} has {}.{}".format(device, *capability),
        )
    return SUPPORTED


def on(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Make the tensors' GPU the current one, which is where Triton launches."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def strides(matrix: str, axes: str, tensor: Tensor) -> dict[str, int]:
    """Return the kernel's names of a tensor's leading strides with their values."""
    return {
        f"stride_{matrix}{axis}": stride
        for axis, stride in zip(axes, tensor.stride(), strict=False)
    }
