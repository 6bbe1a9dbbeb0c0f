"""What a dataset tells about itself and its images: frozen records, checked where they are read."""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import parquet

from pipeline.config import BackgroundConfig, GroupingConfig, SplitConfig
from pipeline.schema import (
    DTYPES,
    IMAGES,
    SCHEMA_VERSION,
    TABLE_NAME,
    PixelFormat,
    check_shard_name,
)
from pipeline.storage import Location

# a schema makes its list of names anew each time it is asked, and there may be a million images
KNOWN = frozenset(IMAGES.names)
PLAIN = tuple(field.name for field in IMAGES if not pa.types.is_list(field.type))
"""Columns of one value."""
ALIKE = ("dtype", "split", "crs")
ROWS_TOGETHER = 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A run of an image's groups in one shard; each takes num_bytes / num_batches bytes."""

    shard: str
    first_batch: int
    num_batches: int
    start_byte: int
    num_bytes: int

    def __post_init__(self) -> None:
        check_shard_name(self.shard)
        if self.num_batches < 1 or self.start_byte < 0 or self.num_bytes % self.num_batches:
            raise ValueError(f"{self.shard}: impossible byte range {self}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageRecord:
    """One image of a dataset; lengths in px of the stored level."""

    image_id: str
    uri: str
    source_bytes: int | None
    source_tag: str | None
    """Changes when the source does; null where it could not be told."""
    width_px: int
    height_px: int
    level: int
    bands: int
    dtype: str
    nodata: float | None
    mpp_x: float | None
    mpp_y: float | None
    crs: str | None
    transform: tuple[float, ...] | None
    grid_rows: int
    grid_columns: int
    split: str
    groups: tuple[int, ...]
    """Stored groups, row * grid_columns + column, rising."""
    parts: tuple[Part, ...]
    sha256: str
    labels: dict[str, str | float | None]

    def __post_init__(self) -> None:
        sizes = (self.width_px, self.height_px, self.bands, self.grid_rows, self.grid_columns)
        if any(each is None or each < 1 for each in sizes) or self.dtype not in DTYPES:
            raise ValueError(
                f"image {self.image_id!r} claims {self.width_px} x {self.height_px} px of "
                f"{self.bands} x {self.dtype} in {self.grid_rows} x {self.grid_columns} groups: "
                "preprocess again"
            )


def records_of(images: pa.Table) -> list[ImageRecord]:
    """All rows of images.parquet; columns beyond IMAGES are labels.

    Cost: a million images of one group take 12 s and 1.1 GB. ROWS_TOGETHER are Python objects at a
    time before they are records, for these take several times the room.
    """
    kept: dict[str, str] = {}
    return [
        ImageRecord(**row)
        for start in range(0, images.num_rows, ROWS_TOGETHER)
        for row in _fields_of(images.slice(start, ROWS_TOGETHER), kept)
    ]


def _fields_of(images: pa.Table, kept: dict[str, str]) -> Iterator[dict[str, Any]]:
    """What a record of each of a few images is made of: by columns, faster than by rows."""
    columns = {name: images[name].to_pylist() for name in PLAIN}
    columns |= {name: _alike(columns[name], kept) for name in ALIKE}
    transforms = images["transform"].to_pylist()
    columns["transform"] = [None if each is None else tuple(each) for each in transforms]
    columns["groups"] = _tuples(images["groups"], pa.Array.to_pylist)
    columns["parts"] = _tuples(images["parts"], partial(_parts_of, kept=kept))
    names = [name for name in images.column_names if name not in KNOWN]
    labels = [_alike(images[name].to_pylist(), kept) for name in names]
    columns["labels"] = [
        dict(zip(names, values, strict=True))
        for values in (zip(*labels, strict=True) if names else [()] * images.num_rows)
    ]
    for values in zip(*columns.values(), strict=True):
        yield dict(zip(columns, values, strict=True))


def _tuples(lists: pa.ChunkedArray, made_of: Callable[[pa.Array], list[Any]]) -> list[tuple]:
    """Every list as a tuple of what its elements make, all of which are made at once."""
    if lists.null_count:
        raise ValueError("the images table has images without groups or parts: preprocess again")
    lengths = pc.list_value_length(lists).to_pylist()
    elements = iter(made_of(lists.combine_chunks().flatten()))
    return [tuple(islice(elements, length)) for length in lengths]


def _parts_of(elements: pa.StructArray, *, kept: dict[str, str]) -> list[Part]:
    values = (each.to_pylist() for each in elements.flatten())
    columns = dict(zip(elements.type.names, values, strict=True))
    columns["shard"] = _alike(columns["shard"], kept)
    return [
        Part(**dict(zip(columns, values, strict=True)))
        for values in zip(*columns.values(), strict=True)
    ]


def _alike(values: list[Any], kept: dict[str, str]) -> list[Any]:
    """The same values, each string once: many images have them in common."""
    return [kept.setdefault(each, each) if type(each) is str else each for each in values]


@dataclass(frozen=True, kw_only=True)
class ImageGroups:
    """The groups of one image, as arrays of equal length."""

    pixels: list[np.ndarray]
    """[side, side, bands] each, read-only; local ones are views on the memory map."""
    group: np.ndarray
    row: np.ndarray
    column: np.ndarray
    valid_height_px: np.ndarray
    valid_width_px: np.ndarray
    crc32: np.ndarray


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """dataset.json."""

    schema_version: int
    digest: str
    job: str
    """Which job wrote the tables; their names hold it."""
    group_side_px: int
    formats: tuple[PixelFormat, ...]
    label_columns: dict[str, str]
    """Label column -> "class" or "number"."""
    classes: dict[str, tuple[str, ...]]
    splits: dict[str, int]
    """Split -> number of images."""
    images: int
    groups: int
    quarantined: int
    """Images that could not be read."""
    bad_groups: int
    """Groups that could not be read, of images that stay."""
    settings: dict[str, Any]
    tables: dict[str, dict[str, str]]
    """images, quarantine -> file name and sha256."""

    @staticmethod
    def from_json(content: bytes, *, of: str) -> "DatasetInfo":
        """The content of dataset.json, or a ValueError that names the dataset."""
        try:
            raw = json.loads(content)
            version = raw["schema_version"]
            info = _info_in(raw) if version == SCHEMA_VERSION else None
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(
                f"{of}: dataset.json is damaged ({error!r}); preprocess again"
            ) from error
        if info is None:
            raise ValueError(
                f"{of}: schema version {version}, this farreach reads {SCHEMA_VERSION}; "
                f"preprocess it again"
            )
        return info


def _info_in(raw: dict[str, Any]) -> DatasetInfo:
    """What dataset.json holds; an error of any kind where something is missing or is no such."""
    formats = tuple(
        PixelFormat(
            **{
                **kept,
                "band_mean": tuple(kept["band_mean"]),
                "band_std": tuple(kept["band_std"]),
            }
        )
        for kept in raw["formats"]
    )
    classes = {name: tuple(names) for name, names in raw["classes"].items()}
    settings = {
        **raw["settings"],
        "grouping": asdict(GroupingConfig(**raw["settings"]["grouping"])),
        "background": asdict(BackgroundConfig(**raw["settings"]["background"])),
        "splits": asdict(SplitConfig(**raw["settings"]["splits"])),
    }
    info = DatasetInfo(**{**raw, "formats": formats, "classes": classes, "settings": settings})
    if type(info.group_side_px) is not int:
        raise TypeError(f"group_side_px {info.group_side_px!r}")
    if info.group_side_px != settings["grouping"]["group_side_px"]:
        raise ValueError(f"group_side_px {info.group_side_px}, in its settings another")
    unknown = {*info.label_columns.values()} - {"class", "number"}
    if unknown:
        raise ValueError(f"labels of kind {unknown}")
    for kind in ("images", "quarantine"):
        if not all(isinstance(info.tables[kind][name], str) for name in ("name", "sha256")):
            raise ValueError(f"no name and checksum of the table of {kind}")
    return info


def stored_table(place: Location, info: DatasetInfo, kind: str) -> pa.Table:
    """The table that dataset.json names, or a ValueError when it is not the one that was meant."""
    table = info.tables[kind]
    if not TABLE_NAME.fullmatch(table["name"]):
        raise ValueError(f"{place}: dataset.json names a table {table['name']!r}")
    content = place.child(table["name"]).read_bytes()
    if hashlib.sha256(content).hexdigest() != table["sha256"]:
        raise ValueError(f"{place}: {table['name']} is damaged; preprocess again")
    # Arrow's threads would hold Python objects, and abort a process that ends meanwhile
    return parquet.ParquetFile(pa.BufferReader(content)).read(use_threads=False)
