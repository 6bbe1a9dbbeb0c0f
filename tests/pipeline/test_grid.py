"""Every pixel of an image lies in exactly one group, and reads respect the source's tiles."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.grid import Grid, groups_per_read

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


@given(side=SIDES, tile=SIDES, most=st.integers(1, 50))
def test_a_read_ends_at_a_tile_whenever_some_allowed_length_does(
    side: int, tile: int, most: int
) -> None:
    count = groups_per_read(side_px=side, tile_px=tile, most=most)
    ends = [n for n in range(1, most + 1) if n * side % tile == 0]
    assert count == (max(ends) if ends else most)


def test_groups_outside_the_grid_or_over_a_row_end_are_refused() -> None:
    grid = Grid(height_px=5, width_px=7, side_px=3)
    assert (grid.rows, grid.columns) == (2, 3)
    for first, count in [(6, 1), (-1, 1), (1, 3)]:
        with pytest.raises(IndexError):
            grid.span(first, count)
    with pytest.raises(ValueError, match="0 x 7"):
        Grid(height_px=0, width_px=7, side_px=3)
