"""What came of `farreach bench operators`: tables and JSON; the picture is `operators_picture`."""

import json
import os
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from jobs.operator_costs import Cost
from jobs.operator_growth import Growth, Law, law_of, slope


@dataclass(frozen=True, kw_only=True)
class Point:
    """An operator at a length: costs, or why there are none."""

    operator: str
    length: int
    left_out: str | None = None
    peak_bytes: int = 0
    rounds: tuple[Cost, ...] = ()

    @property
    def seconds(self) -> float:
        """The median over the rounds."""
        return median(each.seconds for each in self.rounds)


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """One of the two things that are compared."""

    name: str
    unit: str
    of: Callable[[Point], float]
    growth: Callable[[Law], Growth]


QUANTITIES = (
    Quantity(
        name="time",
        unit="ms",
        of=lambda point: 1e3 * point.seconds,
        growth=lambda law: law.time,
    ),
    Quantity(
        name="peak memory",
        unit="MB",
        of=lambda point: point.peak_bytes / 1e6,
        growth=lambda law: law.memory,
    ),
)


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A quantity of an operator against length, as far as it was measured."""

    operator: str
    lengths: list[int]
    values: list[float]
    slope: float | None
    """Of the longest lengths; None where fewer than two were measured."""
    expected: float | None
    """The slope of the theory's growth over the same lengths."""
    growth: Growth


@dataclass(frozen=True, kw_only=True)
class Report:
    """All pairs, in the order of the settings."""

    points: list[Point]
    slope_lengths: int
    setting: str
    """What all pairs have in common, in words."""

    @property
    def operators(self) -> list[str]:
        """Without repetition."""
        return list(dict.fromkeys(point.operator for point in self.points))

    @property
    def lengths(self) -> list[int]:
        """Without repetition."""
        return sorted({point.length for point in self.points})

    def curve(self, operator: str, quantity: Quantity) -> Curve:
        """What was measured of an operator, and its slope."""
        points = [p for p in self.points if p.operator == operator and not p.left_out]
        lengths, values = [p.length for p in points], [quantity.of(p) for p in points]
        last = slice(-self.slope_lengths, None)
        growth = quantity.growth(law_of(operator))
        return Curve(
            operator=operator,
            lengths=lengths,
            values=values,
            slope=slope(lengths[last], values[last]),
            expected=slope(lengths[last], [growth.at(length) for length in lengths[last]]),
            growth=growth,
        )


def table(report: Report, quantity: Quantity) -> Table:
    """A row an operator, a column a length, and the slopes."""
    drawn = Table(title=f"{quantity.name}, {quantity.unit}", title_justify="left")
    drawn.add_column("operator")
    for length in report.lengths:
        drawn.add_column(f"{length:,}", justify="right")
    for name in ("slope", "theory", "grows as"):
        drawn.add_column(name, justify="right")
    for operator in report.operators:
        points = [point for point in report.points if point.operator == operator]
        cells = [point.left_out or rounded(quantity.of(point)) for point in points]
        curve = report.curve(operator, quantity)
        slopes = ["" if each is None else f"{each:.2f}" for each in (curve.slope, curve.expected)]
        drawn.add_row(operator, *cells, *slopes, str(curve.growth))
    return drawn


def rounded(value: float) -> str:
    """Three digits, and all of those before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def show(report: Report, console: Console) -> None:
    """Both tables."""
    console.print(f"{report.setting}, forward and backward")
    for quantity in QUANTITIES:
        console.print(table(report, quantity))
    console.print(f"slope: over the {report.slope_lengths} longest lengths that were measured")


def as_json(report: Report, *, settings: dict[str, Any]) -> str:
    """Every figure of every round, the slopes, and what they were measured on."""
    points = []
    for point in report.points:
        figures = {"operator": point.operator, "length": point.length}
        if point.left_out:
            points.append({**figures, "left_out": point.left_out})
            continue
        rounds = [asdict(each) for each in point.rounds]
        measured = {"seconds": point.seconds, "peak_bytes": point.peak_bytes, "rounds": rounds}
        points.append({**figures, **measured})
    slopes = []
    for operator in report.operators:
        found: dict[str, Any] = {"operator": operator, "source": law_of(operator).source}
        for quantity in QUANTITIES:
            curve = report.curve(operator, quantity)
            found[quantity.name.replace(" ", "_")] = {
                "slope": curve.slope,
                "theory": curve.expected,
                "growth": str(curve.growth),
                "lengths": curve.lengths[-report.slope_lengths :],
            }
        slopes.append(found)
    whole = {"settings": settings, "machine": machine(), "slopes": slopes, "points": points}
    return json.dumps(whole, indent=1)


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
