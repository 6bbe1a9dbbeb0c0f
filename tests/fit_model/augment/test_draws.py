"""What chance makes of an image depends on its seed alone, and is spread as the settings say."""

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fit_model.augment.colours import STAINS, Colours
from fit_model.augment.config import AugmentConfig
from fit_model.augment.crops import COUNTS, crop_of
from fit_model.augment.symmetries import SYMMETRIES
from fit_model.augment.views import View, draw_view, require_views

EVERYTHING = AugmentConfig(
    symmetries="all", crop_groups=(2, 3), brightness=0.2, contrast=0.3, stain=0.1, band_scale=0.4,
    band_shift=1.5,
)  # fmt: skip
SEEDS = range(1000)


@cache
def view(seed: int, *, config: AugmentConfig = EVERYTHING, rows: int = 4, columns: int = 6) -> View:
    groups = range(rows * columns)
    return draw_view(groups, rows=rows, columns=columns, bands=3, config=config, seed=seed)


def uniform(counts: list[int]) -> bool:
    return bool(stats.chisquare(counts).pvalue > 1e-4)


@pytest.mark.parametrize("name", ["mirror", "flips", "turns", "all"])
def test_every_symmetry_comes_equally_often(name):
    config = AugmentConfig(symmetries=name)
    drawn = [view(seed, config=config).symmetry for seed in SEEDS]
    assert set(drawn) == set(SYMMETRIES[name])
    assert uniform([drawn.count(each) for each in SYMMETRIES[name]])


def test_crops_lie_everywhere_equally_often():
    config = AugmentConfig(crop_groups=(2, 3))
    corners = [int(view(seed, config=config).stored[0]) for seed in SEEDS]
    wanted = [row * 6 + column for row in range(3) for column in range(4)]
    assert set(corners) == set(wanted)
    assert uniform([corners.count(each) for each in wanted])


def test_colours_are_spread_evenly_to_both_ends_and_independent():
    drawn = [view(seed).colours for seed in SEEDS]
    columns = {
        "brightness": (torch.cat([each.brightness for each in drawn])[:, 0], 0.8, 1.2),
        "stain": (1.0 + amounts(drawn)[0][:, 1], 0.9, 1.1),
        "added": (amounts(drawn)[1][:, 2], -0.1, 0.1),
        "shift": (torch.cat([each.shift for each in drawn])[:, 2], -1.5, 1.5),
        "turned": (torch.tensor([view(seed).grid_rows for seed in SEEDS]), 2, 3),
    }
    for name, (values, low, high) in columns.items():
        assert values.min() >= low, name
        assert values.max() <= high, name
        if name != "turned":
            counts, _ = np.histogram(values, bins=10, range=(low, high))
            assert uniform(list(counts)), name
    scale = torch.cat([each.scale for each in drawn])
    assert 1.3 * 1.4 * 0.9 < scale.max() <= 1.3 * 1.4
    apart = torch.corrcoef(torch.stack([values.double() for values, _, _ in columns.values()]))
    assert (apart - torch.eye(len(columns))).abs().max() < 0.1


def amounts(drawn: list[Colours]) -> tuple[torch.Tensor, torch.Tensor]:
    """How much more of each stain there is, and how much was added, from what densities become."""
    stains = torch.tensor(STAINS, dtype=torch.float64)
    mixes = torch.cat([each.density_mix for each in drawn])
    scales = stains @ mixes @ stains.inverse()
    assert (scales - torch.diag_embed(scales.diagonal(0, 1, 2))).abs().max() < 1e-12
    added = torch.cat([each.density_shift for each in drawn]) @ stains.inverse()
    return scales.diagonal(0, 1, 2) - 1.0, added


def test_the_same_seed_makes_the_same_view_and_another_one_another():
    one, again, other = view(7), view(7), view(8)
    assert one.symmetry == again.symmetry
    assert one.stored.equal(again.stored)
    assert one.colours.shift.equal(again.colours.shift)
    assert not one.colours.shift.equal(other.colours.shift)


def test_one_setting_does_not_change_what_another_one_draws():
    alone = view(11, config=AugmentConfig(band_shift=1.5, symmetries="all"))
    assert alone.symmetry == view(11).symmetry
    assert alone.colours.shift.equal(view(11).colours.shift)
    assert alone.colours.density_shift.shape == (1, 0)


def test_only_what_is_set_has_colours():
    assert view(1, config=AugmentConfig(symmetries="all", crop_groups=(1, 1))).colours is None


@settings(max_examples=100, deadline=None)
@given(
    rows=st.integers(1, 7),
    columns=st.integers(1, 7),
    crop=st.tuples(st.integers(1, 8), st.integers(1, 8)),
    chance=st.floats(0.0, 1.0, exclude_max=True),
    unit=st.sampled_from(sorted(COUNTS)),
    least=st.integers(1, 3),
    data=st.data(),
)
def test_a_crop_holds_enough_wherever_one_can(rows, columns, crop, chance, unit, least, data):
    flat = data.draw(st.sets(st.integers(0, rows * columns - 1), min_size=1))
    stored = np.zeros((rows, columns), bool)
    stored.flat[sorted(flat)] = True
    high, wide = min(rows, crop[0]), min(columns, crop[1])

    def held(top: int, left: int) -> int:
        part = stored[top : top + high, left : left + wide]
        return int({"groups": part, "rows": part.any(1), "columns": part.any(0)}[unit].sum())

    every = [(top, left) for top in range(rows - high + 1) for left in range(columns - wide + 1)]
    asked = {"rows": high, "columns": wide, "chance": chance, "unit": unit}
    if max(held(*corner) for corner in every) < least:
        with pytest.raises(ValueError, match=f"nowhere hold {least} {unit} with something stored"):
            crop_of(stored, least=least, **asked)
        return
    found = crop_of(stored, least=least, **asked)
    assert held(found.top, found.left) >= least
    usual = crop_of(stored, least=1, **asked)
    if held(usual.top, usual.left) >= least:
        assert found == usual


def test_workers_that_share_an_image_see_the_view_that_one_sees():
    for seed in range(50):
        alone = view(seed)
        for unit in ("groups", "rows"):
            shared = draw_view(
                range(24), rows=4, columns=6, bands=3, config=EVERYTHING, seed=seed,
                num_workers=2, unit=unit,
            )  # fmt: skip
            assert shared.stored.equal(alone.stored)
            assert shared.symmetry == alone.symmetry


def test_an_image_whose_quarter_turn_has_too_few_rows_is_refused():
    config = AugmentConfig(symmetries="turns")
    tall = {"rows": 4, "columns": 1, "num_workers": 2}
    require_views(range(4), config=config, unit="groups", **tall)
    require_views(range(4), config=AugmentConfig(symmetries="flips"), unit="rows", **tall)
    with pytest.raises(ValueError, match="nowhere hold 2 columns with something stored"):
        require_views(range(4), config=config, unit="rows", **tall)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"stain": 1.0}, r"augment.stain is 1.0: it must lie in \[0, 1\)"),
        ({"brightness": -0.1}, "augment.brightness is -0.1"),
        ({"band_shift": -1.0}, "augment.band_shift is -1.0: it cannot be negative"),
        ({"band_shift": float("nan")}, "augment.band_shift holds nan"),
        ({"crop_groups": (4, 0)}, "augment.crop_groups is 0: it must be at least 1"),
    ],
    ids=str,
)
def test_settings_that_mean_nothing_are_refused(changes, says):
    with pytest.raises(ValueError, match=says):
        AugmentConfig(**changes)
