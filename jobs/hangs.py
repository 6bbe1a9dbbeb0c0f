"""Workers that hang: who it is, by their pulses, and its end.

says nothing any more                            stopped, or its network is dead
computes, reads or saves, while all others wait  stuck in there
"""

import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace

import psutil
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from jobs.events import Event
from jobs.inbox import Delivery, Pulse

PATIENT = 3.0
"""Times the usual patience: for the first step of an attempt, which loads and compiles, for saving,
and before collectives give up by themselves."""
STEPS = 3.0
"""Times the slowest step until now that a worker may take for one."""
KILL_S = 30.0


class HangWatch:
    """Finds, reports and kills a worker that hangs, once an attempt.

    Args:
        timeout_s: the usual patience.
        finished: gives the finished steps of all workers; one that has just begun knows of none.
        tell: takes the report.
        kill: ends a worker's process.
    """

    def __init__(
        self,
        *,
        timeout_s: float,
        finished: Callable[[], int],
        tell: Callable[[Event], None],
        kill: Callable[[Pulse], None],
    ) -> None:
        self.timeout_s = timeout_s
        self.finished = finished
        self.tell = tell
        self.kill = kill
        self.slowest_s = 0.0
        self.found: list[Pulse] = []

    def begin(self) -> None:
        """An attempt begins, with other processes."""
        self.found = []

    def __call__(self, delivery: Delivery) -> None:
        """Look at what came last."""
        times = [record.metrics.get("time/step_s", 0.0) for record in delivery.records]
        self.slowest_s = max([self.slowest_s, *times])
        if self.found:
            return
        patience_s = max(self.timeout_s, STEPS * self.slowest_s)
        self.found = hanging(delivery, patience_s=patience_s)
        for pulse in self.found:
            known = replace(pulse, step=max(pulse.step, self.finished()))
            self.tell(_report(known, silent_s=delivery.silent_s[pulse.rank]))
            self.kill(pulse)


def hanging(delivery: Delivery, *, patience_s: float) -> list[Pulse]:
    """The workers that hang."""
    pulses = [pulse for pulse in delivery.pulses if pulse.at != "done"]
    if any(pulse.at == "starting" for pulse in pulses):
        patience_s *= PATIENT
    silent = [each for each in pulses if delivery.silent_s[each.rank] > patience_s]
    return silent or _held_by(pulses, patience_s=patience_s)


def _held_by(pulses: Sequence[Pulse], *, patience_s: float) -> list[Pulse]:
    """Those that all others wait for, and have for too long."""
    busy = [pulse for pulse in pulses if pulse.at != "talking"]
    if not busy or len(busy) == len(pulses):
        return []
    if any(pulse.at == "saving" for pulse in busy):
        patience_s *= PATIENT
    return busy if min(pulse.since_s for pulse in pulses) > patience_s else []


def kill_worker(pulse: Pulse) -> None:
    """End a worker's process on its node, also one that was stopped; waits until it is gone."""
    there = NodeAffinitySchedulingStrategy(pulse.node_id, soft=False)
    killing = _kill.options(num_cpus=0, scheduling_strategy=there).remote(pulse.pid)
    ray.wait([killing], timeout=KILL_S)


@ray.remote(max_retries=0)
def _kill(pid: int) -> bool:
    try:
        process = psutil.Process(pid)
        # a number may be another process's by now
        if "ray::" not in " ".join(process.cmdline()):
            return False
        os.kill(pid, signal.SIGKILL)
        process.wait(timeout=KILL_S)
    except (psutil.Error, ProcessLookupError):
        return False
    return True


def _report(pulse: Pulse, *, silent_s: float) -> Event:
    said = f"has said nothing for {silent_s:.0f} s" if silent_s > pulse.since_s else "holds up all"
    return Event(
        kind="worker hangs",
        step=pulse.step,
        text=f"worker {pulse.rank} on {pulse.hostname} {said}, {pulse.at} after step {pulse.step}: "
        "it is killed, and training goes on from the newest checkpoint",
        facts={
            "rank": pulse.rank,
            "node": pulse.hostname,
            "last_step": pulse.step,
            "at": pulse.at,
            "silent_s": silent_s,
        },
    )
