"""The whole flow on one page: images -> headers -> shards of patch groups -> a dataset.

Ray Data runs the two stages that touch the user's files; everything else is small tables in the
driver. Any other runner that maps a stage over slices of a table gives the same dataset.
"""

import logging
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import pyarrow as pa
import ray.data

from pipeline.assemble import Assembly
from pipeline.config import PreprocessConfig
from pipeline.labels import read_labels
from pipeline.output import check_output, claim
from pipeline.plan import plan_shards, probe_images, store_tasks
from pipeline.publish import PreprocessReport, publish
from pipeline.quarantine import check_damage
from pipeline.sources import find_images
from pipeline.store import store_shards

__all__ = ["PreprocessReport", "on_ray", "preprocess"]

Stage = Callable[[pa.Table], pa.Table]
StageRunner = Callable[[Stage, list[pa.Table]], Iterator[pa.Table]]
"""(stage, one table a task) -> the stage's tables, in any order."""
PROBED_TOGETHER = 16
"""Images a task: reading a header takes less time than starting a task."""


def on_ray(stage: Stage, tasks: list[pa.Table]) -> Iterator[pa.Table]:
    """Map a stage over tables, one and one CPU a task; what it gives comes as tasks finish."""
    with warnings.catch_warnings():
        # Ray's settings warn of each other when they are first made.
        warnings.simplefilter("ignore", DeprecationWarning)
        context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    done = ray.data.from_arrow(tasks).map_batches(
        stage, batch_size=None, batch_format="pyarrow", num_cpus=1
    )
    yield from done.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)


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
        config.labels,
        images=found.images["image_id"].to_pylist(),
        splits=config.splits,
        class_labels=config.class_labels,
    )

    probe = partial(probe_images, grouping=config.grouping, limits=config.limits)
    tasks = [
        found.images.slice(start, PROBED_TOGETHER)
        for start in range(0, found.images.num_rows, PROBED_TOGETHER)
    ]
    probed = pa.concat_tables(_without_fault(run_stage(probe, tasks)))
    assembly = Assembly(probed, config=config)
    _check_probed(probed, assembly, config=config)

    with claim(place) as claimed:
        shards = plan_shards(
            probed,
            side_px=config.grouping.group_side_px,
            shard_mb=config.shard_mb,
            writer=claimed.writer,
        )
        store = partial(
            store_shards,
            output=str(place),
            grouping=config.grouping,
            background=config.background,
            limits=config.limits,
            on_error=config.on_error,
        )
        for stored in _without_fault(run_stage(store, store_tasks(shards))):
            for piece in stored.to_pylist():
                assembly.add(piece)
            if progress:
                progress(assembly.num_done, assembly.num_groups)
            check_damage(assembly, config=config)
        digest = publish(claimed, assembly, labels=labels, config=config)

    return PreprocessReport.of(
        assembly,
        output=str(place),
        digest=digest,
        seconds=time.monotonic() - began,
        ignored_files=found.ignored_files,
    )


def _without_fault(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The same tables, up to the first fault of the machine or a store: that ends the job."""
    for table in tables:
        for fault in table["fault"].drop_null().to_pylist():
            raise OSError(fault)
        yield table


def _check_probed(probed: pa.Table, assembly: Assembly, *, config: PreprocessConfig) -> None:
    """What the headers alone already forbid."""
    check_damage(assembly, config=config)
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
