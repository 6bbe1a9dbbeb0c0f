"""A worker's pulse: every few seconds its step and what it is at, for the driver to watch over it.

What a worker is at is read off its threads' stacks, so that no code needs to say it:
reading, computing, talking (to the other workers), saving.
"""

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from types import FrameType
from typing import Any

import psutil
import ray
import ray.train
import torch
from ray.exceptions import RayError
from ray.train.v2._internal.execution.context import get_train_context

from jobs.events import Event
from jobs.inbox import Pulse
from jobs.leaving import PREEMPTED, STAYS, agreed, terminated

PULSE_S = 2.0
ANSWER_S = 10.0
FIGURES_EVERY = 5
"""Pulses; a node's load is measured so much less often."""
ACTIVITIES = {
    "torch.distributed": "talking",
    "jobs.batches": "reading",
    "jobs.checkpoints": "saving",
    "jobs.exporting": "saving",
    "jobs.best": "saving",
    "jobs.profiling": "saving",
}
"""By module; on a stack the innermost counts."""


class Heart:
    """Sends a worker's pulse while the block runs; `finished` and `leaves` are the loop's.

    Args:
        inbox: the driver's.
        rank: among all workers.
        num_workers: all of them.
        first_on_node: whether this worker measures its node's load.
    """

    def __init__(self, inbox: Any, *, rank: int, num_workers: int, first_on_node: bool) -> None:
        self.inbox = inbox
        self.rank = rank
        self.num_workers = num_workers
        self.load = NodeLoad() if first_on_node else None
        self._trained_by = threading.get_ident()
        self._step = 0
        self._at, self._since_s = "starting", time.monotonic()
        self._began = False
        self._wants = STAYS
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pulse", daemon=True)

    def __enter__(self) -> "Heart":
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._stop.set()
        self._thread.join(timeout=ANSWER_S)
        with contextlib.suppress(RayError):
            # others may still have something to do
            self.inbox.beat.remote(self._pulse("done", 0.0))

    def finished(self, step: int) -> None:
        """So many steps are done."""
        self._step, self._began = step, True
        self.advances()

    def advances(self) -> None:
        """Something that may take long in a step is done, as a part of a validation is."""
        self._since_s = time.monotonic()

    def leaves(self, device: torch.device) -> str:
        """Why all workers leave after this step, or nothing; every worker asks after every step."""
        return agreed(self._wants, device=device)

    def _run(self) -> None:
        beats = 0
        while not self._stop.is_set():
            self._notice()
            figures = self.load.figures() if self.load and beats % FIGURES_EVERY == 0 else None
            with contextlib.suppress(RayError):
                order = ray.get(
                    self.inbox.beat.remote(self._pulse(*self.at(), figures)),
                    timeout=ANSWER_S,
                )
                self._wants = order or self._wants
            beats += 1
            self._stop.wait(PULSE_S)

    def _notice(self) -> None:
        """Reasons to leave that come to this worker, and not to the driver."""
        if self._wants:
            return
        info = get_train_context().preemption_context.preemption_info
        if terminated.is_set():
            self._leave("got a SIGTERM", ranks=[self.rank])
        elif info is not None and self.rank in info.preempted_ranks:
            self._leave("will lose its node", ranks=info.preempted_ranks)

    def _leave(self, why: str, *, ranks: list[int]) -> None:
        self._wants = PREEMPTED
        host = socket.gethostname()
        self.inbox.tell.remote(
            Event(
                kind=PREEMPTED,
                step=self._step,
                text=f"worker {self.rank} on {host} {why}: all workers save and leave after this "
                "step, and training goes on with those there are then",
                facts={"ranks": ranks, "node": host},
            )
        )

    def at(self) -> tuple[str, float]:
        """What this worker is at, and for how long without getting anything done."""
        frames = sys._current_frames()
        at = activity(frames, training=self._trained_by) if self._began else "starting"
        if at != self._at:
            self._at, self._since_s = at, time.monotonic()
        return at, time.monotonic() - self._since_s

    def _pulse(self, at: str, since_s: float, figures: Mapping[str, float] | None = None) -> Pulse:
        return Pulse(
            rank=self.rank,
            num_workers=self.num_workers,
            pid=os.getpid(),
            node_id=ray.get_runtime_context().get_node_id(),
            hostname=socket.gethostname(),
            step=self._step,
            at=at,
            since_s=since_s,
            figures=figures,
        )


def activity(frames: Mapping[int, FrameType], *, training: int) -> str:
    """What a process is at, by the stacks of its threads; `training` is the loop's thread.

    Gradients may be summed in a thread of their own while the loop's waits for it.
    """
    if any("talking" in _activities(frame) for frame in frames.values()):
        return "talking"
    return next(_activities(frames[training]), "computing")


def _activities(frame: FrameType | None) -> Iterator[str]:
    """From the innermost call outwards."""
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        for name, at in ACTIVITIES.items():
            if module == name or module.startswith(f"{name}."):
                yield at
        frame = frame.f_back


class NodeLoad:
    """How busy a node is."""

    def __init__(self) -> None:
        psutil.cpu_percent()  # counts from the last call
        self.gpus = _gpus()

    def figures(self) -> dict[str, float]:
        """By name, with units; GPUs where NVIDIA's library is installed."""
        found = {
            "cpu_percent": psutil.cpu_percent(),
            "memory_gb": psutil.virtual_memory().used / 1e9,
            "disk_percent": psutil.disk_usage("/").percent,
        }
        for number, gpu in enumerate(self.gpus):
            found |= {f"gpu{number}_{name}": value for name, value in gpu().items()}
        return found


def _gpus() -> list[Any]:
    """For every GPU of this node a function that measures it."""
    try:
        pynvml = import_module("pynvml")
    except ImportError:
        return []
    try:
        pynvml.nvmlInit()
        handles = [
            pynvml.nvmlDeviceGetHandleByIndex(number)
            for number in range(pynvml.nvmlDeviceGetCount())
        ]
    except pynvml.NVMLError:
        return []

    ways: dict[str, Callable[[Any], float]] = {
        "percent": lambda handle: float(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu),
        "memory_gb": lambda handle: pynvml.nvmlDeviceGetMemoryInfo(handle).used / 1e9,
    }

    def measure(handle: Any) -> dict[str, float]:
        found = {}
        for name, way in ways.items():
            # parts of a GPU and virtual ones do not tell all, and one may be lost
            with contextlib.suppress(pynvml.NVMLError):
                found[name] = way(handle)
        return found

    return [lambda handle=handle: measure(handle) for handle in handles]
