# SPDX-License-Identifier: MIT
"""How gathering may be sharded by ``torch.distributed.tensor``: images, regions, or channels.

Regions are independent of each other, and so are channels of the features; what every rank then holds
in full (the features; the logits) gets its gradient as partial sums. Positions cannot be sharded: the
softmax runs over them.
"""

from collections.abc import Sequence
from typing import Any

from ocnet.ops._late import when_imported
from ocnet.ops.spatial_gather.autograd import spatial_gather_bwd, spatial_gather_fwd

Rule = tuple[list[Any], list[Any]]


def _register() -> None:
    from torch.distributed.tensor import Partial, Replicate, Shard
    from torch.distributed.tensor.experimental import register_sharding

    whole, added = Replicate(), Partial()
    # Of features (N, C, H, W), logits (N, K, H, W), the context (N, C, K, 1), the log-sum-exp
    # (N, K); then of the gradients of features and logits.
    ways = (
        (whole, whole, whole, whole, whole, whole),
        (Shard(0), Shard(0), Shard(0), Shard(0), Shard(0), Shard(0)),
        (whole, Shard(1), Shard(2), Shard(1), added, Shard(1)),
        (Shard(1), whole, Shard(1), whole, Shard(1), added),
    )

    def of_forward(
        features: Any, logits: Any, scale: Any, backend: Any, keep_residual: bool
    ) -> Sequence[Rule]:
        kept = features.tensor_meta.dtype.itemsize == 2 and keep_residual
        return [
            ([out_as, lse_as, out_as if kept else whole], [features_as, logits_as, *[None] * 3])
            for features_as, logits_as, out_as, lse_as, _, _ in ways
        ]

    def of_backward(
        grad_out: Any, features: Any, logits: Any, out: Any, lse: Any, residual: Any,
        scale: Any, backend: Any, need_features: bool, need_logits: bool,
    ) -> Sequence[Rule]:  # fmt: skip
        kept = len(residual.tensor_meta.shape) > 1
        rules = []
        for features_as, logits_as, out_as, lse_as, to_features, to_logits in ways:
            # A gradient that is not wanted is an empty tensor, the same everywhere.
            outputs = [to_features if need_features else whole, to_logits if need_logits else whole]
            rest = [out_as, lse_as, out_as if kept else whole]
            rules.append((outputs, [out_as, features_as, logits_as, *rest, *[None] * 4]))
        return rules

    register_sharding(spatial_gather_fwd._opoverload)(of_forward)
    register_sharding(spatial_gather_bwd._opoverload)(of_backward)


when_imported("torch.distributed.tensor", _register)
