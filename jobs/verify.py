"""Is a stored dataset what was published? Every checksum, every count, every file, the digest.

Run      farreach verify DATASET [--repair]
Reads    all of the dataset, local or s3://, once
Prints   a line for everything that is wrong, with the image that it damages
Writes   with --repair: new shards for the images that are damaged, from their sources, and tables
         that name them; the digest stays, or nothing is replaced
Exits    0 when the dataset is intact or was repaired, 1 when it is not
Needs    one core, and memory for the images table

Example  farreach verify dataset
"""

from dataclasses import dataclass, field

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jobs.cluster import connect, require_lasting
from jobs.errors import MachineFault
from pipeline.config import LimitsConfig
from pipeline.dataset import Dataset, open_dataset
from pipeline.flow import on_ray
from pipeline.repair import repair
from pipeline.schema import INFO
from pipeline.storage import Location
from pipeline.verify import Problem, verify


@dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """Which dataset."""

    dataset: str
    """A folder or s3://bucket/prefix."""
    repair: bool = False
    """Store damaged images again, from the sources that the dataset names."""
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    """What a source may declare, as for preprocess."""


def main(config: VerifyConfig) -> None:
    """Check everything; MachineFault when something is wrong."""
    console = Console(soft_wrap=True, highlight=False)
    dataset = _opened(config.dataset)
    problems = _verified(dataset, console)
    if problems:
        for problem in problems:
            console.print(escape(problem.line))
        damaged = {problem.image_id for problem in problems if problem.image_id is not None}
        if not config.repair:
            hint = "; --repair stores them again from their sources" if damaged else ""
            raise MachineFault(
                f"{dataset.place} is not intact: {len(problems)} problem(s), "
                f"{len(damaged)} of {dataset.info.images} image(s) damaged{hint}"
            )
        require_lasting(dataset=config.dataset)
        try:
            _repaired(dataset, damaged, limits=config.limits, console=console)
        except (ValueError, FileNotFoundError) as error:
            raise MachineFault(f"not repaired: {error}") from error
        dataset = _opened(config.dataset)
        left = _verified(dataset, console)
        if left:
            raise MachineFault(f"after the repair: {left[0].line}")
    info = dataset.info
    console.print(
        f"{escape(str(dataset.place))} is intact: {info.images} image(s), {info.groups} group(s), "
        f"{info.digest}"
    )


def _repaired(
    dataset: Dataset, damaged: set[str], *, limits: LimitsConfig, console: Console
) -> None:
    with connect(), _bar(console) as bar:
        task = bar.add_task("storing groups again", total=None)
        repair(
            dataset,
            damaged,
            limits=limits,
            run_stage=on_ray,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    console.print(f"stored {len(damaged)} image(s) again")


def _opened(uri: str) -> Dataset:
    """A dataset whose own description is damaged is damaged, and no mistake of the user's."""
    if not Location.of(uri).child(INFO).exists():
        return open_dataset(uri)
    try:
        return open_dataset(uri)
    except (ValueError, FileNotFoundError) as error:
        raise MachineFault(str(error)) from error


def _bar(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, TimeRemainingColumn(), console=console, transient=True)


def _verified(dataset: Dataset, console: Console) -> list[Problem]:
    with _bar(console) as bar:
        task = bar.add_task("checking groups", total=None)
        return verify(
            dataset, progress=lambda done, total: bar.update(task, completed=done, total=total)
        )


if __name__ == "__main__":
    from jobs.cli import run_entry

    run_entry(VerifyConfig, main, "verify")
