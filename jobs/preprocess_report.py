"""What came of `farreach bench preprocess`: a table, JSON and a picture."""

import json
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from jobs.operators_report import machine, rounded


@dataclass(frozen=True, kw_only=True)
class Round:
    """Both ways, one after the other."""

    decode_s: float
    preprocess_s: float


@dataclass(frozen=True, kw_only=True)
class Point:
    """One image."""

    kind: str
    side_px: int
    file_bytes: int
    rounds: list[Round]
    peak_gb: float
    """Of the largest worker."""

    @property
    def megapixels(self) -> float:
        """Of the image."""
        return self.side_px**2 / 1e6

    @property
    def ceiling(self) -> float:
        """Megapixels a second that are decoded and thrown away; the median of the rounds."""
        return self.megapixels / median(each.decode_s for each in self.rounds)

    @property
    def speed(self) -> float:
        """Megapixels a second from file to dataset; the median of the rounds."""
        return self.megapixels / median(each.preprocess_s for each in self.rounds)

    @property
    def share(self) -> float:
        """Of the ceiling of the same round; the median of the rounds."""
        return median(each.decode_s / each.preprocess_s for each in self.rounds)


@dataclass(frozen=True, kw_only=True)
class Report:
    """All images, in the order of the settings."""

    points: list[Point]
    setting: str


def table(report: Report) -> Table:
    """A row an image."""
    drawn = Table(title="megapixels a second", title_justify="left")
    for name in ("image", "side px", "file MB", "decoding alone", "preprocess", "of it", "GB"):
        drawn.add_column(name, justify="left" if name == "image" else "right")
    for point in report.points:
        drawn.add_row(
            point.kind,
            f"{point.side_px:,}",
            rounded(point.file_bytes / 1e6),
            rounded(point.ceiling),
            rounded(point.speed),
            f"{point.share:.0%}",
            f"{point.peak_gb:.2f}",
        )
    return drawn


def show(report: Report, console: Console) -> None:
    """The table and how to read it."""
    console.print(f"from files to a dataset on the disk: {report.setting}")
    console.print(table(report))
    console.print("of it: the median over rounds that take turns; GB: the peak of a worker")


def as_json(report: Report, *, settings: dict[str, Any]) -> str:
    """Every figure, and what it was measured on."""
    points = [
        {
            **asdict(point),
            "ceiling_mpx_s": point.ceiling,
            "preprocess_mpx_s": point.speed,
            "share": point.share,
        }
        for point in report.points
    ]
    return json.dumps({"settings": settings, "machine": machine(), "points": points}, indent=1)


def picture(report: Report) -> Figure:
    """Two bars an image."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes: Any = figure.subplots()
    places = range(len(report.points))
    bars = {
        "decoding alone": (-0.2, [point.ceiling for point in report.points], "0.75"),
        "preprocess": (0.2, [point.speed for point in report.points], "#0b6e4f"),
    }
    for name, (shift, heights, colour) in bars.items():
        axes.bar([place + shift for place in places], heights, 0.38, color=colour, label=name)
    for place, point in enumerate(report.points):
        axes.annotate(f"{point.share:.0%}", (place + 0.2, point.speed), ha="center", va="bottom")
    names = [f"{point.kind}\n{point.side_px:,} px" for point in report.points]
    axes.set_xticks(list(places), names)
    axes.set_title("megapixels a second", loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.suptitle(report.setting, fontsize=9)
    return figure
