"""Store damaged images again from their sources: the digest stays, or the dataset untouched."""

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import pyarrow as pa

from pipeline.assemble import NOT_CONTENT, Kept, digest_of
from pipeline.config import (
    BackgroundConfig,
    GroupingConfig,
    LimitsConfig,
    PreprocessConfig,
    SplitConfig,
)
from pipeline.content_settings import settings_of
from pipeline.dataset import Dataset
from pipeline.flow import StageRunner, store_images
from pipeline.identity import identities_of
from pipeline.labels import Labels
from pipeline.masks import with_masks
from pipeline.output import claim, look_at_output
from pipeline.publish import publish
from pipeline.records import stored_table
from pipeline.schema import IMAGES
from pipeline.sources import SOURCES
from pipeline.storage import Location


def repair(
    dataset: Dataset,
    damaged: set[str],
    *,
    limits: LimitsConfig,
    run_stage: StageRunner,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Replace the shards of these images, and publish tables that name the new ones.

    Shards that no image refers to go, too. ValueError, with the dataset as it was, when its tables
    do not add up, or when a source has changed or gives other pixels.
    """
    info = dataset.info
    rows = stored_table(dataset.place, info, "images").to_pylist()
    broken = [row for row in rows if row["image_id"] in damaged]
    config = _config_of(dataset, broken, limits=limits)
    settings = {name: asdict(getattr(config, name)) for name in info.settings}
    if digest_of(rows, label_columns=info.label_columns, settings=settings) != info.digest:
        raise ValueError(f"{dataset.place}: its tables are damaged; preprocess it again")
    for row in broken:
        _check_source(row, background=config.background)
    start = look_at_output(config.output, settings=settings_of(config), if_exists="append")
    if start.current is None or start.current.job != info.job:
        raise ValueError(f"{dataset.place}: another job has just finished here; begin again")
    quarantine = dataset.quarantine()
    kept = Kept(
        rows=[_stored(row) for row in rows if row["image_id"] not in damaged],
        bad_groups=[
            bad for bad in quarantine if bad["group"] is not None and bad["image_id"] not in damaged
        ],
    )
    images = pa.Table.from_pylist(broken).select(SOURCES.names) if broken else SOURCES.empty_table()
    with claim(start) as claimed:
        assembly = store_images(
            claimed,
            images.cast(SOURCES),
            kept=kept,
            config=config,
            progress=progress,
            run_stage=run_stage,
        )
        for row in broken:
            again = assembly.images.get(row["image_id"])
            if again is None or _content(again.row) != _content(row):
                claimed.forget()
                raise ValueError(
                    f"{row['uri']}: does not give the pixels of image {row['image_id']!r} again, "
                    f"so nothing was replaced; preprocess the dataset again"
                )
        assembly.quarantine += [bad for bad in quarantine if bad["group"] is None]
        publish(claimed, assembly, labels=_labels_of(rows, info.label_columns), config=config)


def _config_of(
    dataset: Dataset, broken: list[dict[str, Any]], *, limits: LimitsConfig
) -> PreprocessConfig:
    settings = dataset.info.settings
    background = BackgroundConfig(**settings["background"])
    return PreprocessConfig(
        sources=[row["uri"] for row in broken] or [str(dataset.place)],
        output=str(dataset.place),
        grouping=GroupingConfig(**settings["grouping"]),
        background=replace(background, leave_out=tuple(background.leave_out)),
        splits=SplitConfig(**settings["splits"]),
        limits=limits,
        on_error="quarantine_groups",
        if_exists="append",
    )


def _check_source(row: dict[str, Any], *, background: BackgroundConfig) -> None:
    place = Location.of(row["uri"])
    there = identities_of([place]).get(place)
    if there is None:
        raise ValueError(f"{place}: not found, so image {row['image_id']!r} cannot be repaired")
    found = {"image_id": row["image_id"], "uri": row["uri"], **there._asdict()}
    (now,) = with_masks(
        pa.Table.from_pylist([found], schema=SOURCES), background=background
    ).to_pylist()
    if any(now[name] != row[name] for name in there._fields):
        raise ValueError(
            f"{place}: has changed since image {row['image_id']!r} was stored "
            f"({row['source_bytes']} bytes then, {there.source_bytes} now, another tag), "
            f"so it cannot be repaired"
        )


def _stored(row: dict[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in IMAGES.names}


def _content(row: dict[str, Any]) -> str:
    """What the digest sees of it but its split; repr: NaN nodata equals itself."""
    names = [name for name in IMAGES.names if name not in (*NOT_CONTENT, "split")]
    return repr([list(row[name]) if isinstance(row[name], tuple) else row[name] for name in names])


def _labels_of(rows: list[dict[str, Any]], columns: dict[str, str]) -> Labels:
    return Labels(
        columns=columns,
        values={row["image_id"]: {name: row[name] for name in columns} for row in rows},
        split={row["image_id"]: row["split"] for row in rows},
    )
