"""A decoder that complains and goes on: what it gave instead of pixels is refused.

libjpeg fills up with grey what it cannot decode. For a JPEG file GDAL can be told to fail then; for
JPEG inside a TIFF libtiff only warns, and rasterio hands the warning to its log.
"""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

DECODERS = ("JPEGLib:",)
"""Other decoders also warn of what does no harm, such as a missing end mark in LZW."""


class _Listener(logging.Handler):
    """Keeps what decoders say, for the thread in which they say it."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.of_thread = threading.local()

    def emit(self, record: logging.LogRecord) -> None:
        said = record.getMessage()
        heard = getattr(self.of_thread, "heard", None)
        if heard is not None and any(name in said for name in DECODERS):
            heard.append(said.partition(":")[2])


_LISTENER = _Listener()


@contextmanager
def complaints() -> Iterator[list[str]]:
    """What decoders complain of inside the block, as it comes.

    The handler stays, and the level is left alone where it can be: every change makes all loggers
    of the process forget what they know, which costs as much as decoding a small group.
    """
    log = logging.getLogger("rasterio._err")
    if _LISTENER not in log.handlers:
        log.addHandler(_LISTENER)
    level = log.level
    muted = not log.isEnabledFor(logging.WARNING)
    if muted:
        log.setLevel(logging.WARNING)
    heard: list[str] = []
    _LISTENER.of_thread.heard = heard
    try:
        yield heard
    finally:
        _LISTENER.of_thread.heard = None
        if muted:
            log.setLevel(level)
