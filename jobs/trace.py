"""What every step of a training really read and found, exactly: `trace.jsonl` in the run's folder.

    {"step": 7, "loss": "0x1.62e42fefa39efp-1", "images": ["a", "c"]}

A line a step, each step once however often the training is restarted: lines that an earlier driver
wrote are kept, and what it could not write any more comes back with the newest checkpoint.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from jobs.inbox import StepRecord
from pipeline.storage import Location

TRACE = "trace.jsonl"


@dataclass(frozen=True, kw_only=True)
class TracedStep:
    """One step."""

    step: int
    loss: float
    images: tuple[str, ...]
    """Ids of all images that all workers read, sorted; padding is not counted."""


def images_read(
    numbers: Sequence[int], ids: Sequence[str], *, sharing: int, device: torch.device
) -> list[str]:
    """Ids of the images that the workers read together in a step, sorted; every worker calls it.

    Args:
        numbers: of the images that this worker read.
        ids: of all images, by number.
        sharing: workers that report each image, because they hold it together.
        device: where the workers sum.
    """
    counts = torch.zeros(len(ids), dtype=torch.int32)
    for number in numbers:
        counts[number] += 1
    counts = counts.to(device)
    dist.all_reduce(counts)
    read = counts.nonzero().flatten().tolist()
    return sorted(ids[each] for each in read for _ in range(int(counts[each]) // sharing))


class Trace:
    """The file of one run, as its driver writes it; whole at any moment.

    Cost: the file is written anew every time, so it is for short trainings.
    """

    def __init__(self, folder: str) -> None:
        self.place = Location.of(folder).child(TRACE)
        self._lines = self.place.read_bytes().splitlines() if self.place.exists() else []
        self._last_step = _step(self._lines[-1]).step if self._lines else 0
        self._is_written = True

    def keep(self, records: Iterable[StepRecord]) -> None:
        """Write these steps, but for those that the file has; they come in their order."""
        for record in records:
            if record.step > self._last_step:
                self._lines.append(_line(record))
                self._last_step, self._is_written = record.step, False
        if not self._is_written:
            self.place.write_bytes(b"\n".join([*self._lines, b""]))
            self._is_written = True


def read_trace(folder: str) -> list[TracedStep]:
    """The steps in the file, in its order; none while there is no file."""
    place = Location.of(folder).child(TRACE)
    return [_step(line) for line in place.read_bytes().splitlines()] if place.exists() else []


def _line(record: StepRecord) -> bytes:
    told = {
        "step": record.step,
        "loss": float(record.metrics.get("loss", math.nan)).hex(),
        "images": sorted(record.images),
    }
    return json.dumps(told).encode()


def _step(line: bytes) -> TracedStep:
    found = json.loads(line)
    return TracedStep(
        step=found["step"], loss=float.fromhex(found["loss"]), images=tuple(found["images"])
    )
