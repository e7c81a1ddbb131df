# SPDX-License-Identifier: MIT
"""torch's attention by each of its kernels, which by itself it chooses from."""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor
from torch.backends.cuda import (
    SDPAParams,
    can_use_cudnn_attention,
    can_use_efficient_attention,
    can_use_flash_attention,
)
from torch.nn.attention import SDPBackend, sdpa_kernel

from ocnet.engine.workload import FORMS as INSTALLED
from ocnet.engine.workload import Form, Workload

_HERE = "benchmarks.sdpa_baselines"
_SDPA = INSTALLED["sdpa"].compute

Check = Callable[[SDPAParams, bool], bool]
_CHECKS: dict[str, tuple[SDPBackend, Check | None]] = {
    "flash": (SDPBackend.FLASH_ATTENTION, can_use_flash_attention),
    "cudnn": (SDPBackend.CUDNN_ATTENTION, can_use_cudnn_attention),
    "efficient": (SDPBackend.EFFICIENT_ATTENTION, can_use_efficient_attention),
    "math": (SDPBackend.MATH, None),
}


def _form(name: str) -> Form:
    kernel, check = _CHECKS[name]

    def compute(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        with sdpa_kernel(kernel):
            out = _SDPA(query, key, value)
        assert isinstance(out, Tensor)
        return out

    def refuses(workload: Workload) -> str:
        if workload.device == "cpu":
            return "on the CPU torch has one kernel, that of the form sdpa"
        return "" if check is None else _refusal(check, workload)

    return Form(
        f"sdpa:{name}",
        compute,
        refuses,
        builds_matrix=lambda workload: check is None,
        provider=_HERE,
    )


def _refusal(check: Check, workload: Workload) -> str:
    """Return why a kernel does not take a call with gradients, in torch's words."""

    def tokens(count: int, channels: int) -> Tensor:
        here = torch.empty(0, device=workload.device, dtype=workload.torch_dtype)
        return here.new_empty((workload.N, 1, count, channels)).requires_grad_()

    operands = (
        tokens(workload.L, workload.E),
        tokens(workload.S, workload.E),
        tokens(workload.S, workload.Ev),
    )
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        # No mask, no dropout, not causal, no shared heads.
        if check(SDPAParams(*operands, None, 0.0, False, False), True):
            return ""
    words = "; ".join(str(warning.message).partition(" (Triggered")[0] for warning in said)
    return words or "torch does not say why"


FORMS = {form.name: form for form in map(_form, _CHECKS)}
