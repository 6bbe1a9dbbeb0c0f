"""What a finished dataset at the output is worth to a job: the images it need not store."""

from dataclasses import asdict
from typing import Any

import pyarrow as pa

from pipeline.assemble import Kept
from pipeline.config import PreprocessConfig
from pipeline.content_settings import difference, settings_in
from pipeline.current import Current
from pipeline.output import Start


def kept_images(start: Start, images: pa.Table, *, config: PreprocessConfig) -> Kept:
    """The images of a finished dataset that stay as they are stored, in the order of their ids.

    With if_exists=append all of them; ValueError when one has changed and may not be stored again,
    or when the dataset has other settings. A job that was killed right after it had `published`
    also keeps what it stored.
    """
    current, appends = start.current, start.if_exists == "append"
    if current is None or not (appends or start.published):
        return Kept()
    if appends:
        _check_same_settings(start, current, config=config)
    sources = {row["image_id"]: row for row in images.to_pylist()}
    rows, vanished = [], []
    for row in current.rows:
        source = sources.get(row["image_id"])
        if source is None:
            if appends:
                rows.append(row)
                vanished.append(row["image_id"])
        elif _identity(source) == _identity(row):
            rows.append({**row, "uri": source["uri"]})
        elif appends and config.changed == "refuse":
            raise ValueError(
                f"{source['uri']}: image {row['image_id']!r} has changed since it was stored "
                f"({row['source_bytes']} bytes then, {source['source_bytes']} now, another tag); "
                f"changed=store_again stores it again, if_exists=replace makes a new dataset"
            )
    kept = {row["image_id"] for row in rows}
    bad_groups = [
        bad for bad in current.quarantine if bad["group"] is not None and bad["image_id"] in kept
    ]
    return Kept(rows=rows, bad_groups=bad_groups, vanished=vanished)


def _identity(row: dict[str, Any]) -> tuple[int | None, str | None]:
    return row["source_bytes"], row["source_tag"]


def _check_same_settings(start: Start, current: Current, *, config: PreprocessConfig) -> None:
    """What an image holds, and its split, stay what they were without the new images."""
    info = current.info
    if info is None:
        return
    differs = difference(
        {**settings_in(info.settings), **_named(info.settings["splits"])},
        {**start.settings, **_named(asdict(config.splits))},
    )
    if differs:
        raise ValueError(
            f"{current.place}: the dataset has other settings: {differs}; "
            f"append with its settings, or make a new one with if_exists=replace"
        )
    if info.label_columns and config.labels is None:
        raise ValueError(
            f"{current.place}: its images have labels ({', '.join(info.label_columns)}); "
            f"append with labels=TABLE, a table of all images"
        )


def _named(splits: dict[str, Any]) -> dict[str, Any]:
    return {f"splits.{name}": value for name, value in splits.items()}
