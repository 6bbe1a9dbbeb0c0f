"""Photographs strewn with handwritten digits: scenes that only a whole, sharp look can read.

Every scene is a crop of one of scikit-learn's two photographs, enlarged, with real handwritten
digits of two kinds (0 and 2, which hold equal amounts of ink) laid on it. The label is the kind in
the majority over the whole scene. A thumbnail cannot tell the digits apart and a crop sees too few.

Training scenes use one part of each photograph and one part of the handwritten digits; held-out
scenes use the other parts.
"""

import warnings
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import rasterio
from numpy.typing import NDArray
from rasterio.errors import NotGeoreferencedWarning
from sklearn.datasets import load_digits, load_sample_images

KINDS = (0, 2)
"""Their mean ink differs by 0.09 deviations only, so brightness says nothing about the label."""

TRAINING_SHARE = 0.6
"""Share of each photograph's width that training scenes may show; held-out scenes show the rest."""

TILE_PX = 64
"""Side of the TIFF tiles, and of the demo's groups."""

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class SceneConfig:
    """What a set of scenes looks like; sides in px."""

    training_scenes: int = 5000
    heldout_scenes: int = 400
    sides_px: tuple[tuple[int, int], ...] = ((192, 256), (256, 256), (256, 320))
    """Height and width of the scenes, in turn."""
    digit_px: int = 16
    digits: int = 40
    majority: tuple[int, int] = (24, 26)
    """How many of the digits are of the majority's kind, both bounds included."""
    seed: int = 0

    def __post_init__(self) -> None:
        for height_px, width_px in self.sides_px:
            cells = (height_px // self.digit_px) * (width_px // self.digit_px)
            if cells < self.digits:
                raise ValueError(
                    f"{self.digits} digits of {self.digit_px} px do not fit on "
                    f"{height_px} x {width_px} px: at most {cells} do"
                )
        if not self.digits / 2 < self.majority[0] <= self.majority[1] <= self.digits:
            raise ValueError(
                f"majority {self.majority} must lie from {self.digits // 2 + 1} to {self.digits}"
            )


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One canvas and what lies on it: kind, and centre in px, of every digit."""

    pixels: Pixels
    kinds: tuple[int, ...]
    centres_px: tuple[tuple[int, int], ...]
    label: str


@cache
def handwritten(kind: int, part: str) -> NDArray[np.float64]:
    """Handwritten digits of one kind, ink 0 to 1, [count, 8, 8]; every fourth is held out."""
    digits = load_digits()
    ink = digits.images[digits.target == kind] / 16.0
    heldout = np.arange(len(ink)) % 4 == 3
    return ink[heldout if part == "heldout" else ~heldout]


@cache
def photographs(part: str) -> tuple[Pixels, ...]:
    """The part of the two photographs that this part's scenes may show."""
    regions = []
    for photograph in load_sample_images().images:
        border_px = int(photograph.shape[1] * TRAINING_SHARE)
        regions.append(
            photograph[:, border_px:] if part == "heldout" else photograph[:, :border_px]
        )
    return tuple(regions)


def background(rng: np.random.Generator, part: str, height_px: int, width_px: int) -> Pixels:
    """A crop of a photograph, at most half as fine as the scene, enlarged to fill the canvas."""
    regions = photographs(part)
    region = regions[rng.integers(len(regions))]
    room = min(region.shape[0] / height_px, region.shape[1] / width_px, 1.0)
    zoom = rng.uniform(0.6 * room, room)
    crop_height_px, crop_width_px = int(height_px * zoom), int(width_px * zoom)
    top = rng.integers(region.shape[0] - crop_height_px + 1)
    left = rng.integers(region.shape[1] - crop_width_px + 1)
    rows = top + np.arange(height_px) * crop_height_px // height_px
    columns = left + np.arange(width_px) * crop_width_px // width_px
    return region[rows][:, columns[:: rng.choice([-1, 1])]]


def make_scene(
    rng: np.random.Generator, config: SceneConfig, part: str, height_px: int, width_px: int
) -> Scene:
    """Strew digits of both kinds over a photograph, one a cell of the digit's own size."""
    side = config.digit_px
    pixels = background(rng, part, height_px, width_px).astype(np.float64)
    winner = int(rng.integers(2))
    in_majority = int(rng.integers(config.majority[0], config.majority[1] + 1))
    kinds = np.where(np.arange(config.digits) < in_majority, KINDS[winner], KINDS[1 - winner])
    columns = width_px // side
    cells = rng.choice((height_px // side) * columns, size=config.digits, replace=False)
    centres = []
    for kind, cell in zip(kinds, cells, strict=True):
        stock = handwritten(int(kind), part)
        ink = enlarge(stock[rng.integers(len(stock))], side)[:, :, None]
        top, left = (cell // columns) * side, (cell % columns) * side
        spot = pixels[top : top + side, left : left + side]
        spot[:] = spot * (1 - ink) + 255.0 * ink
        centres.append((int(top + side // 2), int(left + side // 2)))
    return Scene(
        pixels=pixels.round().astype(np.uint8),
        kinds=tuple(int(kind) for kind in kinds),
        centres_px=tuple(centres),
        label=f"mostly_{KINDS[winner]}",
    )


def enlarge(ink: NDArray[np.float64], side_px: int) -> NDArray[np.float64]:
    """Bilinear enlargement of a small square to side_px."""
    side = len(ink)
    at = np.clip((np.arange(side_px) + 0.5) * side / side_px - 0.5, 0, side - 1)
    low = np.minimum(at.astype(int), side - 2)
    share = at - low
    rows = ink[low] * (1 - share)[:, None] + ink[low + 1] * share[:, None]
    return rows[:, low] * (1 - share) + rows[:, low + 1] * share


def write_scenes(config: SceneConfig, folder: Path, *, processes: int = 2) -> None:
    """Make all scenes: images/*.tif (tiled GeoTIFF), labels.csv, and contents.parquet.

    contents.parquet lists every digit, its kind and its place: what a perfect reader would read.
    """
    images = folder / "images"
    images.mkdir(parents=True)
    parts = ["train"] * config.training_scenes + ["test"] * config.heldout_scenes
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        tables = list(
            pool.map(
                _write_scene, repeat(config), repeat(images), range(len(parts)), parts, chunksize=64
            )
        )
    contents = pa.concat_tables(tables)
    firsts = contents.group_by("image", use_threads=False).aggregate(
        [("label", "first"), ("split", "first")]
    )
    labels = firsts.rename_columns({"label_first": "label", "split_first": "split"})
    pa.csv.write_csv(labels, folder / "labels.csv")
    pa.parquet.write_table(contents, folder / "contents.parquet")


def _write_scene(config: SceneConfig, folder: Path, number: int, split: str) -> pa.Table:
    rng = np.random.default_rng([config.seed, number])
    height_px, width_px = config.sides_px[number % len(config.sides_px)]
    part = "training" if split == "train" else "heldout"
    scene = make_scene(rng, config, part, height_px, width_px)
    name = f"scene-{number:05d}"
    write_tiff(folder / f"{name}.tif", scene.pixels)
    rows, columns = zip(*scene.centres_px, strict=True)
    return pa.table(
        {
            "image": [name] * len(rows),
            "label": [scene.label] * len(rows),
            "split": [split] * len(rows),
            "kind": scene.kinds,
            "row_share": np.array(rows) / height_px,
            "column_share": np.array(columns) / width_px,
            "group_row": np.array(rows) // TILE_PX,
            "group_column": np.array(columns) // TILE_PX,
        }
    )


def write_tiff(path: Path, pixels: Pixels) -> None:
    """A tiled, deflated TIFF of one RGB image, without a place on Earth."""
    height_px, width_px, bands = pixels.shape
    options = {"tiled": True, "blockxsize": TILE_PX, "blockysize": TILE_PX, "photometric": "RGB"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(
            path,
            "w",
            driver="GTiff",
            height=height_px,
            width=width_px,
            count=bands,
            dtype="uint8",
            compress="deflate",
            zlevel=1,
            **options,
        ) as file:
            file.write(pixels.transpose(2, 0, 1))


@dataclass(frozen=True, kw_only=True)
class PerfectReaders:
    """Accuracy of readers who know every digit they see, but see only a part of each scene."""

    one_group: float
    one_quarter: float


def perfect_readers(contents: pa.Table) -> PerfectReaders:
    """How often a part's own majority is the scene's; a tie counts half.

    Over all quarters of all scenes, and over all groups that hold the centre of a digit.
    """
    groups: list[float] = []
    quarters: list[float] = []
    for _, scene in contents.to_pandas().groupby("image"):
        winner = int(scene["label"].iloc[0].removeprefix("mostly_"))
        votes = np.where(scene["kind"] == winner, 1, -1)
        top, left = scene["row_share"] < 0.5, scene["column_share"] < 0.5
        quarters += [_right(votes[(top == up) & (left == at)]) for up in (0, 1) for at in (0, 1)]
        by_group = scene.assign(vote=votes).groupby(["group_row", "group_column"])["vote"]
        groups += [_right(group.to_numpy()) for _, group in by_group]
    return PerfectReaders(one_group=float(np.mean(groups)), one_quarter=float(np.mean(quarters)))


def _right(votes: NDArray[np.int64]) -> float:
    return float(np.sign(votes.sum()) + 1) / 2
