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
    """Keeps what decoders say in this thread."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.heard: list[str] = []
        self._thread = threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        said = record.getMessage()
        if record.thread == self._thread and any(name in said for name in DECODERS):
            self.heard.append(said.partition(":")[2])


@contextmanager
def complaints() -> Iterator[list[str]]:
    """What decoders complain of inside the block, as it comes."""
    log = logging.getLogger("rasterio._err")
    listener, level = _Listener(), log.level
    if not log.isEnabledFor(logging.WARNING):
        log.setLevel(logging.WARNING)
    log.addHandler(listener)
    try:
        yield listener.heard
    finally:
        log.removeHandler(listener)
        log.setLevel(level)
