# SPDX-License-Identifier: MIT
"""How float32 products may be rounded: as torch rounds those of its own matmuls."""

import torch
from torch import Tensor


def tf32_allowed(tensor: Tensor) -> bool:
    """Tell whether products of ``tensor`` may be rounded to TF32.

    That is so for float32 on a GPU after ``torch.set_float32_matmul_precision("high")`` or
    ``torch.backends.cuda.matmul.fp32_precision = "tf32"``. Read through the newer of torch's two
    settings, which follows the older one; the older raises where the newer was used.
    """
    if tensor.dtype != torch.float32 or tensor.device.type != "cuda":
        return False
    setting: str = torch.backends.cuda.matmul.fp32_precision
    return setting == "tf32"
