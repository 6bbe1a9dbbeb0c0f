"""Processes that measure: what one measurement leaves behind is not there for the next.

On the CPU every measurement has a fresh process, forked from a nursery: a process that has imported
PyTorch and done nothing with it, which takes seconds once and then milliseconds each time. On a
GPU, where a process needs seconds to start and the allocator counts exactly, one process measures
until it fails.
"""

import gc
import importlib
import multiprocessing
import signal
from multiprocessing.connection import Connection
from multiprocessing.context import ForkContext
from types import TracebackType
from typing import Self

from jobs.operator_costs import Cost, LeftOut, Task, measure

MEASUREMENTS_A_CHILD = {"cpu": 1, "cuda": 1_000_000}
IMPORTED_LATE = "torch._dynamo"
"""By PyTorch's first backward pass, so that every child would wait for it."""


class Nursery:
    """Call it with a task: its process has a child measure it and says what the child said."""

    def __enter__(self) -> Self:
        context = multiprocessing.get_context("spawn")
        self.line, far_end = context.Pipe()
        # not a daemon, which may have no children; it ends when the line is closed
        self.process = context.Process(target=answer_from_children, args=(far_end,))
        self.process.start()
        far_end.close()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.line.close()
        self.process.join()

    def __call__(self, task: Task) -> Cost | LeftOut:
        """What a task costs; LeftOut where time or memory did not suffice, or the child died."""
        self.line.send(task)
        found = self.line.recv()
        if isinstance(found, Exception):
            raise found
        return found


def answer_from_children(line: Connection) -> None:
    """The nursery's life: until the line is closed, or Ctrl+C came to all."""
    importlib.import_module(IMPORTED_LATE)
    gc.freeze()  # or every child would search all that was imported for garbage
    context = multiprocessing.get_context("fork")
    child: Child | None = None
    try:
        while True:
            task = line.recv()
            child = child or Child(context)
            found = child.measure(task)
            spent = child.measured >= MEASUREMENTS_A_CHILD[task.layer.device]
            if spent or not isinstance(found, Cost):
                child.end()
                child = None
            line.send(found)
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        if child is not None:
            child.end()


class Child:
    """One process that measures."""

    def __init__(self, context: ForkContext) -> None:
        self.line, far_end = context.Pipe()
        self.process = context.Process(target=answer, args=(far_end,), daemon=True)
        self.process.start()
        far_end.close()
        self.measured = 0

    def measure(self, task: Task) -> Cost | LeftOut | Exception:
        """What the process answers within the task's patience."""
        self.measured += 1
        self.line.send(task)
        if not self.line.poll(task.patience_s):
            return LeftOut(why=f"> {task.limit_s:g} s")
        try:
            return self.line.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            return LeftOut(why=f"died ({self.process.exitcode})")

    def end(self) -> None:
        """Let it not live on."""
        self.process.kill()
        self.process.join()


def answer(line: Connection) -> None:
    """The child's life: until it is killed, by the nursery alone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        task = line.recv()
        try:
            line.send(measure(task))
        except Exception as error:
            line.send(error)
