"""SIGTERM and Ctrl-C: a training saves, leaves, and says how to go on; the second one ends it."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

Made = TypeVar("Made")
POLL_S = 0.1
NAMES = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C"}


class Stopped(KeyboardInterrupt):
    """A job that was asked to stop has done so in order."""

    def __init__(self, line: str, *, signum: int) -> None:
        super().__init__(line)
        self.exit_code = 128 + signum


class Stop:
    """Whether this process was asked to stop."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self.signum: int | None = None
        self.asked_s = float("inf")
        self._tell = tell

    def ask(self, signum: int, _frame: Any) -> None:
        """A signal's handler: the first is passed on, the second ends this process's work."""
        if self.signum is not None:
            raise Stopped("ended at once", signum=signum)
        self.signum, self.asked_s = signum, time.monotonic()
        # a handler must not wait for a lock that the thread it interrupts may hold
        threading.Thread(target=self._tell, args=(NAMES[signal.Signals(signum)],)).start()

    def pause(self, seconds: float) -> None:
        """Wait, no longer than until a signal comes."""
        until_s = time.monotonic() + seconds
        while self.signum is None and time.monotonic() < until_s:
            time.sleep(POLL_S)

    def heeded(
        self, call: Callable[[], Made], *, gives_up: Callable[[], bool], check: Callable[[], None]
    ) -> Made:
        """What `call` gives; it runs in a thread, so that signals find this one free.

        Raises:
            Stopped: a signal came, and since then `gives_up` has said that nothing will end.
            Exception: what `check` raises, which is called again and again meanwhile.
        """
        ended: list[Callable[[], Made]] = []
        thread = threading.Thread(target=lambda: ended.append(_outcome(call)), daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(POLL_S)
            check()
            if self.signum is not None and gives_up():
                raise Stopped("ended without a checkpoint of its own", signum=self.signum)
        return ended[0]()


def _outcome(call: Callable[[], Made]) -> Callable[[], Made]:
    """What came of a call, to be had again in another thread."""
    try:
        made = call()
    except BaseException as error:
        caught = error

        def fail() -> Made:
            raise caught

        return fail
    return lambda: made


@contextmanager
def stop_signals(tell: Callable[[str], None]) -> Iterator[Stop]:
    """Within the block the first SIGTERM or Ctrl-C only calls `tell`, with the signal's name."""
    stop = Stop(tell)
    if threading.current_thread() is not threading.main_thread():
        # only the main thread is told of signals
        yield stop
        return
    before = {each: signal.signal(each, stop.ask) for each in NAMES}
    try:
        yield stop
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
