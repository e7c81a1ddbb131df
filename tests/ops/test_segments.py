# SPDX-License-Identifier: MIT
"""The index functions of the kernels (csrc/common/segments.h, groups.h) against those in Python."""

from itertools import pairwise, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ocnet.ops import Blocks, Grid, Strided
from ocnet.ops._partition import Axes, Axis

pytestmark = pytest.mark.native

LARGEST = 2**31 - 1
sides = st.integers(1, 40)
numbers = st.integers(1, 50)
partitions = st.one_of(
    st.builds(Grid, numbers, st.none() | numbers),
    st.builds(Blocks, numbers, numbers),
    st.builds(Strided, numbers, numbers),
)
# Sizes that leave no room for their product are tried along one axis.
long_axes = st.builds(
    lambda cut, size, number: cut(size, number),
    st.sampled_from([Axis.cells, Axis.blocks, Axis.remainders]),
    st.integers(1, 2**30),
    st.integers(1, 2**30),
)


def group_places(axes: Axes):
    return product(range(axes.rows.count), range(axes.columns.count))


def tokens_of(axes: Axes, row: int, column: int) -> list[int]:
    """Return the tokens of the map that are a group, row by row."""
    height, width = axes.rows.extent(row), axes.columns.extent(column)
    return [
        axes.rows.position(row, y) * axes.columns.size + axes.columns.position(column, x)
        for y in range(height)
        for x in range(width)
    ]


@given(partitions, sides, sides)
def test_every_pixel_is_in_one_group(emulator, partition, height: int, width: int) -> None:
    axes = partition.axes(height, width)
    found = [emulator.map_tokens(axes.flat(), *place) for place in group_places(axes)]
    assert found == [tokens_of(axes, *place) for place in group_places(axes)]
    assert sorted(token for group in found for token in group) == list(range(height * width))


@given(partitions, sides, sides)
def test_places_are_the_inverse_of_positions(emulator, partition, height: int, width: int) -> None:
    for axis in partition.axes(height, width):
        native = emulator.GroupAxis(*axis.numbers())
        for position in range(axis.size):
            group, index = native.group_of(position), native.index_of(position)
            assert (group, index) == axis.place(position)
            assert native.position(group, index) == position == axis.position(group, index)
        assert [native.extent(g) for g in range(axis.count)] == [
            axis.extent(g) for g in range(axis.count)
        ]


@given(long_axes, st.data())
def test_long_axes(emulator, axis: Axis, data) -> None:
    native = emulator.GroupAxis(*axis.numbers())
    group = data.draw(st.integers(0, axis.count - 1))
    assert native.extent(group) == axis.extent(group) > 0
    for index in (0, data.draw(st.integers(0, axis.extent(group) - 1)), axis.extent(group) - 1):
        position = native.position(group, index)
        assert position == axis.position(group, index) < axis.size
        assert (native.group_of(position), native.index_of(position)) == (group, index)
    first = native.like_first()
    assert first == axis.alike()[0][1]
    for edge in (0, first - 1, min(first, axis.count - 1), axis.count - 1, group):
        alike = axis.extent(0 if edge < first else axis.count - 1)
        assert native.extent(edge) == alike


@given(partitions, sides, sides)
def test_shapes_cover_all_groups_once(emulator, partition, height: int, width: int) -> None:
    axes = partition.axes(height, width)
    shapes = emulator.group_shapes(axes.flat())
    assert len(shapes) <= 4
    seen = []
    for row, column, rows, columns, tall, wide in shapes:
        for y, x in product(range(row, row + rows), range(column, column + columns)):
            assert (axes.rows.extent(y), axes.columns.extent(x)) == (tall, wide)
            seen.append((y, x))
    assert sorted(seen) == list(group_places(axes))
    assert shapes == [
        (s.row, s.column, s.rows, s.columns, s.height, s.width) for s in axes.shapes()
    ]


def near_multiples(divisor: int, factor: int) -> list[int]:
    """Return numbers at which a quotient that is off would show: beside multiples."""
    multiple = min(factor, LARGEST // divisor) * divisor
    return [n for n in (multiple - 1, multiple, multiple + 1) if 0 <= n <= LARGEST]


@given(st.integers(1, LARGEST), st.lists(st.integers(0, LARGEST), max_size=20), st.data())
def test_quotients_are_exact(emulator, divisor: int, given_numbers: list[int], data) -> None:
    factor = data.draw(st.integers(0, LARGEST // divisor))
    tried = [*given_numbers, 0, LARGEST, *near_multiples(divisor, factor)]
    assert emulator.quotients(divisor, tried) == [number // divisor for number in tried]


def test_quotients_by_all_kinds_of_numbers(emulator) -> None:
    divisors = [*range(1, 300), *(2**k + d for k in range(9, 31) for d in (-1, 0, 1)), LARGEST]
    for divisor in divisors:
        tried = [0, 1, divisor - 1, divisor, LARGEST - 1, LARGEST]
        for factor in (1, 2, 3, 1000, LARGEST // divisor):
            tried += near_multiples(divisor, factor)
        assert emulator.quotients(divisor, tried) == [number // divisor for number in tried]


stage_lists = st.lists(
    st.tuples(st.integers(1, 3), partitions, st.integers(1, 14), st.integers(1, 14)),
    min_size=1,
    max_size=4,
)


@settings(max_examples=60)
@given(stage_lists, st.integers(1, 40), st.integers(1, 3))
def test_blocks_find_every_tile_of_every_group_once(emulator, stages, rows: int, slices: int):
    """And the families whose blocks take longest come first."""
    cols = 7
    axes = [partition.axes(height, width) for _, partition, height, width in stages]
    images = [stage[0] for stage in stages]
    listed = [(n, each.flat()) for n, each in zip(images, axes, strict=True)]
    work, blocks = emulator.deal_work(listed, rows, cols, slices)
    expected = [
        (stage, image, block, tokens_of(each, *place))
        for stage, each in enumerate(axes)
        for image in range(images[stage])
        for place in group_places(each)
        for block in range(-(-len(tokens_of(each, *place)) // rows) * slices)
    ]
    assert blocks == len(expected)
    assert sorted(work.locate(block) for block in range(blocks)) == sorted(expected)
    families = work.families
    assert len(families) <= 16
    lengths = [family.col_tiles for family in families]
    assert lengths == sorted(lengths, reverse=True)
    for family in families:
        assert family.row_tiles == -(-family.tokens // rows)
        assert family.col_tiles == -(-family.tokens // cols)
        *_, tokens = work.locate(family.first_block)
        steps = {b - a for a, b in pairwise(tokens)}
        assert len(tokens) == family.tokens
        assert not family.is_run or len(steps) <= 1
