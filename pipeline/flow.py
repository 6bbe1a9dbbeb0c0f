"""The whole flow on one page: images -> headers -> shards of patch groups -> a dataset.

Ray Data runs the two stages that touch the user's files; everything else is small tables in the
driver. Any other runner that maps a stage over slices of a table gives the same dataset.
"""

import logging
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc
import ray.data
from ray.data.read_api import from_blocks

from pipeline.append import kept_images
from pipeline.assemble import Assembly, Kept
from pipeline.config import PreprocessConfig
from pipeline.content_settings import settings_of
from pipeline.labels import read_labels
from pipeline.masks import with_masks
from pipeline.output import Claim, claim, look_at_output
from pipeline.plan import ShardNames, plan_shards, probe_and_note, store_tasks
from pipeline.process_memory import keep_freed_blocks
from pipeline.publish import PreprocessReport, publish
from pipeline.quarantine import check_damage
from pipeline.resuming import probed_before, stored_before
from pipeline.sources import find_images
from pipeline.storage import Location
from pipeline.store import store_shards

__all__ = ["PreprocessReport", "on_ray", "preprocess", "store_images"]

Stage = Callable[[pa.Table], pa.Table]
StageRunner = Callable[[Stage, list[pa.Table]], Iterator[pa.Table]]
"""(stage, one table a task) -> the stage's tables, in any order."""
PROBED_TOGETHER = 16
"""Images a task, or more: reading a header takes less time than starting a task."""
PROBE_TASKS = 4096
"""Each leaves an entry in the journal, which a job that goes on must read."""
ROWS_TOGETHER = 4
"""Shards a task, or fewer: it takes Ray 10 ms to have a worker begin the next one."""


def on_ray(stage: Stage, tasks: list[pa.Table]) -> Iterator[pa.Table]:
    """Map a stage over tables, one CPU a task; what it gives comes as tasks finish.

    The stage gets several tables in one where there are many of few rows.
    """
    with warnings.catch_warnings():
        # Ray's settings warn of each other when they are first made.
        warnings.simplefilter("ignore", DeprecationWarning)
        context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    num_cpus = max(1, int(ray.cluster_resources().get("CPU", 1)))
    # Not from_arrow: that starts a task a table, to count its rows.
    done = from_blocks(together(tasks, num_cpus=num_cpus)).map_batches(
        partial(_on_worker, stage), batch_size=None, batch_format="pyarrow", num_cpus=1
    )
    # Ray would hold tasks back for a consumer that is slow: what they give is small, and of two
    # cores one would have nothing to do.
    done.context.set_config("backpressure_policies.enabled", [])
    yield from done.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)


def _on_worker(stage: Stage, task: pa.Table) -> pa.Table:
    """A stage in a process of Ray's, which lives longer than its task."""
    keep_freed_blocks()
    return stage(task)


