"""What a worker's loop hands over, whatever ends it: the loop alone, without Ray or an engine."""

from dataclasses import dataclass, field
from typing import Any

import pytest

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
        self.task = type("Task", (), {"inbox": inbox})()
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
    inbox = type("Inbox", (), {"put": put})()
    with pytest.raises(type(error)):
        Bare(inbox, error).run()
    assert [each.step for each in put.records] == [8]
    assert [each.kind for each in put.records[0].events] == ["step skipped"]
