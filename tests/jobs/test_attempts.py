"""Which failures start the workers again, how often, and what is told of it."""

import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from ray.exceptions import ActorDiedError
from ray.train import ControllerError, NCCLHangError, WorkerGroupError
from ray.train.v2._internal.exceptions import (
    UserExceptionWithTraceback,
    WorkerGroupStartupFailedError,
    WorkerHealthCheckFailedError,
)

from jobs.attempts import Attempts, as_it_was, committed_step
from jobs.errors import MachineFault, UserError
from jobs.events import Event
from jobs.failures import LONGEST_PAUSE_S, failure_of, pause_s
from jobs.inbox import Pulse
from jobs.stopping import Stop, Stopped


def raised(error: Exception) -> UserExceptionWithTraceback:
    """As a worker's exception arrives at the driver."""
    return UserExceptionWithTraceback(error, "traceback")


def died() -> WorkerHealthCheckFailedError:
    return WorkerHealthCheckFailedError("no health", failure=ActorDiedError())


def of_workers(**failures: Exception) -> WorkerGroupError:
    return WorkerGroupError("failed", {int(rank[1:]): each for rank, each in failures.items()})


NO_ANSWER = ConnectionError("worker 0 of 2 got no answer from the others")

AGAIN = {
    "a worker died": of_workers(w1=died()),
    "and the others got no answer": of_workers(w0=raised(NO_ANSWER), w1=died()),
    "or fell over it": of_workers(w0=raised(RuntimeError("unflatten")), w1=died()),
    "nobody answers": of_workers(w0=raised(NO_ANSWER), w1=raised(NO_ANSWER)),
    "a store is away": of_workers(w0=raised(TimeoutError("s3://b/k: not for 120 s"))),
    "workers did not start": ControllerError(WorkerGroupStartupFailedError("node gone")),
    "the controller died": ActorDiedError(),
    "NCCL tells Ray of a hang": NCCLHangError("all wait", {}),
}
NEVER_AGAIN = {
    "a user's mistake": of_workers(w0=raised(UserError("lr 5")), w1=raised(NO_ANSWER)),
    "a user's mistake that killed another": of_workers(w0=raised(ValueError("lr")), w1=died()),
    "a program's mistake": of_workers(w0=raised(TypeError("shape")), w1=raised(NO_ANSWER)),
    "too much damage": of_workers(w0=raised(MachineFault("9 of 10 images cannot be read"))),
    "not of the workers": KeyError("name"),
}


@pytest.mark.parametrize("name", AGAIN)
def test_what_another_attempt_may_get_over_is_tried_again(name):
    assert failure_of(AGAIN[name]) is not None


@pytest.mark.parametrize("name", NEVER_AGAIN)
def test_mistakes_are_raised_at_once(name):
    assert failure_of(NEVER_AGAIN[name]) is None


def test_the_worker_that_died_is_named_and_not_those_that_missed_it():
    found = failure_of(of_workers(w0=raised(NO_ANSWER), w3=died()))
    assert found is not None
    assert found.rank == 3


def test_pauses_grow_to_a_limit():
    pauses = [pause_s(number) for number in range(1, 9)]
    assert pauses == sorted(pauses)
    assert pauses[0] < pauses[1]
    assert pauses[-1] == LONGEST_PAUSE_S


@dataclass
class Watched:
    found: list = field(default_factory=list)


@dataclass
class FakeMonitor:
    """What Attempts uses of a monitor."""

    events: list[Event] = field(default_factory=list)
    inboxes: int = 0
    step: int = 7
    watch: Watched = field(default_factory=Watched)

    @property
    def pulses(self) -> dict[int, Pulse]:
        return {1: Pulse(rank=1, num_workers=2, pid=4, node_id="n", hostname="host-b", step=6)}

    def open_inbox(self) -> int:
        self.inboxes += 1
        return self.inboxes

    def close_inbox(self) -> None:
        """Nothing is in it."""

    def tell(self, event: Event) -> None:
        self.events.append(event)


@dataclass(frozen=True)
class FakeAssignment:
    inbox: Any = None
    groups_a_chunk: int = 8


@dataclass
class Story:
    """What comes of each attempt; a checkpoint may be written meanwhile."""

    outcomes: list[Any]
    folder: Any
    told: list[FakeAssignment] = field(default_factory=list)
    meanwhile: Callable[[], None] = lambda: None

    def __call__(self, assignment: FakeAssignment) -> str:
        self.told.append(assignment)
        self.meanwhile()
        outcome = self.outcomes[len(self.told) - 1]
        if isinstance(outcome, tuple):
            step, outcome = outcome
            place = self.folder / "checkpoints" / f"step-{step:07d}"
            place.mkdir(parents=True)
            (place / "manifest.json").write_text("{}")
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


@pytest.fixture
def stop(monkeypatch) -> Iterator[Stop]:
    stop = Stop(tell=lambda name: None)
    monkeypatch.setattr(stop, "pause", lambda seconds: None)
    return stop


