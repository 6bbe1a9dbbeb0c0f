"""Waiting for a store that does not answer, and for how long."""

import random
import time
from collections.abc import Callable
from typing import TypeVar

Answer = TypeVar("Answer")
FIRST_WAIT_S, LONGEST_WAIT_S = 0.1, 10.0


def patiently(
    attempt: Callable[[], Answer],
    *,
    patience_s: float,
    setting: str,
    faults: type[OSError] = OSError,
) -> Answer:
    """What the attempt gives, made again with growing, random pauses while it raises `faults`.

    What is not there or refused is so at once.

    Raises:
        TimeoutError: every attempt has failed for patience_s; it names the setting.
    """
    failing_since, longest = None, FIRST_WAIT_S
    while True:
        try:
            return attempt()
        except (FileNotFoundError, PermissionError):
            raise
        except faults as error:
            failing_since = failing_since or time.monotonic()
            # all workers come back at different moments, or they would bring it down again
            wait_s = random.uniform(0.0, longest)  # noqa: S311 - no secret depends on it
            if time.monotonic() + wait_s > failing_since + patience_s:
                raise TimeoutError(f"{error}; tried for {patience_s:g} s ({setting})") from error
            time.sleep(wait_s)
            longest = min(LONGEST_WAIT_S, 2.0 * longest)