def together(tasks: list[pa.Table], *, num_cpus: int) -> list[pa.Table]:
    """The same rows in the same order in fewer tables, of up to ROWS_TOGETHER rows where joined.

    Each takes its share of two thirds of what is left, so all CPUs end at about the same time:
    factoring, Hummel, Schonberg, Flynn 1992.
    """
    joined, start = [], 0
    while start < len(tasks):
        most = min(ROWS_TOGETHER, (len(tasks) - start) * 2 // (3 * num_cpus))
        end, num_rows = start + 1, tasks[start].num_rows
        while end < len(tasks) and num_rows + tasks[end].num_rows <= most:
            num_rows += tasks[end].num_rows
            end += 1
        joined.append(pa.concat_tables(tasks[start:end]).combine_chunks())
        start = end
    return joined


def preprocess(
    config: PreprocessConfig,
    *,
    progress: Callable[[int, int], None] | None = None,
    run_stage: StageRunner = on_ray,
) -> PreprocessReport:
    """Make the dataset that `config` describes; `progress` hears (groups done, groups in all).

    Killed and begun again with the same settings, it goes on with what is missing.
    """
    began = time.monotonic()
    config = _with_place_of_masks(config)
    settings = settings_of(config)
    start = look_at_output(config.output, settings=settings, if_exists=config.if_exists)
    found = find_images(config.sources)
    images = with_masks(found.images, background=config.background)
    kept = kept_images(start, images, config=config)
    labels = read_labels(
        config.labels,
        images=sorted([*images["image_id"].to_pylist(), *kept.vanished]),
        splits=config.splits,
        class_labels=config.class_labels,
    )
    with claim(start) as claimed:
        assembly = store_images(
            claimed,
            _without(images, kept),
            kept=kept,
            config=config,
            progress=progress,
            run_stage=run_stage,
        )
        digest = publish(claimed, assembly, labels=labels, config=config)
    return PreprocessReport.of(
        assembly,
        output=str(start.place),
        digest=digest,
        seconds=time.monotonic() - began,
        ignored_files=found.ignored_files,
        resumed_groups=assembly.num_resumed,
    )


def store_images(
    claimed: Claim,
    images: pa.Table,
    *,
    kept: Kept,
    config: PreprocessConfig,
    progress: Callable[[int, int], None] | None,
    run_stage: StageRunner,
) -> Assembly:
    """Store what this job has not stored yet of `images`; the output shows none of it so far."""
    probed = _probe(claimed, images, config=config, run_stage=run_stage)
    assembly = Assembly(probed, config=config, kept=kept)
    _check_glass(probed, config=config)
    names = ShardNames(job=claimed.job, settings=settings_of(config))
    before = stored_before(claimed, probed, names=names, config=config)
    for piece in before:
        assembly.add(piece)
    assembly.num_resumed = assembly.num_done
    check_damage(assembly, config=config)
    shards = plan_shards(
        probed,
        side_px=config.grouping.group_side_px,
        shard_mb=config.shard_mb,
        names=names,
        stored={(piece["image_id"], piece["first_group"]) for piece in before},
    )
    if progress:
        progress(assembly.num_done, assembly.num_groups)
    for stored in _store(shards, config=config, run_stage=run_stage):
        for piece in stored.to_pylist():
            assembly.add(piece)
        if progress:
            progress(assembly.num_done, assembly.num_groups)
        if claimed.lease.lost:
            claimed.check()
        check_damage(assembly, config=config)
    return assembly


def _with_place_of_masks(config: PreprocessConfig) -> PreprocessConfig:
    """The same wherever a worker, or a later job, has its working folder."""
    if config.background.masks is None:
        return config
    masks = str(Location.of(config.background.masks))
    return replace(config, background=replace(config.background, masks=masks))


def _without(images: pa.Table, kept: Kept) -> pa.Table:
    """The images that have to be stored."""
    there = pa.array([row["image_id"] for row in kept.rows], pa.string())
    return images.filter(pc.invert(pc.is_in(images["image_id"], there)))


def _probe(
    claimed: Claim, images: pa.Table, *, config: PreprocessConfig, run_stage: StageRunner
) -> pa.Table:
    """PROBED of all images; the headers that this job had read before are not read again."""
    before = probed_before(claimed, images, limits=config.limits)
    missing = images.filter(pc.invert(pc.is_in(images["image_id"], before["image_id"])))
    probe = partial(
        probe_and_note,
        output=str(claimed.place),
        job=claimed.job,
        grouping=config.grouping,
        limits=config.limits,
        background=config.background,
    )
    together = max(PROBED_TOGETHER, missing.num_rows // PROBE_TASKS)
    tasks = [missing.slice(start, together) for start in range(0, missing.num_rows, together)]
    done = _without_fault(run_stage(probe, tasks)) if tasks else ()
    return pa.concat_tables([before, *done])


def _store(
    shards: pa.Table, *, config: PreprocessConfig, run_stage: StageRunner
) -> Iterator[pa.Table]:
    """STORED of every shard, as tasks finish."""
    store = partial(
        store_shards,
        output=str(Location.of(config.output)),
        grouping=config.grouping,
        background=config.background,
        limits=config.limits,
        on_error=config.on_error,
    )
    if shards.num_rows:
        yield from _without_fault(run_stage(store, store_tasks(shards)))


def _without_fault(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The same tables, up to the first fault of the machine or a store: that ends the job."""
    for table in tables:
        for fault in table["fault"].drop_null().to_pylist():
            raise OSError(fault)
        yield table


def _check_glass(probed: pa.Table, *, config: PreprocessConfig) -> None:
    """ValueError for an image in which no glass can be told."""
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
