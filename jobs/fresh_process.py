"""A function called in a process of its own, which leaves nothing behind."""

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from jobs.operator_costs import LeftOut

Task = TypeVar("Task")
Found = TypeVar("Found")


def in_fresh_process(
    function: Callable[[Task], Found], task: Task, *, patience_s: float
) -> Found | LeftOut:
    """What the function gives; LeftOut where the process died or took longer."""
    context = multiprocessing.get_context("spawn")
    near, far = context.Pipe()
    process = context.Process(target=answer, args=(function, task, far), daemon=True)
    process.start()
    far.close()
    try:
        if not near.poll(patience_s):
            return LeftOut(why=f"> {patience_s:g} s")
        found = near.recv()
    except (EOFError, ConnectionError):
        process.join()
        return LeftOut(why=f"died ({process.exitcode})")
    finally:
        process.kill()
        process.join()
    if isinstance(found, Exception):
        raise found
    return found


def answer(function: Callable[[Any], Any], task: Any, line: Connection) -> None:
    """The process's life."""
    try:
        line.send(function(task))
    except Exception as error:
        line.send(error)
