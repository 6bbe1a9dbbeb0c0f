"""How fast an epoch of patch groups can be read, beside other ways to read the same groups.

Run      farreach bench ingest [key=value ...]
Writes   `output`/ingest.png    GB/s of everybody
         `output`/ingest.txt    the tables that are printed
         `output`/ingest.json   all of it, with the settings and the machine; written last
         `cache`                patch groups, their copies, the others' environment; kept
Takes    12 minutes with scenes.images=3 s3_images=3 rounds=2 on 2 busy CPU cores, the first time
         longer; about 15 GB of disk as it is
Needs    Linux; moto for S3, pip and a package index for the others; `output` must not exist yet
Example  farreach bench ingest places=[warm] systems='[raw bytes, farreach, ray data]'

Noise is stored by `farreach preprocess`; the same groups with their addresses and checksums are
written in every other system's own format, uncompressed. Each reads an epoch with as many workers,
shuffled its own way, in a process of its own, whose main thread touches every byte that arrives
(a sum of 64-bit words). All must deliver the same groups. Rounds are interleaved and shuffled.

    warm   files are in the page cache, workers have started: the second epoch of two
    cold   the page cache has been emptied of these files; the start of workers counts
    s3     from an S3 endpoint (moto) on loopback with empty local caches; the start counts
"""

import random
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.progress import track

from fit_model import checks
from jobs.bench_results import publish
from jobs.errors import MachineFault
from jobs.ingest_child import Task
from jobs.ingest_data import ScenesConfig
from jobs.ingest_epochs import Source, Timed, differs
from jobs.ingest_picture import picture
from jobs.ingest_processes import in_process
from jobs.ingest_report import Point, Report, as_json, show
from jobs.ingest_s3 import MISSING, endpoint, environment, is_installed
from jobs.ingest_stage import Staged, in_bucket, interpreters, staged
from jobs.ingest_systems import SYSTEMS
from jobs.operator_costs import LeftOut
from jobs.settings import to_dict
from jobs.whole_folder import require_new
from pipeline.storage import Location

PLACES = ("warm", "cold", "s3")


@dataclass(frozen=True, kw_only=True)
class IngestBench:
    """Who reads what, from where, and how often."""

    output: str = "ingest"
    cache: str = "ingest-cache"
    """A local folder."""
    systems: tuple[str, ...] = tuple(SYSTEMS)
    places: tuple[str, ...] = PLACES
    scenes: ScenesConfig = field(default_factory=ScenesConfig)
    s3_images: int = 4
    """Of these scenes, for `s3`: a test's endpoint is slower than a disk."""
    workers: int = 2
    """Threads or processes that read for one consumer."""
    batch_groups: int = 64
    range_groups: int = 64
    """Groups in one range of bytes, for who reads the shards: of one image and shard."""
    s3_range_groups: int = 512
    """The same for `s3`, where a range is a request."""
    rounds: int = 3
    limit_s: float = 600.0
    """A process that takes longer is stopped."""
    seed: int = 0
    """Of the order within a round."""

    def __post_init__(self) -> None:
        for name, known in (("systems", SYSTEMS), ("places", PLACES)):
            given = getattr(self, name)
            if not given or len(set(given)) < len(given):
                raise ValueError(f"{name} is {list(given)}: give at least one, and each once")
            for each in given:
                checks.one_of(tuple(known), **{name: each})
        counts = ("s3_images", "workers", "batch_groups", "range_groups", "s3_range_groups")
        checks.positive(rounds=self.rounds, **{name: getattr(self, name) for name in counts})
        if not self.limit_s > 0.0:
            raise ValueError(f"limit_s is {self.limit_s:g}: it must be more than 0")
        if not Location.of(self.cache).is_local:
            raise ValueError(f"cache is {self.cache!r}: it must be a local folder")

    def in_words(self) -> str:
        """What all have in common."""
        return (
            f"{self.workers} workers and one consumer, batches of {self.batch_groups} groups, "
            f"{self.rounds} rounds"
        )

    def source(self, place: str, stage: Staged, system: str, url: str = "") -> Source:
        """What a system reads; its scratch is chosen later."""
        return Source(
            dataset=stage.dataset,
            copy=stage.copies.get(system, ""),
            scratch="",
            workers=self.workers,
            batch_groups=self.batch_groups,
            range_groups=self.s3_range_groups if place == "s3" else self.range_groups,
            endpoint=url,
        )


