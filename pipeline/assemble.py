"""Fold the index of stored pieces into a row an image, formats, and a digest."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.config import PreprocessConfig
from pipeline.plan import grid_of, header_of
from pipeline.schema import IMAGES, SCHEMA_VERSION, PixelFormat
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


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What a finished dataset holds already and the new one takes over."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    """IMAGES, without split."""
    bad_groups: list[dict[str, Any]] = field(default_factory=list)
    """QUARANTINE, of these images."""
    vanished: list[str] = field(default_factory=list)
    """Images among them that the sources no longer have."""


class Assembly:
    """Takes the pieces in any order; an image is folded as soon as its last piece is there.

    Images of `kept` are there from the beginning.
    """

    def __init__(
        self, probed: pa.Table, *, config: PreprocessConfig, kept: Kept | None = None
    ) -> None:
        self._side_px = config.grouping.group_side_px
        self._probed = {row["image_id"]: row for row in probed.to_pylist()}
        self._pieces: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self._missing = {
            image: grid_of(header_of(row), side_px=self._side_px).num_groups
            for image, row in self._probed.items()
            if row["header"] is not None
        }
        kept = kept or Kept()
        self.kept = kept
        self.images = {row["image_id"]: StoredImage(row=row) for row in kept.rows}
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
        self.quarantine += kept.bad_groups
        self.num_bad_groups = len(kept.bad_groups)
        """Rows of the quarantine that name a group; the others name an image."""
        self.num_groups = sum(self._missing.values())
        self.num_done = 0
        self.num_resumed = 0
        """Of those done, what this job had done before it was killed and begun again."""
        self.peak_worker_gb = max(
            (row["peak_worker_gb"] for row in self._probed.values()), default=0.0
        )

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


def digest_of(
    rows: Iterable[dict[str, Any]], *, label_columns: dict[str, str], settings: dict[str, Any]
) -> str:
    """sha256 over content and order: settings that change content, then image by image.

    Paths, shards and workers stay out of it; pixels come in through each image's own hash. Rows are
    those of the images table, labels included; settings are those in dataset.json.
    """
    digest = hashlib.sha256()
    grouping, background = settings["grouping"], dict(settings["background"])
    background["leave_out"] = sorted(background["leave_out"])
    del background["masks"]
    if "glass" not in background["leave_out"]:
        shares = ("min_content_share",) if "mask" in background["leave_out"] else ()
        background = {name: background[name] for name in ("leave_out", *shares)}
    decisive = {
        "schema_version": SCHEMA_VERSION,
        "group_side_px": grouping["group_side_px"],
        "bands": grouping["bands"],
        "background": background,
        "label_columns": label_columns,
    }
    digest.update(_line(decisive))
    for row in rows:
        kept = {name: row[name] for name in IMAGES.names if name not in NOT_CONTENT}
        digest.update(_line({**kept, "labels": {name: row[name] for name in label_columns}}))
    return f"sha256:{digest.hexdigest()}"


def _line(record: dict[str, Any]) -> bytes:
    return json.dumps(record, sort_keys=True).encode() + b"\n"
