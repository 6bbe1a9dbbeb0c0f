"""What a worker's loop hands over, whatever ends it: the loop alone, without Ray or an engine."""

from contextlib import nullcontext
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from jobs.errors import MachineFault
from jobs.events import Event
from jobs.guard import Diverged
from jobs.inbox import StepRecord
from jobs.smaller_chunks import OutOfMemory
from jobs.worker import Loop


@dataclass
class Put:
    """As much of the driver's inbox as records need."""

    records: list[StepRecord] = field(default_factory=list)

    def remote(self, records: list[StepRecord]) -> None:
        self.records += records


class Bare(Loop):
    """A loop whose next step is measured and then ends it."""

    def __init__(self, inbox: Any, error: Exception) -> None:
        self.rank = 0
        self.task = SimpleNamespace(inbox=inbox)
        self.error = error
        self.unsent = []

    def steps(self) -> str:
        skipped = Event(kind="step skipped", step=8, text="")
        self.unsent = [StepRecord(step=8, metrics={"loss": 1.0}, events=[skipped])]
        raise self.error


@pytest.mark.parametrize(
    "error", [Diverged("no use"), MachineFault("gone"), OutOfMemory("too large", step=8)]
)
def test_the_steps_before_a_training_gives_up_are_on_record(error, monkeypatch):
    monkeypatch.setattr("jobs.worker.ray.get", lambda answer: answer)
    put = Put()
    inbox = SimpleNamespace(put=put)
    with pytest.raises(type(error)):
        Bare(inbox, error).run()
    assert [each.step for each in put.records] == [8]
    assert [each.kind for each in put.records[0].events] == ["step skipped"]


class Asked(Loop):
    """A loop that is asked to leave after its third step; says what it saves."""

    def __init__(self, *, checkpoint_every_steps: int) -> None:
        record = SimpleNamespace(log_every_steps=5, checkpoint_every_steps=checkpoint_every_steps)
        self.task = SimpleNamespace(record=record, total_steps=9)
        self.heart = SimpleNamespace(finished=lambda step: None, leaves=self.leaves)
        self.checkpoints = SimpleNamespace(settle=lambda: None)
        self.profiler = SimpleNamespace(around=lambda step: nullcontext())
        self.validator = self.device = None
        self.finished_steps = 0
        self.made: list[int] = []
        self.saved: list[tuple[int, bool]] = []
        self.flushed: list[int] = []

    def leaves(self, device: Any) -> str:
        return "preempted" if len(self.made) == 3 else ""

    def batches(self) -> Any:
        return iter(())

    def step(self, step: int, batches: Any) -> None:
        self.made.append(step)

    def flush(self) -> None:
        self.flushed.append(len(self.made))

    def save(self, done: int, *, wait: bool) -> None:
        self.saved.append((done, wait))


@pytest.mark.parametrize(("every", "saved"), [(3, [(3, True)]), (2, [(2, False), (3, True)])])
def test_who_leaves_writes_one_checkpoint_and_waits_for_it(every, saved):
    loop = Asked(checkpoint_every_steps=every)
    assert loop.run() == "preempted"
    assert loop.saved == saved
    assert loop.flushed[-1] == len(loop.made) == 3


def test_want_of_memory_in_a_validation_is_met_with_smaller_chunks_too():
    class Greedy:
        def due(self, step: int) -> bool:
            return True

        def __call__(self, engine: Any, *, step: int) -> Any:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    loop = Asked(checkpoint_every_steps=9)
    loop.rank, loop.validator, loop.guarded = 0, Greedy(), SimpleNamespace(engine=None)
    with pytest.raises(OutOfMemory, match="ran out of memory in step 4"):
        loop.validate(4)
