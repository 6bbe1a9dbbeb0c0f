"""GB/s of every way to read an epoch, a panel a place."""

from typing import Any

from matplotlib.figure import Figure

from jobs.ingest_report import TITLES, Report
from jobs.ingest_systems import CEILING, OURS
from jobs.operators_report import rounded

OURS_COLOUR, CEILING_COLOUR, OTHER_COLOUR = "#0b6e4f", "0.55", "#3d5a80"


def picture(report: Report) -> Figure:
    """A bar a system, its median; who is left out has none."""
    places = report.places
    figure = Figure(figsize=(5 * len(places), 4), layout="constrained")
    panels: Any = figure.subplots(1, len(places), squeeze=False, sharey=True)[0]
    for axes, place in zip(panels, places, strict=True):
        draw(axes, report, place)
    figure.suptitle(f"Reading an epoch of patch groups: {report.setting}", fontsize=11)
    return figure


def draw(axes: Any, report: Report, place: str) -> None:
    """One panel, the first system on top."""
    points = report.of(place)
    speeds = [0.0 if each.left_out else each.gb_per_s for each in points.values()]
    bars = axes.barh(list(points), speeds, color=[colour(name) for name in points])
    labels = [rounded(speed) if speed else "left out" for speed in speeds]
    axes.bar_label(bars, labels=labels, padding=3)
    axes.margins(x=0.15)
    axes.invert_yaxis()
    axes.set_title(f"{TITLES[place]}, GB/s", loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)


def colour(system: str) -> str:
    """Ours, the ceiling's or anybody's."""
    if system.startswith(OURS):
        return OURS_COLOUR
    return CEILING_COLOUR if system.startswith(CEILING) else OTHER_COLOUR
