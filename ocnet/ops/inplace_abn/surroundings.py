# SPDX-License-Identifier: MIT
"""Who else looks at a call: where its result may go, and what it may move."""

from typing import Any, NoReturn

import torch
from torch import Tensor

from ocnet.ops.inplace_abn.layout import is_matrix

# Into memory of its own, over a copy of the input (which Inductor leaves out, so that a compiled graph
# overwrites the input without anybody seeing it), or over the input.
NEW, OVER_COPY, OVER_INPUT = "new", "over_copy", "over_input"

_PLAIN = frozenset((Tensor, torch.nn.Parameter, type(None)))


class ConsumedTensor(Tensor):
    """A map that was overwritten by the result: every use of it is an error that says so."""

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> NoReturn:
        """Refuse."""
        raise RuntimeError(
            "inplace_abn: x must not be used after a call with inplace=True, which wrote its result "
            f"over it, got {getattr(func, '__name__', func)}; use what the call returned, or "
            "inplace=False"
        )


def runs_eagerly(tensors: tuple[Tensor | None, ...]) -> bool:
    """Return whether nobody looks at the ops of a call, so that its steps can be called as they are.

    Compilers, modes, transforms of ``torch.func`` and subclasses of tensors look.
    """
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0:
        return False
    plain = _PLAIN.issuperset(map(type, tensors))
    return plain and not is_transformed() and tensors[0] is not None and not tensors[0].is_meta


def is_transformed() -> bool:
    """Return whether a transform of ``torch.func`` is at work, which takes Functions but no ops."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._functorch.peek_interpreter_stack() is not None


def is_recomputation() -> bool:
    """Return whether a backward pass calls: activation checkpointing, which has been here before.

    Running statistics have then been moved by this very batch.
    """
    if torch.compiler.is_compiling():
        return False
    return torch._C._current_graph_task_id() != -1


def destination(x: Tensor, inplace: bool, eager: bool) -> str:
    """Return where the result of a call goes.

    Not over what somebody else may still read: a leaf that requires grad, a view or its base, an
    output that the op before it keeps for its backward, anything under hooks that keep tensors
    (activation checkpointing), under a mode or a transform. There the result gets memory of its own,
    which changes no number.
    """
    if not inplace:
        return NEW
    if torch.compiler.is_compiling():
        return NEW if torch.compiler.is_exporting() else OVER_COPY
    if not eager or (x.is_leaf and x.requires_grad) or not is_matrix(x):
        return NEW
    alone = not x._is_view() and _only_owner(x)
    hooked = torch._C._autograd._top_saved_tensors_default_hooks(True) is not None
    return OVER_INPUT if alone and not hooked else NEW


def _only_owner(x: Tensor) -> bool:
    # One owner is the tensor, the other the object of Python that is asked here.
    return torch._C._storage_Use_Count(x.untyped_storage()._cdata) <= 2
