"""One real image as a training sees it in a dozen epochs, the grid of its groups drawn.

    python -m tests.augmentations IMAGE.tif docs/augmentations.png

IMAGE holds RGB of 8 bits; what it marks as missing is shown as models see it, as the mean.
"""

import io
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import rasterio
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from fit_model.augment.config import AugmentConfig
from fit_model.augment.views import draw_view
from fit_model.groups import GroupBatch
from fit_model.tokens import InputConfig, normalized
from tests.fit_model.augment.pictures import cut, lengths, put_together, seen

SIDE_PX, SHOWN_PX = 128, 4
"""Of a group; and every so many px is drawn."""
COLUMNS, ROWS = 7, 2
CONFIG = AugmentConfig(
    symmetries="all", crop_groups=(5, 5), brightness=0.3, contrast=0.3, band_scale=0.2,
    band_shift=0.3,
)  # fmt: skip


def main(source: Path, output: Path) -> None:
    """Draw what is stored, and what COLUMNS x ROWS - 1 seeds make of it."""
    with rasterio.open(source) as file:
        picture, nodata = np.moveaxis(file.read(), 0, -1), file.nodata
    columns = len(lengths(picture.shape[1], SIDE_PX))
    rows = len(lengths(picture.shape[0], SIDE_PX))
    filled = [number for number in range(rows * columns) if holds(picture, number, columns, nodata)]
    stored = replace(
        cut(picture, filled, side_px=SIDE_PX), nodata=torch.tensor([nodata], dtype=torch.float64)
    )
    shown = picture[(picture != nodata).all(2)]
    means, deviations = shown.mean(0), shown.std(0)
    model = InputConfig(
        bands=3, group_side_px=SIDE_PX, band_mean=tuple(means), band_std=tuple(deviations)
    )
    figure = Figure(figsize=(2.0 * COLUMNS, 2.25 * ROWS), dpi=90, layout="constrained")
    for seed, axes in enumerate(figure.subplots(ROWS, COLUMNS).flat):
        config = CONFIG if seed else AugmentConfig()
        view = draw_view(filled, rows=rows, columns=columns, bands=3, config=config, seed=seed)
        batch = seen(view, stored)
        values = normalized(batch.to("cpu"), config=model) * torch.tensor(deviations)
        pixels = (values + torch.tensor(means)).clamp(0.0, 255.0).to(torch.uint8)
        draw(axes, replace(batch, pixels=pixels), title=f"epoch {seed}" if seed else "stored")
    drawn = io.BytesIO()
    figure.savefig(drawn)
    Image.open(drawn).convert("RGB").quantize(128).save(output, optimize=True)


def holds(picture: np.ndarray, number: int, columns: int, nodata: float) -> bool:
    """Whether a group of the picture holds anything."""
    row, column = number // columns * SIDE_PX, number % columns * SIDE_PX
    return bool((picture[row : row + SIDE_PX, column : column + SIDE_PX] != nodata).any())


def draw(axes: Axes, batch: GroupBatch, *, title: str) -> None:
    """The groups of one image put together, with the lines between them."""
    heights = extents(batch.row, batch.valid_height_px, int(batch.grid_rows))
    widths = extents(batch.column, batch.valid_width_px, int(batch.grid_columns))
    picture = put_together(batch, heights, widths)
    picture[(picture == 0).all(2)] = 255
    axes.imshow(picture[::SHOWN_PX, ::SHOWN_PX], extent=(0, sum(widths), sum(heights), 0))
    axes.hlines(np.cumsum([0, *heights]), 0, sum(widths), color="white", linewidth=0.4)
    axes.vlines(np.cumsum([0, *widths]), 0, sum(heights), color="white", linewidth=0.4)
    axes.set_title(title, fontsize=9)
    axes.set_axis_off()


def extents(place: torch.Tensor, extent_px: torch.Tensor, count: int) -> list[int]:
    """The height of every row, or the width of every column, of the grid."""
    return [int(extent_px[place == each].max()) if (place == each).any() else SIDE_PX
            for each in range(count)]  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
