"""Where tables are printed: whole, also into a file or a pipe, which have no width of their own."""

import sys

from rich.console import Console

WIDE = 160


def wide_console() -> Console:
    """As wide as the terminal; WIDE columns where there is none."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else WIDE)
