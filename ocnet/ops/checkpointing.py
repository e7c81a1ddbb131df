# SPDX-License-Identifier: MIT
"""A policy for selective activation checkpointing: what the ops return is kept, not computed again."""

from typing import Any

from torch.utils.checkpoint import CheckpointPolicy


def keep_outputs_policy(ctx: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """Keep what the forward ops of this package return; recompute everything else.

    An attention op costs ``L * S`` operations and returns ``L`` rows: to keep its result is cheap, and
    to compute it again in the backward pass is not. For use with torch's own checkpointing::

        from functools import partial
        from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

        context = partial(create_selective_checkpoint_contexts, keep_outputs_policy)
        out = checkpoint(block, x, use_reentrant=False, context_fn=context)

    Args:
        ctx: Given by torch; not used.
        op: The operator that is about to run.
        *args: Its arguments; not used.
        **kwargs: Its keyword arguments; not used.

    Returns:
        ``MUST_SAVE`` for ``ocnet::*_fwd``, else ``PREFER_RECOMPUTE``.
    """
    name = str(op)
    ours = name.startswith("ocnet.") and name.split(".")[1].endswith("_fwd")
    return CheckpointPolicy.MUST_SAVE if ours else CheckpointPolicy.PREFER_RECOMPUTE
