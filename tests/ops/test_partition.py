# SPDX-License-Identifier: MIT
"""Which pixels are a group: the published cells and counts, and that every pixel is in one group."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocnet.ops import Blocks, Grid, Strided
from ocnet.ops._partition import decode, encode, stage_axes
from ocnet.ops.partitioned_attention.flops import pairs

# Edges of Pyramid-OC's cells, by the side of the map and the number of cells.
CELLS = {
    (97, 2): [48, 49],
    (97, 3): [32, 32, 33],
    (97, 6): [16] * 5 + [17],
    (129, 2): [64, 65],
    (129, 3): [43] * 3,
    (129, 6): [21] * 5 + [24],
    (257, 2): [128, 129],
    (257, 3): [85, 85, 87],
    (257, 6): [42] * 5 + [47],
}
# ISA's padded maps: pixels and number of groups, long range (Strided) and short range (Blocks).
INTERLACED = {
    (104, 104): ((64, 169), (169, 64)),
    (136, 264): ((64, 561), (561, 64)),
    (72, 136): ((64, 153), (153, 64)),
}

sides = st.integers(1, 90)
numbers = st.integers(1, 100)
partitions = st.one_of(
    st.builds(Grid, numbers),
    st.builds(Grid, numbers, numbers),
    st.builds(Blocks, numbers, numbers),
    st.builds(Strided, numbers, numbers),
)


@pytest.mark.parametrize(("side", "cells"), CELLS, ids=str)
def test_cells_of_pyramid_oc(side: int, cells: int) -> None:
    axes = Grid(cells).axes(side, side)
    edges = [group.rows.stop - group.rows.start for group in axes.each()][:: axes.columns.count]
    assert edges == CELLS[side, cells]
    assert axes.groups == cells * cells


@pytest.mark.parametrize("size", INTERLACED, ids=str)
def test_groups_of_interlaced_attention(size: tuple[int, int]) -> None:
    long, short = INTERLACED[size]
    for partition, (groups, pixels) in ((Strided(8, 8), long), (Blocks(8, 8), short)):
        axes = partition.axes(*size)
        assert axes.groups == groups
        (shape,) = axes.shapes()
        assert shape.height * shape.width == pixels


def test_ragged_edges_are_smaller_groups() -> None:
    axes = Blocks(8, 8).axes(97, 97)
    assert axes.groups == 13 * 13
    assert sorted({(s.height, s.width) for s in axes.shapes()}) == [(1, 1), (1, 8), (8, 1), (8, 8)]
    axes = Strided(8, 8).axes(97, 97)
    assert axes.groups == 64
    assert sorted({(s.height, s.width) for s in axes.shapes()}) == [
        (12, 12), (12, 13), (13, 12), (13, 13),
    ]  # fmt: skip


def test_more_cells_than_pixels_leave_one() -> None:
    """Published slices of no rows are empty, and the last has them all."""
    assert [tuple(group) for group in Grid(6).axes(5, 4).each()] == [
        (slice(0, 5, 1), slice(0, 4, 1))
    ]


@given(partitions, sides, sides)
def test_every_pixel_is_in_one_group(partition, height: int, width: int) -> None:
    axes = partition.axes(height, width)
    seen = [[0] * width for _ in range(height)]
    groups = 0
    for group in axes.each():
        rows, columns = (
            range(*part.indices(n)) for part, n in zip(group, (height, width), strict=True)
        )
        assert len(rows) > 0
        assert len(columns) > 0
        groups += 1
        for row in rows:
            for column in columns:
                seen[row][column] += 1
    assert groups == axes.groups
    assert all(count == 1 for line in seen for count in line)


@given(partitions, sides, sides)
def test_places_are_the_inverse_of_positions(partition, height: int, width: int) -> None:
    for axis in partition.axes(height, width):
        at = {axis.position(g, i): (g, i) for g in range(axis.count) for i in range(axis.extent(g))}
        assert sorted(at) == list(range(axis.size))
        assert all(axis.place(position) == where for position, where in at.items())


@given(partitions, sides, sides)
def test_shapes_are_those_of_all_groups(partition, height: int, width: int) -> None:
    axes = partition.axes(height, width)
    shapes = axes.shapes()
    assert len(shapes) <= 4
    seen = set()
    for shape in shapes:
        for row in range(shape.row, shape.row + shape.rows):
            for column in range(shape.column, shape.column + shape.columns):
                assert (axes.rows.extent(row), axes.columns.extent(column)) == shape[4:]
                seen.add((row, column))
    assert len(seen) == axes.groups == sum(shape.rows * shape.columns for shape in shapes)
    sizes = [(g.rows, g.columns) for g in axes.each()]
    counts = [len(range(height)[r]) * len(range(width)[c]) for r, c in sizes]
    assert pairs(axes) == sum(count * count for count in counts)


@given(st.lists(partitions, min_size=1, max_size=4), sides, sides)
def test_numbers_say_which_partitions(stages, height: int, width: int) -> None:
    flat = [number for stage in stages for number in encode(stage)]
    axes = [stage.axes(height, width) for stage in stages]
    assert [stage.axes(height, width) for stage in decode(flat)] == axes
    assert stage_axes([number for each in axes for number in each.flat()]) == axes


@pytest.mark.parametrize("kind", [Grid, Blocks, Strided])
@pytest.mark.parametrize(
    ("number", "error", "text"),
    [
        (0, ValueError, "must be from 1 to 1073741824, got 0"),
        (-3, ValueError, "got -3"),
        (2.0, TypeError, "must be an integer, got float"),
        (True, TypeError, "must be an integer, got bool"),
    ],
    ids=str,
)
def test_numbers_that_make_no_groups_are_refused(kind, number, error, text: str) -> None:
    for arguments in ((number, 2), (2, number)):
        with pytest.raises(error, match=text) as caught:
            kind(*arguments)
        assert str(caught.value).startswith(f"{kind.__name__}: ")
