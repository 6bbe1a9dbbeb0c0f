"""Work beside the training, on a thread of its own."""

import threading
from collections.abc import Callable
from typing import Any


class Job:
    """Something that is being done; what goes wrong is in its note, too."""

    def __init__(self, work: Callable[[], dict[str, Any]]) -> None:
        self.note: dict[str, Any] = {}
        """What the work gave, or {"failed": why}; to be read when it is done."""
        self._thread = threading.Thread(target=self._run, args=(work,), daemon=True)
        self._thread.start()

    @property
    def done(self) -> bool:
        """Whether the note is there."""
        return not self._thread.is_alive()

    def wait(self) -> None:
        """Until it is done."""
        self._thread.join()

    def _run(self, work: Callable[[], dict[str, Any]]) -> None:
        try:
            self.note = work()
        except Exception as error:
            self.note = {"failed": " ".join(str(error).split()) or type(error).__name__}
