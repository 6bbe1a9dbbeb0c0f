"""The end of the flow: the tables, dataset.json as the last file, and a report to the user."""

from dataclasses import asdict, dataclass, field
from typing import Self

import pyarrow as pa

from pipeline.assemble import Assembly, digest_of, formats_of
from pipeline.config import PreprocessConfig
from pipeline.labels import Labels
from pipeline.output import Claim
from pipeline.schema import IMAGES, QUARANTINE, SCHEMA_VERSION


@dataclass(frozen=True, kw_only=True)
class PreprocessReport:
    """What a job did; lengths of time in seconds."""

    output: str
    digest: str
    images: int
    groups: int
    left_out_groups: int
    megapixels: float
    """Stored by this run: not what was there before it began."""
    seconds: float
    peak_worker_gb: float
    quarantined: list[tuple[str, str | None, str]] = field(default_factory=list)
    """(uri, window, cause) of every image that could not be read."""
    bad_groups: list[tuple[str, str | None, str]] = field(default_factory=list)
    """The same of groups that could not be read, while their images stay."""
    ignored_files: list[str] = field(default_factory=list)
    resumed_groups: int = 0
    """Groups, background included, that this job had done before it was killed and begun again."""
    kept_images: int = 0
    """Images that the dataset held already."""
    vanished: list[str] = field(default_factory=list)
    """Images among them that the sources no longer have."""

    @classmethod
    def of(
        cls,
        assembly: Assembly,
        *,
        output: str,
        digest: str,
        seconds: float,
        ignored_files: list[str],
        resumed_groups: int,
    ) -> Self:
        """What an assembly adds up to."""
        rows = [image.row for image in assembly.images.values()]
        groups = sum(len(row["groups"]) for row in rows)
        cells = sum(row["grid_rows"] * row["grid_columns"] for row in rows)
        bad: dict[bool, list[tuple[str, str | None, str]]] = {True: [], False: []}
        for each in assembly.sorted_quarantine:
            said = (str(each["uri"]), each["window"], str(each["cause"]))
            bad[each["group"] is None].append(said)
        return cls(
            output=output,
            digest=digest,
            images=len(rows),
            groups=groups,
            left_out_groups=cells - groups - assembly.num_bad_groups,
            megapixels=_read_now(assembly, resumed_groups=resumed_groups),
            seconds=seconds,
            peak_worker_gb=assembly.peak_worker_gb,
            quarantined=bad[True],
            bad_groups=bad[False],
            ignored_files=ignored_files,
            resumed_groups=resumed_groups,
            kept_images=len(assembly.kept.rows),
            vanished=assembly.kept.vanished,
        )


def _read_now(assembly: Assembly, *, resumed_groups: int) -> float:
    """Megapixels of new images, by the share of their groups that was not there before."""
    kept = {row["image_id"] for row in assembly.kept.rows}
    new = [image.row for name, image in assembly.images.items() if name not in kept]
    whole = sum(row["width_px"] * row["height_px"] for row in new) / 1e6
    return whole * (1 - resumed_groups / max(assembly.num_groups, 1))


def publish(claimed: Claim, assembly: Assembly, *, labels: Labels, config: PreprocessConfig) -> str:
    """Write the tables and, last, dataset.json; gives the digest."""
    if assembly.unfinished:
        raise AssertionError(f"pieces are missing of {assembly.unfinished[:3]}")
    images = [assembly.images[name] for name in sorted(assembly.images)]
    names = [image.row["image_id"] for image in images]
    kinds = {"class": pa.string(), "number": pa.float64()}
    schema = pa.schema([*IMAGES, *((name, kinds[kind]) for name, kind in labels.columns.items())])
    rows = [
        {**image.row, **labels.values[name], "split": labels.split[name]}
        for name, image in zip(names, images, strict=True)
    ]
    settings = {
        "grouping": asdict(config.grouping),
        "background": asdict(config.background),
        "splits": asdict(config.splits),
    }
    digest = digest_of(rows, label_columns=labels.columns, settings=settings)
    formats = formats_of(images, split=labels.split)
    splits = [labels.split[name] for name in names]
    info = {
        "schema_version": SCHEMA_VERSION,
        "digest": digest,
        "group_side_px": config.grouping.group_side_px,
        "formats": [asdict(kept) for kept in formats],
        "label_columns": labels.columns,
        "classes": labels.classes(names),
        "splits": {split: splits.count(split) for split in sorted(set(splits))},
        "images": len(images),
        "groups": sum(kept.groups for kept in formats),
        "quarantined": assembly.num_bad_images,
        "bad_groups": assembly.num_bad_groups,
        "settings": settings,
        "tables": {
            "images": claimed.write_table("images", pa.Table.from_pylist(rows, schema=schema)),
            "quarantine": claimed.write_table(
                "quarantine", pa.Table.from_pylist(assembly.sorted_quarantine, schema=QUARANTINE)
            ),
        },
    }
    claimed.publish(info, shards={part["shard"] for row in rows for part in row["parts"]})
    return digest
