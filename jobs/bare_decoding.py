"""The ceiling of preprocessing: the windows of all groups decoded by rasterio and thrown away."""

from dataclasses import dataclass
from multiprocessing.pool import Pool

import rasterio
from rasterio.windows import Window

from jobs.bench_images import quiet


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Some rows of groups of one image."""

    path: str
    group_side_px: int
    first_row: int
    num_rows: int


def decode(rows: Rows) -> None:
    """A bare loop, in one thread, with rasterio's own defaults."""
    side = rows.group_side_px
    with quiet(), rasterio.Env(GDAL_NUM_THREADS="1"), rasterio.open(rows.path) as source:
        for row in range(rows.first_row, rows.first_row + rows.num_rows):
            top = row * side
            for left in range(0, source.width, side):
                width, height = min(side, source.width - left), min(side, source.height - top)
                source.read(window=Window(left, top, width, height))


def decode_all(path: str, *, group_side_px: int, rows_together: int, pool: Pool) -> None:
    """The whole image, by all processes of a pool."""
    with quiet(), rasterio.open(path) as source:
        num_rows = -(-source.height // group_side_px)
    tasks = [
        Rows(
            path=path,
            group_side_px=group_side_px,
            first_row=first,
            num_rows=min(rows_together, num_rows - first),
        )
        for first in range(0, num_rows, rows_together)
    ]
    pool.map(decode, tasks, chunksize=1)
