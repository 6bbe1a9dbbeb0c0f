"""An engine under guard: steps that are refused, and the way back when there are many of them."""

import gc
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
import torch.distributed as dist

from jobs.events import Event
from jobs.gate import Gate
from jobs.guard import Guard, GuardConfig, RollBack, Skip
from jobs.lessons import read_lessons
from jobs.notes import from_first
from jobs.offender_record import SKIPPED
from jobs.offenders import LineUp, number, told


class Restore(Protocol):
    """Brings a new engine to the newest good checkpoint at or before a step."""

    def __call__(self, engine: Any, *, at_most: int | None) -> Any:
        """How far it has come: `step` and `guard`."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a step."""

    skip: Skip | None = None
    """None where it was taken."""
    figures: dict[str, float]
    """For the record."""
    events: tuple[Event, ...] = ()


class Guarded:
    """One worker's engine; all workers call the same methods.

    Args:
        config: when steps are refused.
        folder: of the run, which keeps what was learned.
        build: a new engine with the initial weights.
        restore: brings it to a checkpoint.
        device: where the workers talk.
        tell: takes what happened; only called on the first worker.
    """

    def __init__(
        self,
        config: GuardConfig,
        *,
        folder: str,
        build: Callable[[], Any],
        restore: Restore,
        device: torch.device,
        tell: Callable[[Event], None],
    ) -> None:
        self.config = config
        self.folder = folder
        self.device = device
        self._build = build
        self._restore = restore
        self._tell = tell
        self.engine: Any = None
        self.gate: Any = None

    def begin(self, *, at_most: int | None = None) -> Any:
        """Start from the newest checkpoint, or the initial weights; gives how far that has come.

        A kill may have come between a rollback and the first checkpoint after it.
        """
        self._drop()
        self.engine = self._build()
        progress = self._restore(self.engine, at_most=at_most)
        self.guard = Guard(self.config, state=progress.guard)
        first = dist.get_rank() == 0
        around = from_first(read_lessons(self.folder).around if first else (), device=self.device)
        if len(around) > len(self.guard.around):
            if progress.step > around[-1][0]:
                return self.begin(at_most=around[-1][0])
            self.guard.around = tuple(range(*each) for each in around)
        self.gate = Gate(self.engine)
        return progress

    def step(self, step: int, *, loss: float, line_up: LineUp, ids: list[str]) -> Outcome:
        """The engine's step after the last micro-step, unless it is refused.

        Args:
            step: its number, from 0.
            loss: this worker's part of it.
            line_up: this worker's images.
            ids: of all images, by number.
        """
        whole = self._summed(loss)
        self.gate.step(lambda norm: not self.guard.judge(loss=whole(), norm=norm))
        guard = self.guard
        if not guard.reason:
            return Outcome(figures={})
        offenders = line_up.offenders(ids, device=self.device)
        images = ", ".join(repr(each.id) for each in offenders)
        event = Event(
            kind=SKIPPED,
            step=step + 1,
            text=f"step skipped: {guard.reason} (images {images})",
            facts={
                "reason": guard.reason,
                "loss": number(guard.loss),
                "grad_norm": number(guard.norm),
                "images": told(offenders),
            },
        )
        return Outcome(
            skip=Skip(step=step, reason=guard.reason, images=tuple(each.id for each in offenders)),
            # MLflow takes nan, and would make a number of inf
            figures={
                "loss": guard.loss if math.isfinite(guard.loss) else math.nan,
                "grad_norm": guard.norm if math.isfinite(guard.norm) else math.nan,
                "guard/skipped": 1.0,
            },
            events=(event,),
        )

    def roll_back(self, back: RollBack) -> Any:
        """Begin again before the steps that are gone around from now on; gives how far that is."""
        if dist.get_rank() == 0:
            around = (*self.guard.around, back.around)
            lessons = read_lessons(self.folder)
            replace(lessons, around=tuple((each.start, each.stop) for each in around)).write(
                self.folder
            )
        progress = self.begin(at_most=back.around.start)
        if dist.get_rank() == 0:
            first, last = back.around.start + 1, back.around.stop
            self._tell(
                Event(
                    kind="rolled back",
                    step=last,
                    text=f"rolled back: {back}; going on from step {progress.step}, around the "
                    f"batches of steps {first} to {last}",
                    facts={"to": progress.step, "first": first, "last": last},
                )
            )
        return progress

    def _summed(self, part: float) -> Callable[[], float]:
        """Begin to sum over all workers while the engine finds the norm; a call waits for it."""
        there = torch.tensor(part, dtype=torch.float64, device=self.device)
        sent = dist.all_reduce(there, async_op=True)
        if there.is_cuda:
            # holds up no thread, and NCCL wants one group's work in order before another group's
            sent.wait()

        def wait() -> float:
            sent.wait()
            return float(there)

        return wait

    def _drop(self) -> None:
        """The engine goes before another one is built: two may not fit."""
        if self.engine is not None:
            self.engine.destroy()
            self.engine = self.gate = None
            gc.collect()
