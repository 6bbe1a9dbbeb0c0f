"""A dataset's figures as tables to read, and as JSON."""

import json
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jobs.dataset_summary import Summary

MOST_ROWS = 12
"""Of classes, bands and causes; the rest is in the JSON."""
BAR_WIDTH = 40


def say(summary: Summary, console: Console) -> None:
    """The whole of it in one table, and the sizes as bars."""
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in _rows(summary):
        table.add_row(name, escape(value))
    console.print(table)
    most = max(summary.size_counts, default=0)
    bars = Table("longer side, px", "images", box=None, pad_edge=False)
    for place, count in enumerate(summary.size_counts):
        low, high = summary.long_sides_px[place : place + 2]
        bar = "█" * round(BAR_WIDTH * count / most) or ("▏" if count else "")
        bars.add_row(f"{low:.0f} to {high:.0f}", f"{bar} {count}")
    if most:
        console.print(bars)


def write_json(summary: Summary, path: Path) -> None:
    """The same and the rest."""
    path.write_text(json.dumps(summary.as_json(), indent=2) + "\n", encoding="utf-8")


def _rows(summary: Summary) -> Iterator[tuple[str, str]]:
    yield "dataset", summary.dataset
    yield "digest", summary.digest
    yield "images", f"{summary.images}, {summary.megapixels:,.1f} megapixels"
    yield "groups", f"{summary.groups} of {summary.group_side_px} x {summary.group_side_px} px"
    yield "on disk", f"{summary.bytes_on_disk / 1e6:.1f} MB"
    yield "splits", ", ".join(f"{name} {count}" for name, count in summary.splits.items())
    for name, counts in summary.classes.items():
        said = [f"{label or '(none)'} {count}" for label, count in counts.items()]
        yield f"label {name}", _shortened(said)
    for name, spread in summary.numbers.items():
        yield f"label {name}", str(spread)
    for kept in summary.formats:
        bands = zip(kept["band_mean"], kept["band_std"], strict=True)
        said = [f"{mean:.4g} ± {deviation:.3g}" for mean, deviation in bands]
        yield f"{kept['bands']} x {kept['dtype']}", f"{kept['images']} image(s); {_shortened(said)}"
    yield "width, px", str(summary.width_px)
    yield "height, px", str(summary.height_px)
    yield "groups an image", str(summary.groups_an_image)
    yield "background", f"{summary.background_share:.1%} of the groups left out"
    if summary.microns_per_px:
        yield "microns per px", str(summary.microns_per_px)
    if summary.crs:
        yield "coordinates", _shortened([f"{name} {count}" for name, count in summary.crs.items()])
    if set(summary.levels) - {0}:
        yield "levels", ", ".join(f"{level}: {count}" for level, count in summary.levels.items())
    yield "quarantine", f"{summary.quarantined} image(s), {summary.bad_groups} group(s)"
    for cause, count in list(summary.causes.items())[:MOST_ROWS]:
        yield "", f"{count} x {cause}"


def _shortened(said: list[str]) -> str:
    more = f" and {len(said) - MOST_ROWS} more" if len(said) > MOST_ROWS else ""
    return ", ".join(said[:MOST_ROWS]) + more
