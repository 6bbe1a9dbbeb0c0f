"""The whole flow on one page: images -> headers -> shards of patch groups -> a dataset.

Ray Data runs the two stages that touch the user's files; everything else is small tables in the
driver. Any other runner that maps a stage over slices of a table gives the same dataset.
"""

import logging
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial

import pyarrow as pa
import ray.data
from ray.exceptions import RayTaskError

from pipeline.assemble import Assembly, digest_of, formats_of
from pipeline.config import PreprocessConfig
from pipeline.labels import Labels, read_labels
from pipeline.output import Claim, check_output, claim
from pipeline.plan import plan_shards, probe_images
from pipeline.schema import IMAGES, QUARANTINE, SCHEMA_VERSION
from pipeline.sources import find_images
from pipeline.store import store_shards

Stage = Callable[[pa.Table], pa.Table]
StageRunner = Callable[[Stage, pa.Table, int], Iterator[pa.Table]]
"""(stage, table, rows a task) -> the stage's tables, in any order."""


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
    ignored_files: list[str] = field(default_factory=list)


def on_ray(stage: Stage, table: pa.Table, rows: int) -> Iterator[pa.Table]:
    """Map a stage over a table, `rows` of it and one CPU a task; tables come as tasks finish."""
    with warnings.catch_warnings():
        # Ray's settings warn of each other when they are first made.
        warnings.simplefilter("ignore", DeprecationWarning)
        context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    slices = [table.slice(start, rows) for start in range(0, table.num_rows, rows)]
    done = ray.data.from_arrow(slices).map_batches(
        stage, batch_size=None, batch_format="pyarrow", num_cpus=1
    )
    try:
        yield from done.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    except RayTaskError as error:
        raise _user_error(error) from error


def _user_error(error: BaseException) -> BaseException:
    """The plain error that a task raised, out of Ray's wrapping."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, OSError | ValueError) and not isinstance(inner, RayTaskError):
            return inner
        inner = getattr(inner, "cause", None) or inner.__cause__
    return error


def preprocess(
    config: PreprocessConfig,
    *,
    progress: Callable[[int, int], None] | None = None,
    run_stage: StageRunner = on_ray,
) -> PreprocessReport:
    """Make the dataset that `config` describes; `progress` hears (groups done, groups in all)."""
    began = time.monotonic()
    place = check_output(config.output, if_exists=config.if_exists)
    found = find_images(config.sources)
    labels = read_labels(
        config.labels, images=found.images["image_id"].to_pylist(), splits=config.splits
    )

    probe = partial(probe_images, grouping=config.grouping, limits=config.limits)
    probed = pa.concat_tables(run_stage(probe, found.images, 16))
    assembly = Assembly(probed, config=config)
    _check_probed(probed, assembly, config=config)

    with claim(place) as claimed:
        shards = plan_shards(
            probed,
            side_px=config.grouping.group_side_px,
            shard_mb=config.shard_mb,
            generation=claimed.generation,
        )
        store = partial(
            store_shards,
            output=str(place),
            grouping=config.grouping,
            background=config.background,
            limits=config.limits,
        )
        done = 0
        for stored in run_stage(store, shards, 1):
            for piece in stored.to_pylist():
                assembly.add(piece)
                done += piece["num_groups"]
            if progress:
                progress(done, assembly.num_groups)
            _check_damage(assembly, config=config)
        digest = publish(claimed, assembly, labels=labels, config=config)

    groups = sum(len(image.row["groups"]) for image in assembly.images.values())
    whole = sum(i.row["grid_rows"] * i.row["grid_columns"] for i in assembly.images.values())
    return PreprocessReport(
        output=str(place),
        digest=digest,
        images=len(assembly.images),
        groups=groups,
        left_out_groups=whole - groups,
        megapixels=assembly.megapixels,
        seconds=time.monotonic() - began,
        peak_worker_gb=assembly.peak_worker_gb,
        quarantined=[
            (str(bad["uri"]), bad["window"], str(bad["cause"])) for bad in _sorted_bad(assembly)
        ],
        ignored_files=found.ignored_files,
    )


def publish(claimed: Claim, assembly: Assembly, *, labels: Labels, config: PreprocessConfig) -> str:
    """Write the tables and, last, dataset.json; gives the digest."""
    if assembly.unfinished:
        raise AssertionError(f"pieces are missing of {assembly.unfinished[:3]}")
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
        "quarantined": len(assembly.quarantine),
        "settings": {
            "grouping": asdict(config.grouping),
            "background": asdict(config.background),
            "splits": asdict(config.splits),
        },
        "tables": {
            "images": claimed.write_table("images", pa.Table.from_pylist(rows, schema=schema)),
            "quarantine": claimed.write_table(
                "quarantine", pa.Table.from_pylist(_sorted_bad(assembly), schema=QUARANTINE)
            ),
        },
    }
    claimed.publish(info)
    return digest


def _check_probed(probed: pa.Table, assembly: Assembly, *, config: PreprocessConfig) -> None:
    """What the headers alone already forbid."""
    _check_damage(assembly, config=config)
    if "glass" not in config.background.leave_out:
        return
    for row in probed.to_pylist():
        header = row["header"]
        if header and (header["bands"], header["dtype"]) != (3, "uint8"):
            has = f"{header['bands']} of {header['dtype']}"
            raise ValueError(
                f"{row['uri']}: glass is told in 3 bands of uint8, this has {has}; "
                f"choose grouping.bands, or leave out nodata only"
            )


def _check_damage(assembly: Assembly, *, config: PreprocessConfig) -> None:
    """End the job where damage may not be passed over, or where nothing is left."""
    bad = assembly.quarantine
    if bad and config.on_error == "fail":
        raise ValueError(f"{_reason(bad[-1])} (on_error=quarantine would go on without it)")
    if bad and not assembly.images and not assembly.unfinished:
        raise ValueError(f"none of {len(bad)} image(s) can be read; the first: {_reason(bad[0])}")


def _reason(bad: dict[str, str | None]) -> str:
    where = f" at {bad['window']}" if bad["window"] else ""
    return f"{bad['uri']}{where}: {bad['cause']}"


def _sorted_bad(assembly: Assembly) -> list[dict[str, str | None]]:
    return sorted(assembly.quarantine, key=lambda bad: str(bad["image_id"]))
