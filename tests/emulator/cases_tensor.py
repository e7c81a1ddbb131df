# SPDX-License-Identifier: MIT
"""Boxes of tensors: what a tensor map says of global memory, and the layout of a box in shared memory.

Axes are counted from the innermost, as tensor maps count them; arrays have them the other way round.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np

from tests.emulator.trials import Case, Trial

UNWRITTEN = 0xDEADBEEF


@dataclass(frozen=True)
class Map:
    """Sizes and box in elements; strides in bytes, none for the innermost axis."""

    dtype: type
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...]
    swizzle: bool = False

    @property
    def rank(self) -> int:
        return len(self.sizes)

    def arguments(self, masks: tuple[int, int] = (0, 0)) -> list[int]:
        itemsize = np.dtype(self.dtype).itemsize
        return [itemsize, self.swizzle, *masks, *self.sizes, 0, *self.strides, *self.box]

    def memory(self, generator) -> np.ndarray:
        """Draw the tensor and whatever lies between its rows."""
        outermost = self.strides[-1] * self.sizes[-1] if self.strides else 0
        nbytes = outermost or self.sizes[0] * np.dtype(self.dtype).itemsize
        return np.frombuffer(generator.bytes(nbytes), self.dtype).copy()

    def view(self, memory: np.ndarray) -> np.ndarray:
        strides = (memory.itemsize, *self.strides)
        return np.lib.stride_tricks.as_strided(memory, self.sizes[::-1], strides[::-1])

    def overlap(self, at) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        """The part of a box that lies in the tensor: where it is there, and where in the box."""
        first = [max(start, 0) for start in at]
        last = [
            min(start + side, size)
            for start, side, size in zip(at, self.box, self.sizes, strict=True)
        ]
        last = [max(pair) for pair in zip(first, last, strict=True)]
        inside = [slice(*pair) for pair in zip(first, last, strict=True)]
        of_box = [
            slice(part.start - start, part.stop - start)
            for part, start in zip(inside, at, strict=True)
        ]
        return tuple(inside[::-1]), tuple(of_box[::-1])

    def load(self, memory: np.ndarray, at) -> np.ndarray:
        """The words of a box: zeros where it leaves the tensor."""
        box = np.zeros(self.box[::-1], self.dtype)
        inside, of_box = self.overlap(at)
        box[of_box] = self.view(memory)[inside]
        return self.swizzled(box.view(np.uint32).reshape(-1))

    def store(self, memory: np.ndarray, at, words: np.ndarray) -> None:
        box = self.swizzled(words).view(self.dtype).reshape(self.box[::-1])
        inside, of_box = self.overlap(at)
        self.view(memory)[inside] = box[of_box]

    def swizzled(self, words: np.ndarray) -> np.ndarray:
        """Unit u of 16 bytes of row r of 128 bytes lies at unit u ^ (r % 8); twice is not at all."""
        if not self.swizzle:
            return words
        units = words.reshape(-1, 8, 4)
        row, unit = np.indices(units.shape[:2])
        return units[row, unit ^ row % 8].reshape(-1)

    def draw_places(self, generator, count: int) -> np.ndarray:
        """Draw where boxes start: from wholly before the tensor to wholly past it."""
        low = [-side - 2 for side in self.box]
        high = [size + 3 for size in self.sizes]
        return generator.integers(low, high, (count, self.rank)).astype(np.int32)


PLAIN = [
    Map(np.uint32, (100,), (), (20,)),
    Map(np.uint16, (1001,), (), (256,)),
    Map(np.uint16, (50, 9), (112,), (24, 4)),
    Map(np.uint32, (33, 5), (144,), (36, 3)),
    Map(np.uint16, (40, 6, 3), (96, 624), (16, 3, 2)),
    Map(np.uint32, (7, 5, 4), (48, 256), (8, 2, 3)),
    Map(np.uint16, (20, 3, 4, 3), (48, 160, 704), (8, 2, 3, 2)),
    Map(np.uint32, (9, 4, 3, 2), (64, 288, 1040), (4, 3, 2, 2)),
    Map(np.uint8, (1001,), (), (256,)),
    Map(np.uint8, (77, 9), (96,), (48, 4)),
    Map(np.uint8, (41, 6, 3), (48, 304), (32, 3, 2)),
    Map(np.uint8, (50, 3, 4, 3), (64, 208, 848), (16, 2, 3, 2)),
]
SWIZZLED = [
    Map(np.uint16, (150, 21), (320,), (64, 16), True),
    Map(np.uint32, (70, 11), (288,), (32, 12), True),
    Map(np.uint16, (100, 10, 3), (208, 2176), (64, 5, 2), True),
    Map(np.uint32, (40, 4, 3, 2), (176, 720, 2240), (32, 3, 2, 2), True),
    Map(np.uint8, (301, 21), (304,), (128, 16), True),
    Map(np.uint8, (150, 10, 3), (160, 1632), (128, 5, 2), True),
]


def load(tensor_map: Map, generator) -> Trial:
    memory = tensor_map.memory(generator)
    at = tensor_map.draw_places(generator, 12)
    at[0] = 0
    boxes = np.stack([tensor_map.load(memory, place) for place in at.tolist()])
    return Trial([memory, at, np.zeros_like(boxes)], {2: boxes}, tensor_map.arguments())


def multicast(tensor_map: Map, masks: tuple[int, int], generator) -> Trial:
    """Two blocks; each loads a box into slot `rank` of those in its mask."""
    memory = tensor_map.memory(generator)
    at = tensor_map.draw_places(generator, 2)
    at[0] = 0
    loaded = [tensor_map.load(memory, place) for place in at.tolist()]
    boxes = np.full((2, 2, loaded[0].size), UNWRITTEN, np.uint32)
    for rank, mask in enumerate(masks):
        for block in range(2):
            if mask >> block & 1:
                boxes[block, rank] = loaded[rank]
    return Trial([memory, at, np.zeros_like(boxes)], {2: boxes}, tensor_map.arguments(masks))


def store(tensor_map: Map, generator) -> Trial:
    """Boxes side by side, which cover the tensor and stick out of it on all sides."""
    memory = tensor_map.memory(generator)
    starts = [
        range(-int(generator.integers(0, side)), size + side, side)
        for side, size in zip(tensor_map.box, tensor_map.sizes, strict=True)
    ]
    at = np.stack(np.meshgrid(*starts, indexing="ij"), axis=-1).reshape(-1, tensor_map.rank)
    at = generator.permutation(at)[:14].astype(np.int32)
    count = int(np.prod(tensor_map.box)) * memory.itemsize // 4
    boxes = generator.integers(0, 2**32, (len(at), count), np.uint32)
    after = memory.copy()
    for place, box in zip(at.tolist(), boxes, strict=True):
        tensor_map.store(after, place, box)
    return Trial([memory, at, boxes], {0: after}, tensor_map.arguments())


def bulk_groups(generator) -> Trial:
    tensor_map = Map(np.uint32, (32, 3), (128,), (32, 1))
    rows = generator.integers(0, 2**32, (3, 32), np.uint32)
    boxes = np.concatenate([rows.reshape(-1), np.zeros(3, np.uint32)])
    after = np.concatenate([rows.reshape(-1), rows[:, 0]])
    at = np.zeros((3, 2), np.int32)
    buffers = [np.zeros_like(rows), at, boxes]
    return Trial(buffers, {0: rows, 2: after}, tensor_map.arguments())


def _variant(tensor_map: Map) -> str:
    layout = "swizzled" if tensor_map.swizzle else "plain"
    return f"{np.dtype(tensor_map.dtype)}-{layout}"


_MAPS = [
    (f" {'swizzled' if tensor_map.swizzle else 'plain'}", tensor_map)
    for tensor_map in PLAIN + SWIZZLED
]

CASES = [
    *(
        Case("tensor_load" + kind, f"tensor_load_{m.rank}", partial(load, m), _variant(m))
        for kind, m in _MAPS
    ),
    *(
        Case(
            "tensor_load_multicast",
            f"tensor_load_multicast_{m.rank}",
            partial(multicast, m, masks),
            f"{_variant(m)}-{masks[0]}-{masks[1]}",
        )
        for kind, m in _MAPS
        if m.rank > 1
        for masks in ((3, 3), (2, 1), (2, 3))
    ),
    *(
        Case("tensor_store" + kind, f"tensor_store_{m.rank}", partial(store, m), _variant(m))
        for kind, m in _MAPS
        if m.rank > 1
    ),
    Case("bulk groups", "bulk_groups", bulk_groups),
]
