"""Speed of preprocessing beside bare decoding, and the memory of its workers.

Run      farreach bench preprocess [key=value ...]
Writes   `output`/preprocess.png    megapixels a second, beside the ceiling
         `output`/preprocess.txt    the table that is printed
         `output`/preprocess.json   all of it, with the settings and the machine; written last
Takes    about 10 minutes on 2 quiet CPU cores, most of it to make the images
Needs    a CPU core a worker, 5 GB of disk; `output` must not exist yet
Example  farreach bench preprocess images='[[jpeg, 5000]]' rounds=1

The ceiling is a bare loop over the same windows with the same library, on as many processes, all
started beforehand and as nice as Ray's workers. Preprocessing is the real one, on Ray, from the
files to a dataset on the disk; its workers are started by a run before, which does not count.
Rounds take turns; a virtual machine may find the memory of new files slowly, so that the first of
them, in preprocess.json, are slower than the last. Each image has a Ray of its own, so the peak of
a worker's memory belongs to it alone.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from rich.progress import track

from fit_model import checks
from jobs.bare_decoding import decode_all
from jobs.bench_images import KINDS
from jobs.bench_results import publish
from jobs.cluster import connect
from jobs.preprocess_report import Point, Report, Round, as_json, picture, show
from jobs.settings import to_dict
from jobs.whole_folder import require_new
from pipeline.config import GroupingConfig, PreprocessConfig
from pipeline.flow import preprocess
from pipeline.storage import Location

RAY_NICENESS = 15
"""Of Ray's workers: with other work on the machine the bare loop must give way as they do."""


@dataclass(frozen=True, kw_only=True)
class PreprocessBench:
    """The images, and how they are cut."""

    output: str = "preprocess"
    images: tuple[tuple[str, int], ...] = (
        ("jpeg", 5_000),
        ("jpeg", 20_000),
        ("deflate", 5_000),
        ("deflate", 20_000),
        ("uint16", 5_000),
    )
    """Kind and side in px: "jpeg" is a BigTIFF of YCbCr tiles, "deflate" a COG, both RGB; "uint16"
    a deflate BigTIFF of 4 bands."""
    group_side_px: int = 512
    workers: int = 2
    rounds: int = 5
    """The median counts."""
    scratch: str | None = None
    """An existing folder for images and datasets, about 5 GB; None takes the system's."""

    def __post_init__(self) -> None:
        if not self.images or len(set(self.images)) < len(self.images):
            raise ValueError(f"images is {list(self.images)}: give at least one, and each once")
        for kind, side_px in self.images:
            checks.one_of(KINDS, images=kind)
            checks.positive(images=side_px)
        checks.positive(group_side_px=self.group_side_px, workers=self.workers, rounds=self.rounds)
        self.grouping()
        if self.scratch is not None and not Path(self.scratch).is_dir():
            raise ValueError(f"scratch {self.scratch} is no folder: make it, or leave it out")

    def grouping(self) -> GroupingConfig:
        """How images are cut; the patch does not matter here."""
        return GroupingConfig(group_side_px=self.group_side_px, patch_px=1)

    def in_words(self) -> str:
        """What all points have in common."""
        return f"groups of {self.group_side_px} px, {self.workers} workers of one thread"


Measure = Callable[[Path, PreprocessBench], tuple[list[Round], float]]


def main(config: PreprocessBench) -> None:
    """Make the images, measure, print the table and write it."""
    place = Location.of(config.output)
    require_new(place, name="output")
    report = measured(config, taking_turns)
    publish(
        place,
        "preprocess",
        show=partial(show, report),
        picture=picture(report),
        values=as_json(report, settings=to_dict(config)),
    )


def measured(config: PreprocessBench, measure: Measure) -> Report:
    """Image after image; only one of them is on the disk at a time."""
    points = []
    for kind, side_px in track(config.images, description="images", transient=True):
        with tempfile.TemporaryDirectory(prefix="farreach-", dir=config.scratch) as folder:
            path = Path(folder) / "image.tif"
            KINDS[kind](path, side_px)
            rounds, peak_gb = measure(path, config)
            size = path.stat().st_size
        points.append(
            Point(kind=kind, side_px=side_px, file_bytes=size, rounds=rounds, peak_gb=peak_gb)
        )
    return Report(points=points, setting=config.in_words())


def taking_turns(path: Path, config: PreprocessBench) -> tuple[list[Round], float]:
    """Both ways, `rounds` times, after one time that does not count; and the most memory a worker
    ever had, in GB.
    """
    rounds = []
    pool = get_context("spawn").Pool(config.workers, initializer=os.nice, initargs=(RAY_NICENESS,))
    with pool, connect(num_cpus=config.workers):
        for _ in range(1 + config.rounds):
            began = time.perf_counter()
            decode_all(str(path), group_side_px=config.group_side_px, rows_together=4, pool=pool)
            between = time.perf_counter()
            peak_gb = preprocessed(path, config)
            ended = time.perf_counter()
            rounds.append(Round(decode_s=between - began, preprocess_s=ended - between))
            shutil.rmtree(path.with_name("dataset"))
    return rounds[1:], peak_gb


def preprocessed(path: Path, config: PreprocessBench) -> float:
    """The real thing, and the most memory a worker ever had."""
    output = path.with_name("dataset")
    report = preprocess(
        PreprocessConfig(sources=[str(path)], output=str(output), grouping=config.grouping())
    )
    return report.peak_worker_gb
