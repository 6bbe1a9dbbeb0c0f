"""Read pixels: addresses of groups in, the same rows with their squares of pixels out."""

import numpy as np
import pyarrow as pa
from blake3 import blake3
from isal.isal_zlib import crc32

from pipeline.grid import Grid
from pipeline.readers.faults import told_fault
from pipeline.readers.protocol import ImageReader, SourceError, StreamError
from pipeline.schema import ADDRESSES, flat_bytes, tensor_column
from pipeline.statistics import measure

TOLD = pa.schema(
    [
        ("crc32", pa.uint32()),  # of the square's bytes
        ("hash", pa.binary(32)),  # group_hash
        ("moments", pa.list_(pa.float64())),  # Moments.row() of the valid extent
    ]
)
"""What is known of a group's pixels besides."""


def addresses(image_id: str, *, grid: Grid, first: int, count: int) -> pa.Table:
    """Groups first .. first + count of one image as rows."""
    groups = np.arange(first, first + count)
    row, column = np.divmod(groups, grid.columns)
    top, left = row * grid.side_px, column * grid.side_px
    columns = [
        [image_id] * count,
        groups,
        row,
        column,
        top,
        left,
        np.minimum(grid.side_px, grid.height_px - top),
        np.minimum(grid.side_px, grid.width_px - left),
    ]
    return pa.table(
        [pa.array(values, field.type) for values, field in zip(columns, ADDRESSES, strict=True)],
        schema=ADDRESSES,
    )


def extract_groups(rows: pa.Table, *, image: ImageReader, grid: Grid) -> pa.Table:
    """Stage 3 of 5: addresses -> pixels.

    Takes    ADDRESSES of one image
    Gives    the same rows in the same order, plus TOLD, and
             pixels: [side, side, bands] in the source's dtype, 0 beyond the valid extent
    Runs as  a part of the store task: a source is opened once a piece, because opening a
             pyramidal TIFF costs far more than one read; a group is one read into its square
    Memory   rows * side^2 * bands * bytes a value
    Fails    SourceError with the window that could not be decoded
    """
    header, side = image.header, grid.side_px
    squares = np.empty((rows.num_rows, side, side, header.bands), header.dtype)
    told = []
    for square, group in zip(squares, rows["group"].to_pylist(), strict=True):
        window = grid.window(group)
        height, width = window.height_px, window.width_px
        image.read(window, out=square[:height, :width])
        square[height:] = 0
        square[:height, width:] = 0
        # at once, as long as the pixels lie in the core's own cache
        hashed = group_hash(group, height, width, square)
        moments = measure(square[:height, :width], nodata=header.nodata).row()
        told.append((crc32(flat_bytes(square)), hashed, moments))
    for field, values in zip(TOLD, zip(*told, strict=True), strict=True):
        rows = rows.append_column(field, pa.array(values, field.type))
    return rows.append_column("pixels", tensor_column(squares))


def extract_readable(
    rows: pa.Table, *, image: ImageReader, grid: Grid, bad_groups: dict[int, SourceError]
) -> pa.Table:
    """extract_groups of the rows that can be read; the others go to `bad_groups`.

    Rows that fail are read again group by group, so one damaged tile costs the groups it lies in.
    Fails where the machine or the store does, and where an image is a single stream (PNG, JPEG).
    """
    try:
        return extract_groups(rows, image=image, grid=grid)
    except SourceError as error:
        if told_fault(error) or isinstance(error, StreamError):
            raise
        if rows.num_rows == 1:
            bad_groups[rows["group"][0].as_py()] = error
            return rows.slice(0, 0)
    each = [
        extract_readable(rows.slice(place, 1), image=image, grid=grid, bad_groups=bad_groups)
        for place in range(rows.num_rows)
    ]
    readable = [groups for groups in each if groups.num_rows]
    return pa.concat_tables(readable) if readable else rows.slice(0, 0)


def group_hash(group: int, valid_height_px: int, valid_width_px: int, square: np.ndarray) -> bytes:
    """BLAKE3 over a group's place, valid extent and pixels: what an image's hash is made of."""
    digest = blake3(np.array([group, valid_height_px, valid_width_px], "<i8").tobytes())
    digest.update(flat_bytes(square))
    return digest.digest()
