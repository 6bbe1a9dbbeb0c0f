"""Processes for the runs and measurements of `farreach bench digits`.

They are forked from one that has imported all they need and done nothing with it.
"""

import signal
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context


def children(count: int) -> ProcessPoolExecutor:
    """So many processes, each of which does what it is given, one after another."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["__main__", "jobs.digits_children", "jobs.digits_costs"])
    return ProcessPoolExecutor(count, mp_context=context, initializer=end_at_interrupt)


def end_at_interrupt() -> None:
    """Let Ctrl-C end a child at once and without a word; the parent speaks."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
