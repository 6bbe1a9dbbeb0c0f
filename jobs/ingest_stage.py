"""What `farreach bench ingest` reads: patch groups and their copies, made once and kept."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from jobs.ingest_child import Task
from jobs.ingest_data import ScenesConfig, write_scenes
from jobs.ingest_environment import python_of_others
from jobs.ingest_epochs import Delivery, Source, Tally
from jobs.ingest_processes import in_process
from jobs.ingest_s3 import upload
from jobs.ingest_samples import samples
from jobs.ingest_systems import SYSTEMS
from jobs.operator_costs import LeftOut
from pipeline.dataset import open_dataset

DRAFT = ".draft"


@dataclass(frozen=True, kw_only=True)
class Staged:
    """Where every system finds the same groups."""

    dataset: str
    copies: dict[str, str]
    """System -> its copy; nothing for those that read the dataset."""
    left_out: dict[str, str]
    """System -> why it cannot be measured."""
    stored: dict[str, int | str]
    """The tally of all groups, which every epoch must give."""


def interpreters(folder: Path, systems: tuple[str, ...]) -> dict[str, Path | LeftOut]:
    """System -> the interpreter it needs; nothing for those that run in this one."""
    guests = [name for name in systems if SYSTEMS[name].guest]
    return dict.fromkeys(guests, python_of_others(folder)) if guests else {}


def staged(
    folder: Path,
    scenes: ScenesConfig,
    *,
    systems: tuple[str, ...],
    pythons: dict[str, Path | LeftOut],
    patience_s: float,
) -> Staged:
    """The groups below `folder`, in the formats that these systems need.

    Args:
        folder: what lies in it already is taken as it is.
        scenes: what there is to read.
        systems: names of SYSTEMS.
        pythons: what `interpreters` gave.
        patience_s: for writing one copy.
    """
    place = folder / str(scenes)
    place.mkdir(parents=True, exist_ok=True)
    dataset = str(once(place / "dataset", partial(write_scenes, scenes)))
    copies: dict[str, str] = {}
    left_out: dict[str, str] = {}
    for name in systems:
        python = pythons.get(name)
        if isinstance(python, LeftOut):
            left_out[name] = python.why
        elif SYSTEMS[name].copies:
            source = Source(dataset=dataset, copy="", scratch=str(place))
            task = Task(system=name, action="write", source=source)
            write = partial(write_copy, task, python=python, patience_s=patience_s)
            try:
                copies[name] = str(once(place / name.replace(" ", "-"), write))
            except CopyError as error:
                left_out[name] = f"its copy cannot be written: {error}"
    return Staged(dataset=dataset, copies=copies, left_out=left_out, stored=tally_of(dataset))


class CopyError(RuntimeError):
    """Why there is no copy."""


def once(final: Path, write: Callable[[Path], None]) -> Path:
    """A folder that is written whole, or was before."""
    if not final.exists():
        draft = final.with_name(DRAFT)
        shutil.rmtree(draft, ignore_errors=True)
        write(draft)
        draft.rename(final)
    return final


def write_copy(task: Task, draft: Path, *, python: Path | None, patience_s: float) -> None:
    """A copy; CopyError where its system does not manage."""
    task = replace(task, source=replace(task.source, copy=str(draft)))
    found = in_process(task, patience_s=patience_s, python=python)
    if isinstance(found, LeftOut):
        raise CopyError(found.why)


def tally_of(dataset: str) -> dict[str, int | str]:
    """Of a plain walk over the groups, in the order they are stored in."""
    tally = Tally()
    for sample in samples(open_dataset(dataset)):
        one = Delivery(
            images=[sample.image],
            groups=[sample.group],
            crc32s=[sample.crc32],
            pixels=sample.pixels[None],
        )
        tally.touch(one)
        tally.check(one)
    return tally.summary()


def in_bucket(local: Staged, url: str) -> Staged:
    """The same files in the bucket of an endpoint."""
    copies = {
        name: upload(Path(copy), Path(copy).name, url=url) for name, copy in local.copies.items()
    }
    return replace(local, dataset=upload(Path(local.dataset), "dataset", url=url), copies=copies)
