# SPDX-License-Identifier: MIT
"""How attention may be sharded by ``torch.distributed.tensor``: images, or rows of queries.

Query rows may be sharded where keys and values are replicated, so one device holds ``L / ranks`` rows
of the context; the gradients of key and value are then partial sums. Shared keys (``key is query``)
cannot be sharded by rows: pass the replicated map as the key.
"""

from collections.abc import Sequence
from typing import Any

from ocnet.ops._late import when_imported
from ocnet.ops.oc_attention.autograd import oc_attention_bwd, oc_attention_fwd

Rule = tuple[list[Any], list[Any]]


def _register() -> None:
    from torch.distributed.tensor import Partial, Replicate, Shard
    from torch.distributed.tensor.experimental import register_sharding

    whole, images, rows = Replicate(), Shard(0), Shard(2)
    # The log-sum-exp is (N, L): its tokens lie row after row.
    tokens = Shard(1)

    def of_forward(
        query: Any, key: Any, value: Any, scale: Any, backend: Any, keep_residual: bool
    ) -> Sequence[Rule]:
        kept = query.tensor_meta.dtype.itemsize == 2 and keep_residual

        def rule(query_as: Any, key_as: Any, lse_as: Any) -> Rule:
            outputs = [query_as, lse_as, query_as if kept else whole]
            return outputs, [query_as, None if key is None else key_as, key_as, *[None] * 3]

        rules = [rule(whole, whole, whole), rule(images, images, images)]
        if key is not None and _rows_divide(query):
            rules.append(rule(rows, whole, tokens))
        return rules

    def of_backward(
        grad_out: Any, query: Any, key: Any, value: Any, out: Any, lse: Any, residual: Any,
        scale: Any, backend: Any, need_query: bool, need_key: bool, need_value: bool,
    ) -> Sequence[Rule]:  # fmt: skip
        kept = len(residual.tensor_meta.shape) > 1

        def rule(query_as: Any, key_as: Any, lse_as: Any, summed_as: Any) -> Rule:
            # A gradient that is not wanted is an empty tensor, the same everywhere.
            outputs = [
                query_as if need_query else whole,
                summed_as if need_key else whole,
                summed_as if need_value else whole,
            ]
            rest = [query_as, lse_as, query_as if kept else whole]
            key_input = None if key is None else key_as
            return outputs, [query_as, query_as, key_input, key_as, *rest, *[None] * 5]

        rules = [rule(whole, whole, whole, whole), rule(images, images, images, images)]
        if key is not None and _rows_divide(query):
            rules.append(rule(rows, whole, tokens, Partial()))
        return rules

    register_sharding(oc_attention_fwd._opoverload)(of_forward)
    register_sharding(oc_attention_bwd._opoverload)(of_backward)


def _rows_divide(query: Any) -> bool:
    """Tell whether every rank gets as many rows, so that shards of rows are shards of tokens."""
    return bool(query.tensor_meta.shape[2] % query.mesh.size() == 0)


when_imported("torch.distributed.tensor", _register)
