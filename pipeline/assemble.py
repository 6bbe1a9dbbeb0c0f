"""Fold the index of stored pieces into a row an image, formats, and a digest."""

import hashlib
import json
from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.config import PreprocessConfig
from pipeline.labels import Labels
from pipeline.plan import grid_of, header_of
from pipeline.schema import SCHEMA_VERSION, PixelFormat
from pipeline.statistics import Moments

NOT_CONTENT = ("uri", "parts", "source_bytes", "source_tag", "moments")
"""Columns that say where an image was found and lies, or follow from its pixels."""


@dataclass(frozen=True, kw_only=True)
class StoredImage:
    """One image's row of images.parquet, labels aside."""

    row: dict[str, Any]

    @property
    def format(self) -> tuple[int, str]:
        """Bands and dtype."""
        return self.row["bands"], self.row["dtype"]

    @property
    def moments(self) -> Moments:
        """What its values add up to."""
        return Moments.from_row(np.array(self.row["moments"]))


class Assembly:
    """Takes the pieces in any order; an image is folded as soon as its last piece is there."""

    def __init__(self, probed: pa.Table, *, config: PreprocessConfig) -> None:
        self._side_px = config.grouping.group_side_px
        self._probed = {row["image_id"]: row for row in probed.to_pylist()}
        self._pieces: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self._missing = {
            image: grid_of(header_of(row), side_px=self._side_px).num_groups
            for image, row in self._probed.items()
            if row["header"] is not None
        }
        self.images: dict[str, StoredImage] = {}
        self.quarantine: list[dict[str, Any]] = [
            {
                "image_id": image,
                "uri": row["uri"],
                "group": None,
                "window": None,
                "cause": row["cause"],
            }
            for image, row in self._probed.items()
            if row["header"] is None
        ]
        self.num_bad_groups = 0
        """Rows of the quarantine that name a group; the others name an image."""
        self.orphans: set[str] = set()
        """Shards of images that turned out damaged elsewhere; they hold nothing else."""
        self.num_groups = sum(self._missing.values())
        self.num_done = 0
        self.peak_worker_gb = max(row["peak_worker_gb"] for row in self._probed.values())

    def add(self, piece: dict[str, Any]) -> None:
        """One row of STORED."""
        image = piece["image_id"]
        self.peak_worker_gb = max(self.peak_worker_gb, piece["peak_worker_gb"])
        self._pieces[image].append(piece)
        self._missing[image] -= piece["num_groups"]
        self.num_done += piece["num_groups"]
        if self._missing[image] == 0:
            self._fold(image, sorted(self._pieces.pop(image), key=lambda p: p["first_group"]))

    def _fold(self, image: str, pieces: list[dict[str, Any]]) -> None:
        probed = self._probed[image]
        header = header_of(probed)
        grid = grid_of(header, side_px=self._side_px)
        damaged = [piece for piece in pieces if piece["cause"] is not None]
        bad_groups = [bad for piece in pieces for bad in piece["bad_groups"] or []]
        if len(bad_groups) == grid.num_groups:
            damaged, bad_groups = bad_groups, []
        parts = [piece["part"] for piece in pieces if piece["part"] is not None]
        named = {"image_id": image, "uri": probed["uri"]}
        if damaged:
            self.orphans.update(part["shard"] for part in parts)
            said = {name: damaged[0][name] for name in ("window", "cause")}
            self.quarantine.append({**named, "group": None, **said})
            return
        self.quarantine += [{**named, **bad} for bad in bad_groups]
        self.num_bad_groups += len(bad_groups)
        moments = Moments.nothing(header.bands)
        for piece in pieces:
            for group in piece["moments"]:
                moments = moments + Moments.from_row(np.array(group))
        hashes = b"".join(piece["hashes"] for piece in pieces)
        described = asdict(header)
        for name in ("num_levels", "tile_height_px", "tile_width_px"):
            del described[name]
        row = {
            "image_id": image,
            "uri": probed["uri"],
            "source_bytes": probed["source_bytes"],
            "source_tag": probed["source_tag"],
            **described,
            "grid_rows": grid.rows,
            "grid_columns": grid.columns,
            "groups": [group for piece in pieces for group in piece["groups"]],
            "parts": parts,
            "sha256": hashlib.sha256(hashes).hexdigest(),
            "moments": moments.row(),
        }
        self.images[image] = StoredImage(row=row)

    @property
    def sorted_quarantine(self) -> list[dict[str, Any]]:
        """What could not be read, in the order of image ids and groups."""
        return sorted(self.quarantine, key=lambda bad: (bad["image_id"], bad["group"] or 0))

    @property
    def num_bad_images(self) -> int:
        """Images put aside whole."""
        return len(self.quarantine) - self.num_bad_groups

    @property
    def unfinished(self) -> list[str]:
        """Images that still wait for a piece."""
        return sorted(image for image, missing in self._missing.items() if missing)


def formats_of(images: list[StoredImage], *, split: dict[str, str]) -> list[PixelFormat]:
    """Every pixel format with its statistics: over the training images where it has any.

    Validation and test images must not reach a model through its normalisation; a format without
    a training image (a dataset made for prediction) is measured over all it has.
    """
    formats = []
    for bands, dtype in sorted({image.format for image in images}):
        members = [image for image in images if image.format == (bands, dtype)]
        trained = [m for m in members if split[m.row["image_id"]] == "train" and m.row["groups"]]
        moments = sum((member.moments for member in trained or members), Moments.nothing(bands))
        formats.append(
            PixelFormat(
                bands=bands,
                dtype=dtype,
                band_mean=tuple(moments.mean.tolist()),
                band_std=tuple(moments.std.tolist()),
                images=len(members),
                groups=sum(len(member.row["groups"]) for member in members),
            )
        )
    return formats


def digest_of(images: list[StoredImage], *, labels: Labels, config: PreprocessConfig) -> str:
    """sha256 over content and order: settings that change content, then image by image.

    Paths, shards and workers stay out of it; pixels come in through each image's own hash.
    """
    digest = hashlib.sha256()
    background = asdict(config.background)
    if "glass" not in background["leave_out"]:
        background = {"leave_out": background["leave_out"]}
    settings = {
        "schema_version": SCHEMA_VERSION,
        "group_side_px": config.grouping.group_side_px,
        "level": config.grouping.level,
        "bands": config.grouping.bands,
        "background": {**background, "leave_out": sorted(background["leave_out"])},
        "label_columns": labels.columns,
    }
    digest.update(_line(settings))
    for image in images:
        kept = {name: value for name, value in image.row.items() if name not in NOT_CONTENT}
        name = image.row["image_id"]
        digest.update(_line({**kept, "labels": labels.values[name], "split": labels.split[name]}))
    return f"sha256:{digest.hexdigest()}"


def _line(record: dict[str, Any]) -> bytes:
    return json.dumps(record, sort_keys=True).encode() + b"\n"
