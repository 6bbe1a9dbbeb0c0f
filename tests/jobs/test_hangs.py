"""Which worker hangs, told by pulses; and what a worker is at, told by its stacks."""

import sys
import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs import pulse as pulse_module
from jobs.hangs import PATIENT, STEPS, HangWatch, hanging
from jobs.inbox import Delivery, Pulse, StepRecord
from jobs.pulse import Heart, NodeLoad, activity

PATIENCE_S = 300.0


def pulse(rank: int, at: str, *, since_s: float = 0.0, step: int = 9) -> Pulse:
    return Pulse(
        rank=rank, num_workers=3, pid=100 + rank, node_id="n", hostname="h", step=step, at=at,
        since_s=since_s,
    )  # fmt: skip


def delivery(*pulses: Pulse, silent_s: dict[int, float] | None = None) -> Delivery:
    silent = {each.rank: 0.0 for each in pulses} | (silent_s or {})
    return Delivery(pulses=pulses, silent_s=silent)


def ranks(found: list[Pulse]) -> list[int]:
    return [each.rank for each in found]


def test_a_worker_that_says_nothing_hangs_whatever_it_was_at():
    for at in ("computing", "talking", "reading"):
        told = delivery(pulse(0, "talking"), pulse(1, at), silent_s={1: PATIENCE_S + 1})
        assert ranks(hanging(told, patience_s=PATIENCE_S)) == [1]


def test_all_that_say_nothing_hang():
    told = delivery(pulse(0, "reading"), pulse(1, "reading"), silent_s={0: 301.0, 1: 302.0})
    assert ranks(hanging(told, patience_s=PATIENCE_S)) == [0, 1]


def test_a_worker_that_is_done_may_be_silent():
    told = delivery(pulse(0, "saving"), pulse(1, "done"), silent_s={1: 10 * PATIENCE_S})
    assert not hanging(told, patience_s=PATIENCE_S)


@pytest.mark.parametrize("at", ["reading", "computing"])
def test_the_one_that_all_others_wait_for_hangs(at):
    told = delivery(
        pulse(0, "talking", since_s=301.0),
        pulse(1, at, since_s=400.0),
        pulse(2, "talking", since_s=310.0),
    )
    assert ranks(hanging(told, patience_s=PATIENCE_S)) == [1]


def test_saving_may_take_longer():
    for since_s, found in ((PATIENT * PATIENCE_S - 1, []), (PATIENT * PATIENCE_S + 1, [0])):
        told = delivery(pulse(0, "saving", since_s=since_s), pulse(1, "talking", since_s=since_s))
        assert ranks(hanging(told, patience_s=PATIENCE_S)) == found


def test_before_all_have_done_a_step_there_is_more_patience():
    told = delivery(pulse(0, "starting"), pulse(1, "starting"), silent_s={1: PATIENCE_S + 1})
    assert not hanging(told, patience_s=PATIENCE_S)
    later = replace(told, silent_s={0: 0.0, 1: PATIENT * PATIENCE_S + 1})
    assert ranks(hanging(later, patience_s=PATIENCE_S)) == [1]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["talking", "reading", "computing", "saving"]),
            st.floats(0.0, PATIENCE_S),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_nobody_hangs_while_somebody_has_only_just_begun_something(states):
    pulses = [pulse(rank, at, since_s=since_s) for rank, (at, since_s) in enumerate(states)]
    assert not hanging(delivery(*pulses), patience_s=PATIENCE_S)


def test_all_waiting_for_each_other_is_left_to_the_collectives():
    told = delivery(pulse(0, "talking", since_s=999.0), pulse(1, "talking", since_s=999.0))
    assert not hanging(told, patience_s=PATIENCE_S)


