"""Every pixel of an image lies in exactly one group, and reads respect the source's tiles."""

import itertools
import math
from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.grid import Grid, cut, kept_tiles

SIDES = st.integers(1, 40)
LENGTHS = st.integers(1, 150)


def grids() -> st.SearchStrategy[Grid]:
    return st.builds(Grid, height_px=LENGTHS, width_px=LENGTHS, side_px=SIDES)


@given(grids())
def test_groups_cover_the_image_exactly_once(grid: Grid) -> None:
    times = np.zeros((grid.height_px, grid.width_px), int)
    for group in range(grid.num_groups):
        w = grid.window(group)
        times[w.top_px : w.top_px + w.height_px, w.left_px : w.left_px + w.width_px] += 1
    assert (times == 1).all()


@given(grids())
def test_valid_extents_add_up_to_the_area_and_fit_their_squares(grid: Grid) -> None:
    windows = [grid.window(group) for group in range(grid.num_groups)]
    assert sum(w.height_px * w.width_px for w in windows) == grid.height_px * grid.width_px
    assert all(1 <= w.height_px <= grid.side_px for w in windows)
    assert all(1 <= w.width_px <= grid.side_px for w in windows)


@given(grids(), st.data())
def test_runs_walk_any_stretch_of_groups_in_order_and_never_leave_a_row(
    grid: Grid, data: st.DataObject
) -> None:
    first = data.draw(st.integers(0, grid.num_groups - 1))
    count = data.draw(st.integers(1, grid.num_groups - first))
    most = data.draw(st.integers(1, 9))
    runs = list(grid.runs(first, count, most=most))
    assert [g for start, length in runs for g in range(start, start + length)] == list(
        range(first, first + count)
    )
    for start, length in runs:
        assert length <= most
        assert grid.place(start)[0] == grid.place(start + length - 1)[0]
        single = [grid.window(group) for group in range(start, start + length)]
        whole = grid.span(start, length)
        assert whole.width_px == sum(window.width_px for window in single)
        assert whole.height_px == single[0].height_px


@given(grids(), st.integers(1, 12), st.data())
def test_windows_cut_the_source_between_its_tiles_when_the_tile_divides_the_group(
    grid: Grid, most: int, data: st.DataObject
) -> None:
    tile = data.draw(st.sampled_from([t for t in range(1, 41) if grid.side_px % t == 0]))
    for start, length in grid.runs(0, grid.num_groups, most=most):
        w = grid.span(start, length)
        right, bottom = w.left_px + w.width_px, w.top_px + w.height_px
        assert w.left_px % tile == 0
        assert w.top_px % tile == 0
        assert right % tile == 0 or right == grid.width_px
        assert bottom % tile == 0 or bottom == grid.height_px


def tiles_of(grid: Grid, group: int, tile: tuple[int, int]) -> list[tuple[int, int]]:
    """The source's tiles under a group, in the order in which a reader asks for them."""
    w = grid.window(group)
    return [
        (row, column)
        for row in range(w.top_px // tile[0], (w.top_px + w.height_px - 1) // tile[0] + 1)
        for column in range(w.left_px // tile[1], (w.left_px + w.width_px - 1) // tile[1] + 1)
    ]


@given(grids(), LENGTHS, LENGTHS)
def test_so_many_kept_tiles_are_enough_to_decode_each_tile_once(
    grid: Grid, tile_height: int, tile_width: int
) -> None:
    tile = (tile_height, tile_width)
    most = kept_tiles(grid, tile_height_px=tile_height, tile_width_px=tile_width)
    kept: OrderedDict[tuple[int, int], None] = OrderedDict()
    decoded: list[tuple[int, int]] = []
    for group in range(grid.num_groups):
        for place in tiles_of(grid, group, tile):
            if place not in kept:
                decoded.append(place)
            kept[place] = None
            kept.move_to_end(place)
            if len(kept) > most:
                kept.popitem(last=False)
    assert len(decoded) == len(set(decoded))


def test_tiles_that_end_with_the_groups_are_not_kept_longer_than_a_group() -> None:
    for side in (5_000, 20_000):
        grid = Grid(height_px=side, width_px=side, side_px=512)
        assert kept_tiles(grid, tile_height_px=256, tile_width_px=512) == 2


@given(grids(), LENGTHS, LENGTHS, st.integers(1, 200))
def test_pieces_hold_every_group_once_in_order_and_share_a_row_of_tiles_at_most(
    grid: Grid, tile_height: int, tile_width: int, most: int
) -> None:
    tile = (tile_height, tile_width)
    parts = list(cut(grid, most=most, tile_height_px=tile_height, tile_width_px=tile_width))
    groups = [range(first, first + count) for first, count in parts]
    assert [group for piece in groups for group in piece] == list(range(grid.num_groups))
    assert all(len(piece) <= most * 3 // 2 for piece in groups)
    tiles = [
        {place for group in piece for place in tiles_of(grid, group, tile)} for piece in groups
    ]
    together = math.lcm(grid.side_px, tile_height) // grid.side_px * grid.columns
    for above, below in itertools.pairwise(tiles):
        shared = above & below
        if together <= most * 3 // 2:
            assert not shared
        elif grid.columns <= most:
            assert len({row for row, _ in shared}) <= 1


def test_groups_outside_the_grid_or_over_a_row_end_are_refused() -> None:
    grid = Grid(height_px=5, width_px=7, side_px=3)
    assert (grid.rows, grid.columns) == (2, 3)
    for first, count in [(6, 1), (-1, 1), (1, 3)]:
        with pytest.raises(IndexError):
            grid.span(first, count)
    with pytest.raises(ValueError, match="0 x 7"):
        Grid(height_px=0, width_px=7, side_px=3)
