"""Cut huge images into patch groups and store them as Arrow.

Run      farreach preprocess CONFIG.yaml [key=value ...]
Submit   farreach submit preprocess CONFIG.yaml [key=value ...] --address http://HEAD:8265
Reads    `sources`: a folder, a list of files or a CSV/Parquet table with `uri` (GeoTIFF, COG,
         BigTIFF, JPEG 2000, PNG, JPEG, SVS, NDPI, MRXS ...; local or s3://); `labels`: a CSV or
         Parquet table with `image`, label columns and perhaps `split`
Writes   `output`/dataset.json, images-*.parquet, quarantine-*.parquet, shards/*.arrow
Needs    CPU cores only; each worker holds one core and well under 1 GB
Again    an unfinished output goes on with what is missing; a finished one is refused unless
         if_exists=replace, or if_exists=append, which stores the images that are not in it

Example  farreach preprocess sources=scans output=dataset grouping.group_side_px=512
"""

from collections.abc import Iterator
from contextlib import ExitStack

import pyarrow as pa
from rich.console import Console
from rich.markup import escape

from jobs.cluster import connect, require_lasting
from jobs.job_progress import JobProgress
from pipeline.config import PreprocessConfig
from pipeline.dataset import open_dataset
from pipeline.flow import PreprocessReport, Stage, on_ray, preprocess

__all__ = ["PreprocessConfig", "main"]

QUARANTINE_LINES = 5
READING = "reading headers"


def main(config: PreprocessConfig) -> PreprocessReport:
    """Make the dataset; its dataset.json is written last, or is missing."""
    require_lasting(output=config.output)
    console = Console(soft_wrap=True)
    with ExitStack() as held:
        shown = JobProgress(console, what=READING)

        def on_workers(stage: Stage, tasks: list[pa.Table]) -> Iterator[pa.Table]:
            # only now: mistakes in places and labels are told without waiting for Ray
            if not shown.is_shown:
                held.enter_context(connect())
                held.enter_context(shown)
            done, total = 0, sum(task.num_rows for task in tasks)
            for table in on_ray(stage, tasks):
                yield table
                done += table.num_rows
                if shown.what == READING:
                    shown.update(done, total)

        def stored(done: int, total: int) -> None:
            shown.what = "storing groups"
            shown.update(done, total)

        report = preprocess(config, progress=stored, run_stage=on_workers)
    _say(report, console)
    return report


def _say(report: PreprocessReport, console: Console) -> None:
    """What was written, what was not, and what to type next."""
    speed = report.megapixels / report.seconds
    console.print(
        f"{report.images} image(s), {report.groups} group(s) stored, {report.left_out_groups} "
        f"left out as background; {report.megapixels:.1f} megapixels in {report.seconds:.1f} s "
        f"({speed:.1f} megapixels/s), at most {report.peak_worker_gb:.2f} GB a worker",
        highlight=False,
    )
    _say_what_was_there(report, console)
    if report.ignored_files:
        console.print(f"{len(report.ignored_files)} file(s) are no images and were passed over")
    for what, bad in {"image": report.quarantined, "group": report.bad_groups}.items():
        if bad:
            console.print(f"{len(bad)} {what}(s) in quarantine:")
        for uri, window, cause in bad[:QUARANTINE_LINES]:
            where = f" at {window}" if window else ""
            console.print(f"  {escape(uri)}{where}: {escape(cause)}", highlight=False)
        more = len(bad) - QUARANTINE_LINES
        if more > 0:
            console.print(f"  and {more} more, in {escape(report.output)}/quarantine*.parquet")
    splits = open_dataset(report.output).info.splits.items()
    console.print("splits: " + ", ".join(f"{name} {count}" for name, count in splits))
    console.print(f"wrote {escape(report.output)}  ({report.digest})", highlight=False)
    console.print(
        f"next: farreach train CONFIG.yaml dataset={escape(report.output)}", highlight=False
    )


def _say_what_was_there(report: PreprocessReport, console: Console) -> None:
    if report.resumed_groups:
        console.print(f"went on with a job that had done {report.resumed_groups} group(s)")
    if report.kept_images:
        added = report.images - report.kept_images
        console.print(f"added {added} image(s) to {report.kept_images}")
    if report.vanished:
        named = ", ".join(report.vanished[:QUARANTINE_LINES])
        rest = ", ..." if len(report.vanished) > QUARANTINE_LINES else ""
        console.print(
            f"{len(report.vanished)} image(s) stay though the sources have them no more: "
            f"{escape(named)}{rest}"
        )


if __name__ == "__main__":
    from jobs.cli import run_entry

    run_entry(PreprocessConfig, main, "preprocess")
