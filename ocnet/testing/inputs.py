# SPDX-License-Identifier: MIT
"""Calls of ``oc_attention``: their sizes, and tensors made for them."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ocnet.testing.features import FEATURES

LAYOUTS = ("nchw", "channels_last", "cropped", "expanded")


@dataclass(frozen=True)
class AttentionCase:
    """One legal call. ``key_size=None`` means the keys are as many as the queries.

    Attributes:
        batch, e, ev: Images, query/key channels, value channels.
        size: ``(H, W)`` of the query map.
        key_size: ``(Hk, Wk)`` of the key and value maps.
        dtype: Of all maps.
        layout: ``nchw``, ``channels_last``, ``cropped`` (rows and columns do not collapse),
            ``expanded`` (a batch stride of zero).
        shared: Whether the query is the key.
        scale: ``None`` for the default.
        features: A name in :data:`ocnet.testing.features.FEATURES`.
    """

    batch: int = 2
    e: int = 16
    ev: int = 16
    size: tuple[int, int] = (5, 7)
    key_size: tuple[int, int] | None = None
    dtype: torch.dtype = torch.float32
    layout: str = "nchw"
    shared: bool = False
    scale: float | None = None
    features: str = "activated"

    def __str__(self) -> str:
        """Return a readable test id."""
        keys = "shared" if self.shared else "x".join(map(str, self.key_size or self.size))
        dtype = str(self.dtype).removeprefix("torch.")
        return (
            f"{dtype}-{self.layout}-N{self.batch}-E{self.e}-Ev{self.ev}"
            f"-{self.size[0]}x{self.size[1]}-{keys}"
        )


@dataclass(frozen=True)
class AttentionInputs:
    """Leaf maps for one call; ``key is query`` where the case shares them."""

    query: Tensor
    key: Tensor
    value: Tensor
    grad_out: Tensor
    scale: float | None


def _map(case: AttentionCase, channels: int, size: tuple[int, int], g: torch.Generator) -> Tensor:
    n, (h, w) = case.batch, size
    margin = 2 if case.layout == "cropped" else 0
    images = 1 if case.layout == "expanded" else n
    shape = (images, channels, h + margin, w + margin)
    data = FEATURES[case.features](shape, g).to(case.dtype)
    if case.layout == "channels_last":
        return data.contiguous(memory_format=torch.channels_last)
    if case.layout == "cropped":
        return data[:, :, 1:-1, 1:-1]
    return data.expand(n, -1, -1, -1)


def make_inputs(
    case: AttentionCase, seed: int = 0, device: str = "cpu", requires_grad: bool = True
) -> AttentionInputs:
    """Draw the maps of a case; the same seed gives the same numbers on every device."""
    g = torch.Generator().manual_seed(seed)
    key_size = case.size if case.shared or case.key_size is None else case.key_size
    query = _map(case, case.e, case.size, g)
    key = query if case.shared else _map(case, case.e, key_size, g)
    value = _map(case, case.ev, key_size, g)
    grad_out = torch.randn((case.batch, case.ev, *case.size), generator=g, dtype=torch.float64)

    def leaf(t: Tensor) -> Tensor:
        # Not ``.to`` alone: a leaf must own its strides on the device too.
        moved = t.detach().to(device)
        return moved.requires_grad_(requires_grad)

    leaf_query = leaf(query)
    leaf_key = leaf_query if case.shared else leaf(key)
    return AttentionInputs(
        leaf_query, leaf_key, leaf(value), grad_out.to(case.dtype).to(device), case.scale
    )


def random_cases(
    count: int, seed: int, dtypes: tuple[torch.dtype, ...], max_side: int = 13
) -> Iterator[AttentionCase]:
    """Draw legal calls: odd sizes, every layout and dtype, shared and separate keys."""
    rng = random.Random(seed)

    def side() -> int:
        return rng.choice((1, 2, 3, 5, 7, rng.randint(1, max_side)))

    def channels() -> int:
        return rng.choice((1, 2, 3, 8, 16, 19, 33, 64, 65, rng.randint(1, 130)))

    for _ in range(count):
        shared = rng.random() < 0.5
        yield AttentionCase(
            batch=rng.choice((1, 1, 2, 3)),
            e=channels(),
            ev=channels(),
            size=(side(), side()),
            key_size=None if shared else (side(), side()),
            dtype=rng.choice(dtypes),
            layout=rng.choice(LAYOUTS),
            shared=shared,
            scale=rng.choice((None, None, None, 0.0, 0.3, -0.5, 1.0)),
            features=rng.choice(tuple(FEATURES)),
        )
