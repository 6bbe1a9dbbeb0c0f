"""Memory and time of a training step against the side of the image, on logarithmic axes."""

from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from jobs.memory_report import MEMORY, PAPER_GB, PAPER_SIDE_PX, TIME, Quantity, Report

COLOURS = ("#0b6e4f", "#4cb944", "#c1292e", "#f1a208", "#3d5a80")
MARKERS = "os^vD"


def picture(report: Report) -> Figure:
    """Two panels; the paper's point is a star in the first."""
    figure = Figure(figsize=(13, 6), layout="constrained")
    panels: Any = figure.subplots(1, 2)
    for axes, quantity in zip(panels, (MEMORY, TIME), strict=True):
        draw(axes, report, quantity)
    panels[0].plot(PAPER_SIDE_PX, PAPER_GB, marker="*", ms=16, color="black", ls="none")
    panels[0].annotate(
        f"the paper: {PAPER_SIDE_PX} px within {PAPER_GB:g} GB",
        xy=(PAPER_SIDE_PX, PAPER_GB),
        xytext=(-8, 8),
        textcoords="offset points",
        ha="right",
    )
    panels[0].legend(loc="upper left", frameon=False, bbox_to_anchor=(0.0, 0.92))
    figure.suptitle(f"One training step: {report.setting}", fontsize=11)
    return figure


def draw(axes: Any, report: Report, quantity: Quantity) -> None:
    """One panel; a line ends where the limits do."""
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    for number, variant in enumerate(report.variants):
        points = report.of(variant)
        axes.plot(
            [each.side_px for each in points],
            [quantity.of(each.cost) for each in points if each.cost],
            color=COLOURS[number % len(COLOURS)],
            marker=MARKERS[number % len(MARKERS)],
            label=variant,
        )
    ticks = sorted({*report.sides, PAPER_SIDE_PX} if quantity is MEMORY else report.sides)
    axes.set_xticks(ticks, [f"{side_px:,}" for side_px in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 3.0, 5.0)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axes.set_xlabel("side of the image, px")
    axes.set_title(f"{quantity.name}, {quantity.unit}", loc="left")
    axes.grid(visible=True, color="0.92")
    axes.spines[["top", "right"]].set_visible(False)