def test_a_worker_that_hangs_is_told_and_killed_once_an_attempt():
    told, killed = [], []
    watch = HangWatch(
        timeout_s=PATIENCE_S, finished=lambda: 9, tell=told.append, kill=killed.append
    )
    # a worker that has just begun does not count the steps of others before it
    silence = delivery(pulse(0, "talking"), pulse(1, "reading", step=0), silent_s={1: 301.0})
    watch(silence)
    watch(silence)
    assert ranks(killed) == [1]
    (event,) = told
    assert event.kind == "worker hangs"
    assert event.facts == {
        "rank": 1, "node": "h", "last_step": 9, "at": "reading", "silent_s": 301.0,
    }  # fmt: skip
    assert "worker 1 on h has said nothing for 301 s, reading after step 9" in event.text
    watch.begin()
    watch(silence)
    assert ranks(killed) == [1, 1]


def test_steps_that_take_long_stretch_the_patience():
    killed: list[Pulse] = []
    watch = HangWatch(
        timeout_s=PATIENCE_S, finished=lambda: 9, tell=lambda event: None, kill=killed.append
    )
    slow = StepRecord(step=9, metrics={"loss": 1.0, "time/step_s": 200.0})
    silence = delivery(pulse(0, "talking"), pulse(1, "reading"), silent_s={1: STEPS * 200.0 - 1})
    watch(replace(silence, records=[slow]))
    assert not killed
    watch(replace(silence, silent_s={0: 0.0, 1: STEPS * 200.0 + 1}))
    assert ranks(killed) == [1]


@pytest.mark.parametrize(
    ("module", "at"),
    [
        ("torch.distributed.distributed_c10d", "talking"),
        ("jobs.batches", "reading"),
        ("jobs.checkpoints", "saving"),
        ("jobs.best", "saving"),
        ("jobs.exporting", "saving"),
        ("jobs.validation", "computing"),
    ],
)
def test_what_a_thread_is_at_is_told_by_the_module_it_is_in(module, at):
    here = threading.get_ident()
    seen = []

    def wait() -> None:
        seen.append(activity(sys._current_frames(), training=here))

    # as if that module's own code waited
    exec("wait()", {"__name__": module, "wait": wait})
    assert seen == [at]


def test_writing_the_best_model_or_a_profile_is_saving_too():
    for module in ("jobs.checkpoints", "jobs.best", "jobs.profiling"):
        seen = []

        def look(seen: list[str] = seen) -> None:
            seen.append(activity(sys._current_frames(), training=threading.get_ident()))

        exec("look()", {"__name__": module, "look": look})
        assert seen == ["saving"]


def test_what_a_worker_is_at_counts_from_the_last_thing_that_it_got_done(monkeypatch):
    now_s = [0.0]
    monkeypatch.setattr(pulse_module, "time", SimpleNamespace(monotonic=lambda: now_s[0]))
    heart = Heart(None, rank=0, num_workers=2, first_on_node=False)
    heart.finished(3)
    assert heart.at() == ("computing", 0.0)
    now_s[0] = 400.0
    assert heart.at() == ("computing", 400.0)
    heart.finished(4)
    assert heart.at() == ("computing", 0.0)
    now_s[0] = 1000.0
    heart.advances()
    assert heart.at() == ("computing", 0.0)


class RefusedError(Exception):
    """As NVIDIA's library says it."""


def test_a_gpu_that_cannot_be_measured_does_not_end_the_pulse(monkeypatch):
    def refuse(handle: int) -> None:
        raise RefusedError

    def memory(handle: int) -> SimpleNamespace:
        return SimpleNamespace(used=2e9)

    library = SimpleNamespace(
        NVMLError=RefusedError,
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: 1,
        nvmlDeviceGetHandleByIndex=lambda number: number,
        nvmlDeviceGetUtilizationRates=refuse,
        nvmlDeviceGetMemoryInfo=memory,
    )
    monkeypatch.setitem(sys.modules, "pynvml", library)
    figures = NodeLoad().figures()
    assert figures["gpu0_memory_gb"] == 2.0
    assert "gpu0_percent" not in figures
    assert "memory_gb" in figures


def test_a_node_says_how_busy_it_is():
    figures = NodeLoad().figures()
    assert 0.0 <= figures["cpu_percent"] <= 100.0
    assert figures["memory_gb"] > 0.0
