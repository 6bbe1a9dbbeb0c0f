"""Pictures for the record of a run."""

from collections.abc import Sequence
from itertools import pairwise
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


def noise_picture(losses: NDArray[np.float64], times: Sequence[float]) -> Figure:
    """Denoising losses [images, times] against time: their mean, and where half of them lie."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes: Any = figure.subplots()
    low, high = np.quantile(losses, [0.25, 0.75], axis=0)
    axes.fill_between(times, low, high, alpha=0.3, label="half of the images")
    axes.plot(times, losses.mean(axis=0), marker="o", label="mean")
    axes.set_xlabel("time: 0 is the picture, 1 is noise")
    axes.set_ylabel("denoising loss")
    axes.set_ylim(bottom=0)
    axes.legend()
    return figure


def bits_picture(bits: NDArray[np.float64], mean: float) -> Figure:
    """How many images need how many bits a sub-pixel."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes: Any = figure.subplots()
    axes.hist(bits, bins=min(40, max(5, len(bits) // 5)))
    axes.axvline(mean, color="black", linewidth=1, label=f"{mean:.3f} over all sub-pixels")
    axes.set_xlabel("bits a sub-pixel")
    axes.set_ylabel("images")
    axes.legend()
    return figure


def sizes_picture(edges_px: Sequence[float], counts: Sequence[int]) -> Figure:
    """How many images have a longer side between two edges."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes: Any = figure.subplots()
    # images of one size have one bar of no width of their own
    widths = [max(high - low, 1.0) for low, high in pairwise(edges_px)]
    axes.bar(edges_px[:-1], counts, width=widths, align="edge", edgecolor="white")
    axes.set_xlabel("longer side, px")
    axes.set_ylabel("images")
    return figure
