"""Memory of this process on Linux: what it holds now, and the most since a moment."""

import ctypes
from pathlib import Path

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of glibc's malloc.h."""
RETURNED_BYTES = 1 << 16
KEPT_BLOCK_BYTES, KEPT_BYTES = 1 << 25, 1 << 28
"""glibc keeps no larger blocks."""


def status_bytes(name: str) -> int:
    """A line of /proc/self/status: "VmRSS" is what is resident, "VmHWM" the most that was."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def restart_peak() -> None:
    """Set VmHWM back to VmRSS."""
    Path("/proc/self/clear_refs").write_text("5")


def return_freed_blocks() -> None:
    """From here on give freed blocks of RETURNED_BYTES or more back to the system at once."""
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, RETURNED_BYTES)


def keep_freed_blocks() -> None:
    """From here on keep up to KEPT_BYTES of freed blocks for whoever asks next.

    A step of training, and groups on their way into a shard, free and ask for the same blocks again
    and again; each time the system took them back, their pages had to be found and cleared anew, a
    tenth of the time on a CPU. Where malloc is not glibc's this does nothing.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, KEPT_BLOCK_BYTES)
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)


def return_all_freed() -> None:
    """Give back now what was freed before."""
    ctypes.CDLL(None).malloc_trim(0)
