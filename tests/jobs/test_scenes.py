"""The demo's scenes hold what they say, and held-out ones nothing that training has seen."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
import rasterio
from sklearn.datasets import load_digits, load_sample_images

from jobs.scenes import (
    KINDS,
    TILE_PX,
    SceneConfig,
    background,
    handwritten,
    make_scene,
    perfect_readers,
    photographs,
    write_scenes,
)

CONFIG = SceneConfig(training_scenes=8, heldout_scenes=4)
NOT_GEOREFERENCED = "ignore::rasterio.errors.NotGeoreferencedWarning"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(CONFIG, folder, processes=1)
    return folder


@pytest.fixture(scope="module")
def contents(folder) -> pa.Table:
    return pyarrow.parquet.read_table(folder / "contents.parquet")


@pytest.mark.parametrize("kind", KINDS)
def test_no_handwritten_digit_is_in_both_parts_and_none_is_lost(kind):
    parts = {
        part: {ink.tobytes() for ink in handwritten(kind, part)} for part in ("training", "heldout")
    }
    digits = load_digits()
    every = {(ink / 16.0).tobytes() for ink in digits.images[digits.target == kind]}
    assert not parts["training"] & parts["heldout"]
    assert parts["training"] | parts["heldout"] == every
    assert len(parts["heldout"]) == pytest.approx(len(every) / 4, abs=1)


def test_no_region_of_a_photograph_is_in_both_parts():
    for number, photograph in enumerate(load_sample_images().images):
        training, heldout = photographs("training")[number], photographs("heldout")[number]
        width_px = training.shape[1]
        assert np.array_equal(training, photograph[:, :width_px])
        assert np.array_equal(heldout, photograph[:, width_px:])


@pytest.mark.parametrize("part", ["training", "heldout"])
def test_a_background_shows_colours_of_its_own_part_only(part):
    own = {tuple(colour) for region in photographs(part) for colour in region.reshape(-1, 3)}
    for seed in range(4):
        pixels = background(np.random.default_rng(seed), part, 192, 256)
        assert pixels.shape == (192, 256, 3)
        assert {tuple(colour) for colour in pixels.reshape(-1, 3)} <= own


def test_every_digit_lies_where_the_contents_say_and_comes_from_its_own_part():
    config = SceneConfig(digit_px=8, digits=12, majority=(7, 9))  # digits as scikit-learn has them
    for part in ("training", "heldout"):
        scene = make_scene(np.random.default_rng(1), config, part, 64, 96)
        bare = background(np.random.default_rng(1), part, 64, 96).astype(np.float64)
        assert len(set(scene.centres_px)) == config.digits
        for kind, (row, column) in zip(scene.kinds, scene.centres_px, strict=True):
            place = slice(row - 4, row + 4), slice(column - 4, column + 4)
            drawn = [
                np.round(bare[place] * (1 - ink[..., None]) + 255 * ink[..., None])
                for ink in handwritten(kind, part)
            ]
            assert any(np.array_equal(scene.pixels[place], each) for each in drawn)


@pytest.mark.filterwarnings(NOT_GEOREFERENCED)
def test_files_have_several_sizes_and_the_tiles_of_a_group(folder):
    sizes = set()
    for path in sorted((folder / "images").glob("*.tif")):
        with rasterio.open(path) as scene:
            assert scene.block_shapes == [(TILE_PX, TILE_PX)] * 3
            assert scene.dtypes == ("uint8",) * 3
            sizes.add(scene.shape)
    assert sizes == set(CONFIG.sides_px)


def test_labels_are_the_majority_of_the_contents(folder, contents):
    labels = pyarrow.csv.read_csv(folder / "labels.csv").to_pylist()
    assert [row["split"] for row in labels] == ["train"] * 8 + ["test"] * 4
    digits = contents.to_pandas().groupby("image")["kind"]
    for row in labels:
        kinds = digits.get_group(row["image"])
        counts = kinds.value_counts()
        assert len(kinds) == CONFIG.digits
        assert CONFIG.majority[0] <= counts.max() <= CONFIG.majority[1]
        assert row["label"] == f"mostly_{counts.idxmax()}"


def test_the_same_seed_makes_the_same_scenes_and_another_seed_others(folder, tmp_path):
    write_scenes(CONFIG, tmp_path / "again", processes=2)
    first = folder / "images" / "scene-00003.tif"
    assert (tmp_path / "again" / "images" / first.name).read_bytes() == first.read_bytes()
    one, other = (
        make_scene(np.random.default_rng([seed, 0]), CONFIG, "training", 192, 256)
        for seed in (0, 1)
    )
    assert not np.array_equal(one.pixels, other.pixels)


def test_perfect_readers_are_as_right_as_counting_by_hand_says(contents):
    groups, quarters = [], []
    for image in contents["image"].unique().to_pylist():
        digits = [row for row in contents.to_pylist() if row["image"] == image]
        by_group, by_quarter = {}, {(up, left): [] for up in (0, 1) for left in (0, 1)}
        for row in digits:
            by_group.setdefault((row["group_row"], row["group_column"]), []).append(row["kind"])
            by_quarter[row["row_share"] < 0.5, row["column_share"] < 0.5].append(row["kind"])
        for found, parts in ((groups, by_group), (quarters, by_quarter)):
            for kinds in parts.values():
                zeros, twos = kinds.count(0), kinds.count(2)
                said = "mostly_0" if zeros > twos else "mostly_2"
                found.append(0.5 if zeros == twos else float(said == digits[0]["label"]))
    readers = perfect_readers(contents)
    assert readers.one_group == pytest.approx(sum(groups) / len(groups))
    assert readers.one_quarter == pytest.approx(sum(quarters) / len(quarters))


def test_brightness_does_not_tell_the_kinds_apart():
    zeros, twos = (handwritten(kind, "training").mean(axis=(1, 2)) for kind in KINDS)
    spread = np.sqrt((zeros.var() + twos.var()) / 2)
    assert abs(zeros.mean() - twos.mean()) < 0.2 * spread


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"sides_px": ((64, 64),)}, "40 digits of 16 px do not fit on 64 x 64 px: at most 16"),
        ({"majority": (20, 22)}, "must lie from 21 to 40"),
        ({"majority": (25, 41)}, "must lie from 21 to 40"),
    ],
)
def test_scenes_that_cannot_be_are_refused(change, says):
    with pytest.raises(ValueError, match=says):
        SceneConfig(**change)