def attempts(tmp_path, stop, outcomes, **settings) -> Attempts:
    given = {"max_failures": 3, **settings}
    story = Story(outcomes, tmp_path)
    return Attempts(fit=story, monitor=FakeMonitor(), stop=stop, folder=str(tmp_path), **given)


LOST = of_workers(w1=died())


def test_a_lost_worker_costs_an_attempt_and_is_told_with_its_node_and_step(tmp_path, stop):
    trying = attempts(tmp_path, stop, [LOST, ""])
    trying.run(FakeAssignment())
    (event,) = trying.monitor.events
    assert event.kind == "worker lost"
    assert event.text.startswith("worker 1 on host-b was killed or crashed")
    assert event.facts["last_step"] == 7
    assert [each.inbox for each in trying.fit.told] == [1, 2]


def test_failures_in_a_row_end_the_training_with_the_last_one(tmp_path, stop):
    trying = attempts(tmp_path, stop, [LOST] * 3, max_failures=2)
    with pytest.raises(MachineFault, match=r"worker 1 died in the .*gave up after 3 failures"):
        trying.run(FakeAssignment())
    assert len(trying.monitor.events) == 2


def test_without_failures_to_spare_the_first_is_raised_as_it_is(tmp_path, stop):
    with pytest.raises(WorkerGroupError):
        attempts(tmp_path, stop, [LOST], max_failures=0).run(FakeAssignment())


def test_a_new_checkpoint_between_failures_makes_them_no_row(tmp_path, stop):
    outcomes = [LOST, LOST, (50, LOST), LOST, (100, LOST), LOST, ""]
    trying = attempts(tmp_path, stop, outcomes, max_failures=2)
    trying.run(FakeAssignment())
    assert len(trying.fit.told) == len(outcomes)


def test_a_mistake_is_not_tried_again(tmp_path, stop):
    trying = attempts(tmp_path, stop, [NEVER_AGAIN["a program's mistake"]])
    with pytest.raises(WorkerGroupError):
        trying.run(FakeAssignment())
    assert not trying.monitor.events


def test_a_failure_that_a_change_gets_over_is_not_counted(tmp_path, stop):
    too_large = NEVER_AGAIN["a program's mistake"]

    def halve(error: BaseException, assignment: Any) -> Any:
        assert error is too_large
        return FakeAssignment(groups_a_chunk=assignment.groups_a_chunk // 2)

    trying = attempts(tmp_path, stop, [too_large, too_large, ""], max_failures=0, adapt=halve)
    trying.run(FakeAssignment())
    assert [each.groups_a_chunk for each in trying.fit.told] == [8, 4, 2]


def test_workers_that_leave_early_are_followed_by_others(tmp_path, stop):
    trying = attempts(tmp_path, stop, ["resized", "preempted", ""], max_failures=0)
    trying.run(FakeAssignment())
    assert len(trying.fit.told) == 3


def test_a_stop_ends_after_the_checkpoint_and_says_where(tmp_path, stop):
    trying = attempts(tmp_path, stop, [(40, "stopped")])
    trying.fit.meanwhile = lambda: stop.ask(signal.SIGTERM, None)
    with pytest.raises(Stopped, match="after step 40, which is saved; the same command") as caught:
        trying.run(FakeAssignment())
    assert caught.value.exit_code == 143


def test_a_stop_ends_also_where_the_workers_break_meanwhile(tmp_path, stop):
    trying = attempts(tmp_path, stop, [LOST])
    trying.fit.meanwhile = lambda: stop.ask(signal.SIGINT, None)
    with pytest.raises(Stopped) as caught:
        trying.run(FakeAssignment())
    assert caught.value.exit_code == 130


def test_a_signal_that_found_no_workers_to_ask_starts_none(tmp_path, stop):
    trying = attempts(tmp_path, stop, [""])
    stop.ask(signal.SIGTERM, None)
    with pytest.raises(Stopped, match="before there was a checkpoint"):
        trying.run(FakeAssignment())
    assert trying.fit.told == []


def test_a_second_signal_ends_at_once(stop):
    stop.ask(signal.SIGINT, None)
    with pytest.raises(Stopped, match="at once"):
        stop.ask(signal.SIGINT, None)


def test_only_a_folder_with_a_manifest_is_progress(tmp_path):
    for step, name in ((20, "manifest.json"), (40, "part-00000-of-00001.safetensors")):
        place = tmp_path / "checkpoints" / f"step-{step:07d}" / name
        place.parent.mkdir(parents=True)
        place.write_text("{}")
    assert committed_step(str(tmp_path)) == 20
    assert committed_step(str(tmp_path / "absent")) == 0


def test_no_change_is_the_usual_change():
    assert as_it_was(LOST, FakeAssignment()) is None  # type: ignore[arg-type]


def test_a_run_that_somebody_else_has_taken_over_ends_at_once(tmp_path, stop):
    def check() -> None:
        raise ValueError("taken over")

    trying = attempts(tmp_path, stop, [""] * 2, check=check)
    waits = threading.Event()
    trying.fit.meanwhile = lambda: waits.wait(20.0)
    with pytest.raises(ValueError, match="taken over"):
        trying.run(FakeAssignment())
    assert len(trying.fit.told) == 1
    waits.set()
