"""What came of `farreach bench memory`: tables and JSON; the picture is `memory_picture`."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from jobs.memory_steps import StepCost
from jobs.operator_growth import slope
from jobs.operators_report import machine, rounded

PAPER_SIDE_PX, PAPER_GB = 6400, 16.0
"""Chen & Li 2023, arXiv:2305.12689: 160,000 tokens trained within the memory of one device."""
LEAST_TOKENS = 10_000
"""Powers are fitted from here on."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """A variant on images of a side: its cost, or why there is none."""

    variant: str
    side_px: int
    tokens: int
    macs: int
    """Multiply-adds of a step."""
    macs_with_again: int
    """With what is computed again."""
    expected_bytes: int
    """By arithmetic: weights, masters, moments, gradients, activations."""
    cost: StepCost | None = None
    left_out: str | None = None


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """One of the things that are compared."""

    name: str
    unit: str
    of: Callable[[StepCost], float]


MEMORY = Quantity(name="peak memory", unit="GB", of=lambda cost: cost.peak_bytes / 1e9)
TIME = Quantity(name="time", unit="s", of=lambda cost: cost.seconds)
QUANTITIES = (
    MEMORY,
    Quantity(name="peak anonymous memory", unit="GB", of=lambda cost: cost.anonymous_bytes / 1e9),
    Quantity(
        name="beyond program, weights, gradients and optimizer",
        unit="GB",
        of=lambda cost: cost.beyond_bytes / 1e9,
    ),
    TIME,
)


@dataclass(frozen=True, kw_only=True)
class Report:
    """All points, the smallest images first."""

    points: list[Point]
    setting: str

    @property
    def variants(self) -> list[str]:
        """Without repetition."""
        return list(dict.fromkeys(point.variant for point in self.points))

    @property
    def sides(self) -> list[int]:
        """Without repetition."""
        return sorted({point.side_px for point in self.points})

    def of(self, variant: str) -> list[Point]:
        """What was measured of a variant."""
        return [each for each in self.points if each.variant == variant and each.cost]

    def power(self, variant: str) -> float | None:
        """The fitted p of time = tokens^p; None where fewer than two sides were measured."""
        points = [each for each in self.of(variant) if each.tokens >= LEAST_TOKENS]
        times = [each.cost.seconds for each in points if each.cost]
        return slope([each.tokens for each in points], times)

    def share(self, point: Point) -> float | None:
        """Of the speed of bare products in between, with what was computed again."""
        cost = point.cost
        if cost is None or cost.product_flops_per_s <= 0.0:
            return None
        return 2 * point.macs_with_again / cost.seconds / cost.product_flops_per_s


def table(report: Report, quantity: Quantity) -> Table:
    """A row a variant, a column a side."""
    drawn = Table(title=f"{quantity.name}, {quantity.unit}", title_justify="left")
    drawn.add_column("")
    for side_px in report.sides:
        drawn.add_column(f"{side_px:,} px", justify="right")
    for variant in report.variants:
        points = [each for each in report.points if each.variant == variant]
        cells = [
            rounded(quantity.of(each.cost)) if each.cost else each.left_out or "" for each in points
        ]
        drawn.add_row(variant, *cells)
    return drawn


def show(report: Report, console: Console) -> None:
    """All tables, and what else was found."""
    console.print(f"one training step: {report.setting}")
    for quantity in QUANTITIES:
        console.print(table(report, quantity))
    for variant in report.variants:
        console.print(f"{variant}: {summary(report, variant)}")
    console.print(f"the paper trains {PAPER_SIDE_PX} px within {PAPER_GB:g} GB")


def summary(report: Report, variant: str) -> str:
    """How time grows, and how much of the machine is used on the largest image."""
    points = report.of(variant)
    if not points:
        return "not measured"
    share, power = report.share(points[-1]), report.power(variant)
    cost = points[-1].cost
    reached = ""
    if share is not None and cost is not None:
        bare = f"the {cost.product_flops_per_s / 1e9:,.0f} GFLOP/s of bare matrix products"
        reached = f"{share:.0%} of {bare} in between at {points[-1].side_px:,} px"
    grown = "" if power is None else f"; time grows as tokens^{power:.2f}"
    return reached + grown


def as_json(report: Report, *, settings: dict[str, Any]) -> str:
    """Every figure, and what it was measured on."""
    points = [asdict(each) | {"share_of_product": report.share(each)} for each in report.points]
    whole = {
        "settings": settings,
        "machine": machine(),
        "powers": {variant: report.power(variant) for variant in report.variants},
        "paper": {"side_px": PAPER_SIDE_PX, "gb": PAPER_GB},
        "points": points,
    }
    return json.dumps(whole, indent=1)
