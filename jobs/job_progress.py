"""How far a long job has come: a bar on a terminal, elsewhere a line every half minute."""

import time
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

TELL_S = 30.0


class JobProgress:
    """Shown inside its block; `what` is being done changes from stage to stage."""

    def __init__(self, console: Console, *, what: str) -> None:
        self.what = what
        self.is_shown = False
        self._console = console
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        self._bar = Progress(
            *columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal
        )
        self._task = self._bar.add_task(what, total=None)
        self._told_s = time.monotonic()

    def update(self, done: int, total: int) -> None:
        """So much of it is done."""
        self._bar.update(self._task, description=self.what, completed=done, total=total)
        now_s = time.monotonic()
        if not self._console.is_terminal and now_s - self._told_s >= TELL_S:
            self._told_s = now_s
            self._console.print(f"{self.what}: {done:,} of {total:,}", highlight=False)

    def __enter__(self) -> Self:
        self.is_shown = True
        self._bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._bar.stop()
