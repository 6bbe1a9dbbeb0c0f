"""The on-disk contract of a dataset, with units and a version.

    DATASET/
      dataset.json        written last; without it there is no dataset
      images-*.parquet    a row an image (IMAGES, plus one column a label), sorted by image_id
      quarantine-*.parquet  a row an image, or a group of one that stays, that could not be read
      shards/*.arrow      Arrow IPC files of one pixel format; a record batch is a group

dataset.json names the tables, and the images table names the shards: what neither names is no part
of the dataset. Names hold the job that wrote a file, so no job writes over another one's, and
writing dataset.json is the one moment of change. A shard is also named by what it will hold, so
that a job that was killed and begun again knows what it has. While a job is not finished, there are

      unfinished.json     which job it is, and the settings that its shards depend on
      journal/*.arrow     the index of every finished task
      lease-*.json        who is at work
"""

import re
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

SCHEMA_VERSION = 2
INFO = "dataset.json"
SHARDS_FOLDER = "shards"
UNFINISHED = "unfinished.json"
"""Lies beside the data while it is being written: the next run may clean up what it names."""
JOURNAL_FOLDER = "journal"
JOB = re.compile(r"[0-9a-f]{12}")
SHARD_NAME = re.compile(r"shards/[0-9a-f]{12}-[0-9a-f]{16}\.arrow")
TABLE_NAME = re.compile(r"(images|quarantine)-[0-9a-f]{12}\.parquet")
ENTRY_NAME = re.compile(r"journal/[0-9a-f]{12}-(probed-)?[0-9a-f]{16}\.arrow")
FORMER_NAME = re.compile(
    r"(images|quarantine)(-b)?\.parquet|shards/[ab](-[0-9a-f]{12})?-\d{6,}\.arrow"
)
"""What datasets of schema version 1 consist of."""
OUR_FILES = re.compile(
    "|".join(kind.pattern for kind in (SHARD_NAME, TABLE_NAME, ENTRY_NAME, FORMER_NAME))
)
PARTIAL = re.compile(r"(?:shards/|journal/)?\.[\w.-]+\.partial-[0-9a-f]{8}")

DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64")

PART = pa.struct(
    [
        ("shard", pa.string()),  # path below the dataset
        ("first_batch", pa.int32()),
        ("num_batches", pa.int32()),
        ("start_byte", pa.int64()),  # where the first of its record batch messages begins
        ("num_bytes", pa.int64()),  # all of them; each has num_bytes / num_batches bytes
    ]
)
IMAGES = pa.schema(
    [
        ("image_id", pa.string()),
        ("uri", pa.string()),
        ("source_bytes", pa.int64()),
        ("source_tag", pa.string()),  # changes when the source does: ETag, or mtime in ns
        ("width_px", pa.int64()),  # at `level`, as every length here
        ("height_px", pa.int64()),
        ("level", pa.int32()),
        ("bands", pa.int32()),
        ("dtype", pa.string()),
        ("nodata", pa.float64()),  # null: none declared; NaN and inf are missing in any case
        ("mpp_x", pa.float64()),  # microns per px; null where unknown or where a CRS rules
        ("mpp_y", pa.float64()),
        ("crs", pa.string()),  # WKT
        ("transform", pa.list_(pa.float64())),  # a b c d e f: x = a col + b row + c, y = d .. f
        ("grid_rows", pa.int32()),
        ("grid_columns", pa.int32()),
        ("split", pa.string()),
        ("groups", pa.list_(pa.int32())),  # stored groups, row * grid_columns + column, rising
        ("parts", pa.list_(PART)),  # in the order of groups
        ("sha256", pa.string()),  # of its groups' hashes in order
        ("moments", pa.list_(pa.float64())),  # of all its values: count, mean, m2 of every band
    ]
)
ADDRESSES = pa.schema(
    [
        ("image_id", pa.string()),
        ("group", pa.int32()),
        ("row", pa.int32()),
        ("column", pa.int32()),
        ("top_px", pa.int64()),
        ("left_px", pa.int64()),
        ("valid_height_px", pa.int32()),
        ("valid_width_px", pa.int32()),
    ]
)
QUARANTINE = pa.schema(
    [
        ("image_id", pa.string()),
        ("uri", pa.string()),
        ("group", pa.int32()),  # null: the whole image
        ("window", pa.string()),  # which px were being read; null when it did not open
        ("cause", pa.string()),
    ]
)


@dataclass(frozen=True, kw_only=True)
class PixelFormat:
    """Images that may share a batch: one number of bands, one dtype, and their statistics."""

    bands: int
    dtype: str
    band_mean: tuple[float, ...] = ()
    band_std: tuple[float, ...] = ()
    images: int = 0
    groups: int = 0

    def __str__(self) -> str:
        return f"{self.bands} x {self.dtype}"


def group_schema(*, side_px: int, bands: int, dtype: str) -> pa.Schema:
    """One row a group. Those of an image are of equal size on disk: any run is one range."""
    element = pa.from_numpy_dtype(np.dtype(dtype))
    return pa.schema(
        [
            *ADDRESSES,
            pa.field("crc32", pa.uint32()),  # of the pixels' bytes
            pa.field("pixels", pa.fixed_shape_tensor(element, [side_px, side_px, bands])),
        ]
    )


def shard_name(job: str, content: str) -> str:
    """A shard's path below the dataset; `content` is a hash of what it will hold, 16 hex digits."""
    return f"{SHARDS_FOLDER}/{job}-{content}.arrow"


def entry_name(shard: str) -> str:
    """The journal's entry for a shard."""
    return f"{JOURNAL_FOLDER}/{shard.removeprefix(SHARDS_FOLDER + '/')}"


def table_name(kind: str, *, job: str) -> str:
    """`images` or `quarantine` as a file name."""
    return f"{kind}-{job}.parquet"


def check_shard_name(name: str) -> str:
    """A shard named by a table that somebody else may have written must stay below the dataset."""
    if not SHARD_NAME.fullmatch(name):
        raise ValueError(f"images table names the shard {name!r}, which no dataset of ours holds")
    return name


def tensor_column(pixels: np.ndarray) -> pa.ExtensionArray:
    """[group, side, side, bands], contiguous, as a fixed_shape_tensor column, without a copy."""
    kind = pa.fixed_shape_tensor(pa.from_numpy_dtype(pixels.dtype), list(pixels.shape[1:]))
    if not pixels.flags.c_contiguous:
        raise ValueError(f"pixels of strides {pixels.strides} cannot be stored without a copy")
    # pa.array would look at every value for what is missing
    buffers = [None, pa.py_buffer(pixels)]
    values = pa.Array.from_buffers(kind.value_type, pixels.size, buffers)
    size = pixels.size // len(pixels)
    return pa.ExtensionArray.from_storage(kind, pa.FixedSizeListArray.from_arrays(values, size))


def flat_bytes(pixels: np.ndarray) -> memoryview:
    """The bytes of contiguous pixels, for checksums."""
    return pixels.reshape(-1).view(np.uint8).data
