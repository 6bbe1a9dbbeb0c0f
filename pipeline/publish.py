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
    seconds: float
    peak_worker_gb: float
    quarantined: list[tuple[str, str | None, str]] = field(default_factory=list)
    """(uri, window, cause) of every image that could not be read."""
    bad_groups: list[tuple[str, str | None, str]] = field(default_factory=list)
    """The same of groups that could not be read, while their images stay."""
    ignored_files: list[str] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        assembly: Assembly,
        *,
        output: str,
        digest: str,
        seconds: float,
        ignored_files: list[str],
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
            megapixels=sum(row["width_px"] * row["height_px"] for row in rows) / 1e6,
            seconds=seconds,
            peak_worker_gb=assembly.peak_worker_gb,
            quarantined=bad[True],
            bad_groups=bad[False],
            ignored_files=ignored_files,
        )


def publish(claimed: Claim, assembly: Assembly, *, labels: Labels, config: PreprocessConfig) -> str:
    """Write the tables and, last, dataset.json; gives the digest."""
    if assembly.unfinished:
        raise AssertionError(f"pieces are missing of {assembly.unfinished[:3]}")
    claimed.check()
    claimed.remove(assembly.orphans)
    images = [assembly.images[name] for name in sorted(assembly.images)]
    names = [image.row["image_id"] for image in images]
    kinds = {"class": pa.string(), "number": pa.float64()}
    schema = pa.schema([*IMAGES, *((name, kinds[kind]) for name, kind in labels.columns.items())])
    rows = [
        {**image.row, **labels.values[name], "split": labels.split[name]}
        for name, image in zip(names, images, strict=True)
    ]
    digest = digest_of(images, labels=labels, config=config)
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
        "settings": {
            "grouping": asdict(config.grouping),
            "background": asdict(config.background),
            "splits": asdict(config.splits),
        },
        "tables": {
            "images": claimed.write_table("images", pa.Table.from_pylist(rows, schema=schema)),
            "quarantine": claimed.write_table(
                "quarantine", pa.Table.from_pylist(assembly.sorted_quarantine, schema=QUARANTINE)
            ),
        },
    }
    claimed.publish(info)
    return digest
