"""Pictures for the record of a run."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray


def confusion_picture(confusion: NDArray[np.int64], classes: tuple[str, ...]) -> Figure:
    """Counts of true against predicted classes; the colour is the share of the true class."""
    side_in = max(4.0, 0.6 * len(classes) + 2.0)
    figure = Figure(figsize=(side_in, side_in), layout="constrained")
    axes = figure.subplots()
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    ticks = np.arange(len(classes))
    axes.set_xticks(ticks, classes, rotation=45, ha="right")
    axes.set_yticks(ticks, classes)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    for (row, column), count in np.ndenumerate(confusion):
        colour = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, str(count), ha="center", va="center", color=colour)
    correct = np.trace(confusion) / max(confusion.sum(), 1)
    axes.set_title(f"{correct:.1%} of {confusion.sum()} images right")
    return figure


def prediction_picture(
    truth: NDArray[np.float64], predicted: NDArray[np.float64], name: str
) -> Figure:
    """Predicted against true values of one target."""
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes: Any = figure.subplots()
    low, high = min(truth.min(), predicted.min()), max(truth.max(), predicted.max())
    axes.plot([low, high], [low, high], color="grey", linewidth=1)
    axes.scatter(truth, predicted, s=12)
    axes.set_xlabel(f"true {name}")
    axes.set_ylabel(f"predicted {name}")
    return figure
