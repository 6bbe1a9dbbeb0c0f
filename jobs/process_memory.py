"""Memory of this process on Linux: what it holds now, and the most since a moment."""

import ctypes
from pathlib import Path

M_MMAP_THRESHOLD = -3
"""Of glibc's malloc.h."""
RETURNED_BYTES = 1 << 16


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


def return_all_freed() -> None:
    """Give back now what was freed before."""
    ctypes.CDLL(None).malloc_trim(0)
