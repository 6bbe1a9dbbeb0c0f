"""Is a stored dataset what was published? Every checksum, every count, every file, the digest.

Run      farreach verify DATASET
Reads    all of the dataset, local or s3://, once
Prints   a line for everything that is wrong, with the image that it damages
Exits    0 when the dataset is intact, 1 when it is not
Needs    one core, and memory for the images table

Example  farreach verify dataset
"""

from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jobs.errors import MachineFault
from pipeline.dataset import Dataset, open_dataset
from pipeline.schema import INFO
from pipeline.storage import Location
from pipeline.verify import Problem, verify


@dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """Which dataset."""

    dataset: str
    """A folder or s3://bucket/prefix."""


def main(config: VerifyConfig) -> None:
    """Check everything; MachineFault when something is wrong."""
    console = Console(soft_wrap=True, highlight=False)
    dataset = _opened(config.dataset)
    problems = _verified(dataset, console)
    if problems:
        for problem in problems:
            console.print(escape(problem.line))
        damaged = {problem.image_id for problem in problems} - {None}
        raise MachineFault(
            f"{dataset.place} is not intact: {len(problems)} problem(s), "
            f"{len(damaged)} of {dataset.info.images} image(s) damaged"
        )
    info = dataset.info
    console.print(
        f"{escape(str(dataset.place))} is intact: {info.images} image(s), {info.groups} group(s), "
        f"{info.digest}"
    )


def _opened(uri: str) -> Dataset:
    """A dataset whose own description is damaged is damaged, and no mistake of the user's."""
    if not Location.of(uri).child(INFO).exists():
        return open_dataset(uri)
    try:
        return open_dataset(uri)
    except (ValueError, FileNotFoundError) as error:
        raise MachineFault(str(error)) from error


def _verified(dataset: Dataset, console: Console) -> list[Problem]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task("checking groups", total=None)
        return verify(
            dataset, progress=lambda done, total: bar.update(task, completed=done, total=total)
        )


if __name__ == "__main__":
    from jobs.cli import run_entry

    run_entry(VerifyConfig, main, "verify")
