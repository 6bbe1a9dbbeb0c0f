"""The dataset that `farreach bench ingest` reads: noise, stored as `farreach preprocess` stores."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import rasterio
from affine import Affine

from fit_model import checks
from pipeline.config import GroupingConfig, PreprocessConfig
from pipeline.flow import Stage, preprocess


@dataclass(frozen=True, kw_only=True)
class ScenesConfig:
    """Square images of uint8 noise, which no disk and no network can make smaller."""

    images: int = 16
    side_px: int = 6400
    group_side_px: int = 256
    bands: int = 3

    def __post_init__(self) -> None:
        checks.positive(
            images=self.images,
            side_px=self.side_px,
            group_side_px=self.group_side_px,
            bands=self.bands,
        )
        if self.group_side_px**2 * self.bands % 8:
            raise ValueError(
                f"group_side_px {self.group_side_px} with {self.bands} band(s) is no multiple of 8 "
                "bytes: take a multiple of 4"
            )

    def __str__(self) -> str:
        """As a name of a folder."""
        size = f"{self.side_px}x{self.side_px}x{self.bands}"
        return f"{self.images}-scenes-{size}-in-{self.group_side_px}px"

    @property
    def megapixels(self) -> float:
        """Of the groups that cover them, which reach over their edges."""
        groups_a_side = -(-self.side_px // self.group_side_px)
        return self.images * (groups_a_side * self.group_side_px) ** 2 / 1e6


def write_scenes(config: ScenesConfig, output: Path) -> None:
    """Images through the pipeline's own writer, without Ray; each source lives for this long."""
    with TemporaryDirectory(dir=output.parent, prefix=".scenes-") as folder:
        for number in range(config.images):
            write_scene(Path(folder) / f"scene-{number:04d}.tif", config, seed=number)
        grouping = GroupingConfig(group_side_px=config.group_side_px, patch_px=1)
        preprocess(
            PreprocessConfig(sources=folder, output=str(output), grouping=grouping),
            run_stage=in_this_process,
        )


def in_this_process(stage: Stage, tasks: list[pa.Table]) -> Iterator[pa.Table]:
    """A runner without Ray."""
    yield from map(stage, tasks)


def write_scene(path: Path, config: ScenesConfig, *, seed: int) -> None:
    """An uncompressed tiled GeoTIFF."""
    side, bands = config.side_px, config.bands
    pixels = np.frombuffer(np.random.default_rng(seed).bytes(bands * side * side), np.uint8)
    profile = {"dtype": "uint8", "tiled": True, "blockxsize": 512, "blockysize": 512}
    profile |= {"crs": "EPSG:32633", "transform": Affine(0.5, 0, 500_000, 0, -0.5, 5_800_000)}
    with rasterio.open(
        path, "w", driver="GTiff", height=side, width=side, count=bands, **profile
    ) as target:
        target.write(pixels.reshape(bands, side, side))
