"""Room on the disk for a file that is going to grow: asked for at once, where the system can."""

import ctypes
import os
from pathlib import Path

KEEP_SIZE = 1
"""FALLOC_FL_KEEP_SIZE of Linux: the file looks no longer than what was written to it."""


def reserve(file: Path, num_bytes: int) -> None:
    """Have room for so many bytes in an empty file, so that none has to be looked for later.

    Where a disk has less, or a system cannot reserve, the file stays as it was: less may be needed,
    and a write that finds no room says so. What is not used goes back when the file is cut to size.
    """
    fallocate = getattr(ctypes.CDLL(None), "fallocate", None)
    if fallocate is None or not num_bytes:
        return
    handle = os.open(file, os.O_WRONLY)
    try:
        start, length = ctypes.c_int64(0), ctypes.c_int64(num_bytes)
        if fallocate(handle, KEEP_SIZE, start, length):
            os.truncate(handle, 0)  # a part of it may have been found
    finally:
        os.close(handle)