Measure = Callable[[Task], Timed | LeftOut]
Rounds = dict[str, list[Timed | LeftOut]]


def main(config: IngestBench) -> None:
    """Measure, print the tables and write them; MachineFault where other groups arrived."""
    output = Location.of(config.output)
    require_new(output, name="output")
    cache = Path(Location.of(config.cache).path)
    cache.mkdir(parents=True, exist_ok=True)
    pythons = interpreters(cache, config.systems)
    points = [point for place in config.places for point in measured(config, place, cache, pythons)]
    report = Report(points=points, setting=config.in_words())
    publish(
        output,
        "ingest",
        show=partial(show, report),
        picture=picture(report),
        values=as_json(report, settings=to_dict(config)),
    )
    wrong = [f"{each.system} ({each.place}: {each.left_out})" for each in points if each.wrong]
    if wrong:
        raise MachineFault(f"not the stored groups came from {', '.join(wrong)}")


def measured(
    config: IngestBench, place: str, cache: Path, pythons: dict[str, Path | LeftOut]
) -> list[Point]:
    """All systems in one place."""
    images = config.s3_images if place == "s3" else config.scenes.images
    scenes = replace(config.scenes, images=images)
    if place == "s3" and not is_installed():
        return [left_out(name, place, scenes, why=MISSING) for name in config.systems]
    stage = staged(
        cache, scenes, systems=config.systems, pythons=pythons, patience_s=config.limit_s
    )
    with ExitStack() as held:
        url = ""
        if place == "s3":
            objects = held.enter_context(TemporaryDirectory(dir=cache, prefix="s3-"))
            url = held.enter_context(endpoint(Path(objects)))
            stage = in_bucket(stage, url)
        tasks = {
            name: Task(system=name, action=place, source=config.source(place, stage, name, url))
            for name in config.systems
            if name not in stage.left_out
        }
        measure = partial(
            apart, config=config, cache=cache, pythons=pythons, variables=environment(url)
        )
        rounds = in_rounds(config, place, tasks, measure)
    return [
        point_of(name, place, scenes, stage, rounds[name])
        if name in rounds
        else left_out(name, place, scenes, why=stage.left_out[name])
        for name in config.systems
    ]


def in_rounds(config: IngestBench, place: str, tasks: dict[str, Task], measure: Measure) -> Rounds:
    """Every system once a round, in another order each time; who failed is not asked again."""
    order = random.Random(config.seed)  # noqa: S311 - no secret
    shuffled = [name for _ in range(config.rounds) for name in order.sample([*tasks], len(tasks))]
    rounds: Rounds = {name: [] for name in tasks}
    for name in track(shuffled, description=place, transient=True):
        if not any(isinstance(each, LeftOut) for each in rounds[name]):
            rounds[name].append(measure(tasks[name]))
    return rounds


def apart(
    task: Task,
    *,
    config: IngestBench,
    cache: Path,
    pythons: dict[str, Path | LeftOut],
    variables: Mapping[str, str],
) -> Timed | LeftOut:
    """An epoch in a process of its own, with a scratch folder of its own."""
    python = pythons.get(task.system)
    with TemporaryDirectory(dir=cache, prefix="scratch-") as scratch:
        found = in_process(
            replace(task, source=replace(task.source, scratch=scratch)),
            patience_s=config.limit_s,
            python=python if isinstance(python, Path) else None,
            environment=variables,
        )
    return LeftOut(why="no answer") if found is None else found


def point_of(
    system: str, place: str, scenes: ScenesConfig, stage: Staged, rounds: list[Timed | LeftOut]
) -> Point:
    """What was found of a system; one that failed or was wrong in any round is left out."""
    failed = next((each.why for each in rounds if isinstance(each, LeftOut)), "")
    timed = [each for each in rounds if isinstance(each, Timed)]
    wrong = next((said for each in timed if (said := differs(each, stage.stored))), "")
    if failed or wrong:
        return left_out(system, place, scenes, why=failed or wrong, wrong=not failed)
    return Point(
        system=system,
        place=place,
        megapixels=scenes.megapixels,
        num_bytes=int(stage.stored["num_bytes"]),
        seconds=tuple(each.seconds for each in timed),
    )


def left_out(
    system: str, place: str, scenes: ScenesConfig, *, why: str, wrong: bool = False
) -> Point:
    """A point without figures."""
    return Point(
        system=system, place=place, megapixels=scenes.megapixels, left_out=why, wrong=wrong
    )
