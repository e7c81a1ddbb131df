# SPDX-License-Identifier: MIT
"""Partitions of a map into groups of pixels, as arithmetic of indices; csrc/common/segments.h has the same.

A partition deals the rows of a map to groups, and its columns; a group of pixels is a group of rows
times a group of columns. Groups come row by row, and so do the pixels of a group.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

MAX_PARTS = 2**30


@dataclass(frozen=True)
class Axis:
    """Positions ``0 .. size - 1`` of one axis, dealt to ``count`` groups, none of them empty.

    Position ``index`` of a group is ``group * step + index * stride``. Either neighbours are together
    (``stride`` 1: groups of ``step``, the last has what is left), or positions with equal remainders
    (``step`` 1, ``stride`` the count).
    """

    size: int
    count: int
    step: int
    stride: int

    def numbers(self) -> tuple[int, int, int, int]:
        """Return the numbers that say all, in the order of the native ops."""
        return self.size, self.count, self.step, self.stride

    def extent(self, group: int) -> int:
        """Return the positions of a group."""
        if self.stride > 1:
            return (self.size - group + self.stride - 1) // self.stride
        return self.step if group + 1 < self.count else self.size - group * self.step

    def position(self, group: int, index: int) -> int:
        """Return where one of a group's positions is."""
        return group * self.step + index * self.stride

    def place(self, position: int) -> tuple[int, int]:
        """Return the group of a position, and which of the group's positions it is."""
        if self.stride > 1:
            return position % self.stride, position // self.stride
        group = min(position // self.step, self.count - 1)
        return group, position - group * self.step

    def alike(self) -> list[tuple[int, int]]:
        """Return runs of groups of one extent: the first group and how many. There are one or two."""
        if self.extent(0) == self.extent(self.count - 1):
            return [(0, self.count)]
        first = self.size % self.stride if self.stride > 1 else self.count - 1
        return [(0, first), (first, self.count - first)]

    @staticmethod
    def cells(size: int, count: int) -> "Axis":
        """Cut into ``count`` cells of ``size // count``, the last of which takes the rest.

        With fewer positions than cells all are in the last one, and the empty ones are left out.
        """
        step = size // count
        return Axis(size, count, step, 1) if step > 0 else Axis(size, 1, size, 1)

    @staticmethod
    def blocks(size: int, length: int) -> "Axis":
        """Cut into blocks of ``length``; the last may be shorter."""
        return Axis(size, -(-size // length), min(length, size), 1)

    @staticmethod
    def remainders(size: int, count: int) -> "Axis":
        """Put positions with equal remainders of a division by ``count`` together."""
        groups = min(size, count)
        return Axis(size, groups, 1 if groups > 1 else size, groups)


class Group(NamedTuple):
    """One group: which rows of the map it has, and which columns."""

    rows: slice
    columns: slice


class Shape(NamedTuple):
    """Groups next to each other along both axes that have one shape.

    Attributes:
        row: The first of their groups of rows.
        rows: How many groups of rows.
        column: The first of their groups of columns.
        columns: How many groups of columns.
        height: Rows of pixels of each group.
        width: Columns of pixels of each group.
    """

    row: int
    rows: int
    column: int
    columns: int
    height: int
    width: int


class Axes(NamedTuple):
    """A partition of a map of known size."""

    rows: Axis
    columns: Axis

    @property
    def groups(self) -> int:
        """How many groups there are."""
        return self.rows.count * self.columns.count

    @property
    def whole(self) -> bool:
        """Whether one group has all pixels."""
        return self.groups == 1

    def each(self) -> Iterator[Group]:
        """Yield the groups, row by row."""
        for i in range(self.rows.count):
            for j in range(self.columns.count):
                yield Group(_slice(self.rows, i), _slice(self.columns, j))

    def shapes(self) -> list[Shape]:
        """Return the shapes that groups have, at most four; together they cover all groups once."""
        return [
            Shape(row, rows, column, columns, self.rows.extent(row), self.columns.extent(column))
            for row, rows in self.rows.alike()
            for column, columns in self.columns.alike()
        ]

    def flat(self) -> list[int]:
        """Return the numbers of both axes, as the native ops take them."""
        return [*self.rows.numbers(), *self.columns.numbers()]


def _slice(axis: Axis, group: int) -> slice:
    """Return the positions of a group of one axis."""
    first = axis.position(group, 0)
    return slice(first, axis.position(group, axis.extent(group) - 1) + 1, axis.stride)


@dataclass(frozen=True)
class Grid:
    """``rows x cols`` cells of equal size, as Pyramid-OC cuts a map.

    A cell has ``H // rows`` rows and ``W // cols`` columns of pixels; the last row and column of cells
    take what is left. Where there are more cells than pixels, the cells without pixels are left out.

    Attributes:
        rows: Rows of cells.
        cols: Columns of cells; as many as rows when absent.
    """

    rows: int
    cols: int | None = None

    def __post_init__(self) -> None:
        """Refuse counts that make no grid."""
        _check("Grid", "rows", self.rows)
        if self.cols is not None:
            _check("Grid", "cols", self.cols)

    def axes(self, height: int, width: int) -> Axes:
        """Return the partition of a map of this size."""
        cols = self.rows if self.cols is None else self.cols
        return Axes(Axis.cells(height, self.rows), Axis.cells(width, cols))


@dataclass(frozen=True)
class Blocks:
    """Blocks of ``h x w`` neighbouring pixels, ISA's short range; those at the far edges may be smaller.

    Attributes:
        h: Rows of pixels of a block.
        w: Columns of pixels of a block.
    """

    h: int
    w: int

    def __post_init__(self) -> None:
        """Refuse lengths that make no block."""
        _check("Blocks", "h", self.h)
        _check("Blocks", "w", self.w)

    def axes(self, height: int, width: int) -> Axes:
        """Return the partition of a map of this size."""
        return Axes(Axis.blocks(height, self.h), Axis.blocks(width, self.w))


@dataclass(frozen=True)
class Strided:
    """``h x w`` groups of pixels with equal remainders ``(row % h, column % w)``, ISA's long range.

    Attributes:
        h: Distance of a group's rows.
        w: Distance of a group's columns.
    """

    h: int
    w: int

    def __post_init__(self) -> None:
        """Refuse distances that make no group."""
        _check("Strided", "h", self.h)
        _check("Strided", "w", self.w)

    def axes(self, height: int, width: int) -> Axes:
        """Return the partition of a map of this size."""
        return Axes(Axis.remainders(height, self.h), Axis.remainders(width, self.w))


AXIS_NUMBERS = 4


def stage_axes(numbers: Sequence[int]) -> list[Axes]:
    """Return the partitions of the stages of a call, from what ``Axes.flat`` gives of each."""
    axes = [Axis(*numbers[i : i + AXIS_NUMBERS]) for i in range(0, len(numbers), AXIS_NUMBERS)]
    return [Axes(rows, columns) for rows, columns in zip(axes[::2], axes[1::2], strict=True)]


Partition = Grid | Blocks | Strided
KINDS: tuple[type[Partition], ...] = (Grid, Blocks, Strided)
NUMBERS = 3


def encode(partition: Partition) -> list[int]:
    """Return a partition as ``NUMBERS`` integers, which is what the registered ops take."""
    if isinstance(partition, Grid):
        return [0, partition.rows, partition.rows if partition.cols is None else partition.cols]
    return [KINDS.index(type(partition)), partition.h, partition.w]


def decode(numbers: Sequence[int]) -> list[Partition]:
    """Return the partitions that a list of integers stands for."""
    return [
        KINDS[kind](first, second)
        for kind, first, second in zip(*(numbers[i::NUMBERS] for i in range(NUMBERS)), strict=True)
    ]


def _check(function: str, name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{function}: {name} must be an integer, got {type(value).__name__}")
    if not 1 <= value <= MAX_PARTS:
        raise ValueError(f"{function}: {name} must be from 1 to {MAX_PARTS}, got {value}")
