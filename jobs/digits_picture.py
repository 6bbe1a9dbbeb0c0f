"""Accuracy against speed, a panel a body and a point an operator."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from jobs.digits_costs import Cost
from jobs.digits_verdict import REFERENCE, Score

COLOURS = {
    "reference": "black",
    "better": "tab:green",
    "not distinguishable": "tab:grey",
    "worse": "tab:red",
}
LINE_SHARE = 0.045
"""Height of a label, as a share of the panel's."""


def picture(scores: Sequence[Score], costs: Mapping[tuple[str, str], Cost]) -> Figure:
    """Means with their standard deviations; labels stand in a column of their own."""
    bodies = list(dict.fromkeys(score.body for score in scores))
    figure = Figure(figsize=(7 * len(bodies), 5.5), layout="constrained")
    panels: Any = figure.subplots(1, len(bodies), squeeze=False)[0]
    for axes, body in zip(panels, bodies, strict=True):
        found = sorted((each for each in scores if each.body == body), key=lambda each: each.mean)
        speeds = [costs[body, each.operator].tokens_per_s / 1e3 for each in found]
        for each, speed in zip(found, speeds, strict=True):
            axes.errorbar(
                speed,
                each.mean,
                yerr=each.spread,
                color=COLOURS[each.verdict],
                marker="o",
                capsize=3,
            )
            if each.operator == REFERENCE:
                axes.axhline(each.mean, color="black", linewidth=0.5)
        label(axes, found, speeds)
        axes.set(title=body, xlabel="thousand tokens a second, training on one thread")
        axes.set_ylabel("held-out canvases answered right")
        axes.yaxis.set_major_formatter("{x:.0%}")
    shown = {score.verdict: COLOURS[score.verdict] for score in scores}
    handles = [
        panels[0].plot([], [], "o", color=colour, label="softmax" if name == "reference" else name)[
            0
        ]
        for name, colour in shown.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure


def label(axes: Any, scores: Sequence[Score], speeds: Sequence[float]) -> None:
    """Names right of all points, level with theirs where there is room, and lines to them."""
    low, high = axes.get_ylim()
    left, right = axes.get_xlim()
    axes.set_xlim(left, right + 0.45 * (right - left))
    axes.set_ylim(low, high)
    means = np.array([(each.mean - low) / (high - low) for each in scores])
    heights = apart(means, least=LINE_SHARE)
    for each, speed, height in zip(scores, speeds, heights, strict=True):
        axes.annotate(
            each.operator,
            xy=(speed, each.mean),
            xytext=(right + 0.08 * (right - left), low + height * (high - low)),
            va="center",
            color=COLOURS[each.verdict],
            arrowprops={"arrowstyle": "-", "color": "lightgrey", "linewidth": 0.7},
        )


def apart(heights: NDArray[np.float64], *, least: float) -> NDArray[np.float64]:
    """Rising heights, moved as little as a pass up and one down do until `least` apart."""
    moved = heights.copy()
    for number in range(1, len(moved)):
        moved[number] = max(moved[number], moved[number - 1] + least)
    over = max(0.0, moved[-1] - 0.97)
    moved[-1] -= over
    for number in range(len(moved) - 2, -1, -1):
        moved[number] = min(moved[number], moved[number + 1] - least)
    return moved
