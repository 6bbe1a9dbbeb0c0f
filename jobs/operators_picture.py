"""Time and memory of operators against length, on logarithmic axes."""

from collections.abc import Sequence
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from jobs.operator_growth import LINEAR, QUADRATIC
from jobs.operators_report import QUANTITIES, Curve, Quantity, Report

MARKERS = "osD^vPX"
GUIDES = (LINEAR, QUADRATIC)
LABEL_IN = 0.19
"""Between two lines of labels."""
HEIGHT_IN = 7.0


def picture(report: Report) -> Figure:
    """Two panels; each line is named at its right end, with its slope and the theory's."""
    figure = Figure(figsize=(15, HEIGHT_IN), layout="constrained")
    panels: Any = figure.subplots(1, 2)
    for axes, quantity in zip(panels, QUANTITIES, strict=True):
        draw(axes, report, quantity)
    figure.suptitle(
        f"Forward and backward of one layer: {report.setting}\n"
        "after a name: the slope measured over the longest lengths, and that of the theory",
        fontsize=11,
    )
    return figure


def draw(axes: Any, report: Report, quantity: Quantity) -> None:
    """One panel."""
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    curves = [report.curve(operator, quantity) for operator in report.operators]
    colours = colormaps["tab20"](np.r_[0:20:2, 1:20:2])
    styles = list(zip(curves, cycle(colours), cycle(MARKERS), strict=False))
    styles = [style for style in styles if style[0].values]
    for curve, colour, marker in styles:
        axes.plot(curve.lengths, curve.values, color=colour, marker=marker, ms=4, lw=1.5)
    low, high = report.lengths[0], report.lengths[-1]
    axes.set_xlim(low / 1.1, high * 1.15)
    axes.set_xticks(report.lengths, [f"{length:,}" for length in report.lengths])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axes.set_xlabel("tokens")
    axes.set_title(f"{quantity.name}, {quantity.unit}", loc="left")
    axes.grid(visible=True, color="0.92")
    axes.spines[["top", "right"]].set_visible(False)
    if styles:
        draw_guides(axes, report.lengths, [each for curve in curves for each in curve.values])
        name_lines(axes, styles)


def draw_guides(axes: Any, lengths: Sequence[int], values: Sequence[float]) -> None:
    """Grey lines that grow as the theories say: the linear one below all, the square one above."""
    top = max(values)
    axes.set_ylim(min(values) / 2.5, top * 2.0)
    starts = {GUIDES[0]: min(values) / 1.6, GUIDES[1]: top / 30}
    for growth in GUIDES:
        ends = np.geomspace(lengths[0], lengths[-1], 50)
        heights = starts[growth] * (ends / ends[0]) ** growth.power
        shown = heights <= top * 2.0
        axes.plot(ends[shown], heights[shown], color="0.6", lw=1, ls=(0, (5, 3)), zorder=0)
        last = (ends[shown][-1], heights[shown][-1])
        axes.annotate(
            str(growth).replace("n^2", "n²"),
            xy=last,
            xytext=(-4, 2),
            textcoords="offset points",
            ha="right",
            va="bottom",
            color="0.45",
            style="italic",
        )


def name_lines(axes: Any, styles: Sequence[tuple[Curve, Any, str]]) -> None:
    """A label a line beside the panel, in the order of the lines' ends, each joined to its own."""
    to_axes = axes.transData + axes.transAxes.inverted()
    ends = [to_axes.transform((curve.lengths[-1], curve.values[-1]))[1] for curve, _, _ in styles]
    heights = apart(ends, gap=LABEL_IN / (0.8 * HEIGHT_IN))
    for (curve, colour, _), height in zip(styles, heights, strict=True):
        axes.annotate(
            label(curve),
            xy=(curve.lengths[-1], curve.values[-1]),
            xytext=(1.03, height),
            textcoords="axes fraction",
            va="center",
            fontsize=9,
            color=0.6 * colour[:3],
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "lw": 0.7,
                "shrinkB": 4,
                "relpos": (0.0, 0.5),
            },
            annotation_clip=False,
        )


def label(curve: Curve) -> str:
    """The operator, its slope, and that of the theory."""
    if curve.slope is None:
        return curve.operator
    return f"{curve.operator}  {curve.slope:.2f} ({curve.expected:.2g})"


def apart(places: Sequence[float], *, gap: float) -> list[float]:
    """Places at least `gap` from each other and in the same order, moved up or down together."""
    order = np.argsort(places)
    groups: list[list[float]] = []
    for number, index in enumerate(order):
        groups.append([places[index] - number * gap])
        while len(groups) > 1 and np.mean(groups[-2]) > np.mean(groups[-1]):
            groups[-2:] = [groups[-2] + groups[-1]]
    moved = [float(np.mean(group)) for group in groups for _ in group]
    found = [0.0] * len(places)
    for number, index in enumerate(order):
        found[index] = moved[number] + number * gap
    return found
