"""What is in a dataset, from its tables alone."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pipeline.dataset import Dataset
from pipeline.records import ImageRecord

BINS = 10


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Least, middle and largest of some numbers."""

    minimum: float
    median: float
    maximum: float

    @staticmethod
    def of(values: Sequence[float]) -> "Spread | None":
        """None of no values."""
        if not values:
            return None
        low, middle, high = np.quantile(np.array(values, np.float64), [0.0, 0.5, 1.0]).tolist()
        return Spread(minimum=low, median=middle, maximum=high)

    def __str__(self) -> str:
        return f"{self.minimum:.6g} to {self.maximum:.6g}, median {self.median:.6g}"


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Figures of a dataset; lengths in px of the stored level."""

    dataset: str
    digest: str
    images: int
    groups: int
    group_side_px: int
    megapixels: float
    bytes_on_disk: int
    splits: dict[str, int]
    formats: list[dict[str, Any]]
    """Bands, dtype, band_mean, band_std, images, groups."""
    classes: dict[str, dict[str, int]]
    """Label column -> class -> images; "" where an image has none."""
    numbers: dict[str, Spread | None]
    """Label column of numbers -> their spread."""
    width_px: Spread | None
    height_px: Spread | None
    groups_an_image: Spread | None
    background_share: float
    """Of the groups that cover the images, those left out because they hold nothing."""
    microns_per_px: Spread | None
    crs: dict[str, int]
    """Name of a coordinate system -> images."""
    levels: dict[int, int]
    """Level of the source that was stored -> images."""
    quarantined: int
    bad_groups: int
    causes: dict[str, int]
    """Why something was put aside, numbers left out -> how often; the most frequent first."""
    long_sides_px: list[float]
    """Edges of the histogram of the images' longer sides ..."""
    size_counts: list[int]
    """... and how many images lie between two of them."""

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def summary_of(dataset: Dataset) -> Summary:
    """Reads the tables and lists the files; no pixel is read."""
    info, records = dataset.info, dataset.images()
    cells = sum(record.grid_rows * record.grid_columns for record in records)
    counts, edges = _histogram([max(record.width_px, record.height_px) for record in records])
    names = {kind: [n for n, k in info.label_columns.items() if k == kind] for kind in KINDS}
    return Summary(
        dataset=str(dataset.place),
        digest=info.digest,
        images=info.images,
        groups=info.groups,
        group_side_px=info.group_side_px,
        megapixels=sum(record.width_px * record.height_px for record in records) / 1e6,
        bytes_on_disk=sum(int(each["size"]) for each in dataset.place.listing().values()),
        splits=info.splits,
        formats=[asdict(kept) for kept in info.formats],
        classes={name: _classes(records, name) for name in names["class"]},
        numbers={name: Spread.of(_numbers(records, name)) for name in names["number"]},
        width_px=Spread.of([record.width_px for record in records]),
        height_px=Spread.of([record.height_px for record in records]),
        groups_an_image=Spread.of([len(record.groups) for record in records]),
        background_share=(cells - info.groups - info.bad_groups) / max(cells, 1),
        microns_per_px=Spread.of([record.mpp_x for record in records if record.mpp_x is not None]),
        crs=dict(Counter(_crs_name(record.crs) for record in records if record.crs).most_common()),
        levels=dict(sorted(Counter(record.level for record in records).items())),
        quarantined=info.quarantined,
        bad_groups=info.bad_groups,
        causes=causes_of(dataset.quarantine()),
        long_sides_px=edges,
        size_counts=counts,
    )


KINDS = ("class", "number")


def _classes(records: list[ImageRecord], name: str) -> dict[str, int]:
    return dict(sorted(Counter(str(record.labels[name] or "") for record in records).items()))


def _numbers(records: list[ImageRecord], name: str) -> list[float]:
    values = (record.labels[name] for record in records)
    return [float(value) for value in values if value is not None]


def _histogram(long_sides_px: list[int]) -> tuple[list[int], list[float]]:
    if not long_sides_px:
        return [], []
    bins = BINS if min(long_sides_px) < max(long_sides_px) else 1
    counts, edges = np.histogram(long_sides_px, bins=bins)
    return counts.tolist(), edges.tolist()


def _crs_name(wkt: str) -> str:
    named = re.search(r'"([^"]+)"', wkt)
    return named.group(1) if named else "unnamed"


def causes_of(quarantine: list[dict[str, Any]]) -> dict[str, int]:
    """How often, by the words of the first of those that differ in names and numbers only."""
    said = [_cause(bad) for bad in quarantine]
    first: dict[str, str] = {}
    for cause in said:
        first.setdefault(re.sub(r"\d+", "N", cause), cause)
    counts = Counter(re.sub(r"\d+", "N", cause) for cause in said)
    return {first[kind]: count for kind, count in counts.most_common()}


def _cause(bad: dict[str, Any]) -> str:
    name = str(bad["uri"]).rpartition("/")[2]
    return str(bad["cause"]).replace(str(bad["uri"]), "the file").replace(name, "the file")
