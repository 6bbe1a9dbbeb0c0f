"""The artifacts of a skipped step: its images, their pixels that stand out, and a look at them.

offenders/step-0000123.json     {step, reason, loss, grad_norm, images: [{id, loss, groups}]}
offenders/step-0000123.png      the images, these groups outlined
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Protocol

import numpy as np
from rich.console import Console

from jobs.events import Event
from jobs.thumbnails import sheet_of
from pipeline.dataset import DamagedError, Dataset
from pipeline.records import ImageRecord
from pipeline.schema import PixelFormat
from pipeline.verify import READ_BYTES

SKIPPED = "step skipped"
EXTREME_DEVIATIONS = 30.0
"""From the mean of a band: a group that holds such a value is named."""
MOST_STEPS = 50
"""That are looked into, for it takes reading whole images; the events name the images of all."""
SIDE_PX = 320


class Artifacts(Protocol):
    """Takes the artifacts of a run."""

    def log_json(self, value: Any, file: str) -> None:
        """A JSON-able value."""

    def log_figure(self, figure: Any, file: str) -> None:
        """A picture."""


class OffenderRecord:
    """Writes the artifacts of skipped steps beside everything else; use as a context manager.

    Args:
        dataset: where the images lie.
        split: what of it is trained on.
        run: takes the artifacts.
        console: is told of those that could not be made.
    """

    def __init__(self, dataset: Dataset, *, split: str, run: Artifacts, console: Console) -> None:
        self._dataset = dataset
        self._split = split
        self._run = run
        self._console = console
        self._steps = 0
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="offenders")

    def __enter__(self) -> "OffenderRecord":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        # who stops a training does not wait; one that gives up refers to these artifacts
        stopped = kind is not None and not issubclass(kind, Exception)
        self._writer.shutdown(cancel_futures=stopped)

    def __call__(self, event: Event) -> None:
        """Take an event; returns at once."""
        if event.kind == SKIPPED and self._steps < MOST_STEPS:
            self._steps += 1
            self._writer.submit(self._attempt, event)

    def _attempt(self, event: Event) -> None:
        try:
            self.write(event)
        except Exception as error:
            # training goes on, and the event is on record
            self._console.print(f"step {event.step}: no picture of its images: {error}")

    def write(self, event: Event) -> None:
        """The artifacts of one skipped step."""
        losses = {each["id"]: each["loss"] for each in event.facts["images"]}
        images = {each.image_id: each for each in self._dataset.images(self._split)}
        records = [images[name] for name in losses]
        groups = {each.image_id: extreme_groups(self._dataset, each) for each in records}
        name = f"offenders/step-{event.step:07d}"
        facts = {key: value for key, value in event.facts.items() if key != "images"}
        told = [{"id": key, "loss": loss, "groups": groups[key]} for key, loss in losses.items()]
        self._run.log_json({"step": event.step, **facts, "images": told}, f"{name}.json")
        if records:
            sheet = sheet_of(
                self._dataset, records, most=len(records), side_px=SIDE_PX, outlined=groups
            )
            self._run.log_figure(sheet, f"{name}.png")


def extreme_groups(dataset: Dataset, record: ImageRecord) -> list[int]:
    """Groups of an image with a value that is not finite, or far from all others of its band.

    Cost: every stored group is read once, READ_BYTES at a time.
    """
    kept = next(
        each
        for each in dataset.info.formats
        if (each.bands, each.dtype) == (record.bands, record.dtype)
    )
    side = dataset.info.group_side_px
    item = np.dtype(record.dtype).itemsize * record.bands
    count = max(1, READ_BYTES // (side * side * item))
    found: list[int] = []
    for start in range(0, len(record.groups), count):
        run = slice(start, start + count)
        try:
            squares = dataset.read(record, groups=run, check=False).pixels
        except DamagedError:
            found += record.groups[run]
            continue
        found += _extreme(squares, record.groups[run], kept)
    return found


def _extreme(squares: Any, groups: Sequence[int], kept: PixelFormat) -> list[int]:
    mean, std = np.array(kept.band_mean), np.array(kept.band_std)
    found = []
    for group, square in zip(groups, squares, strict=True):
        apart = np.abs(np.asarray(square, np.float64) - mean)
        # what compares false is not finite
        if not (apart <= EXTREME_DEVIATIONS * np.maximum(std, np.finfo(np.float64).tiny)).all():
            found.append(group)
    return found
