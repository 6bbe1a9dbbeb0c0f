"""What came of `farreach bench train`: a table, verdicts, JSON and a picture."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from jobs.operators_report import machine
from jobs.train_bench_steps import Pair, Spent

CHECKPOINT_BAR, GUARD_BAR = 0.05, 0.01
"""Shares of a run's time that they may cost."""
NORMAL_95 = 1.96


@dataclass(frozen=True, kw_only=True)
class Cost:
    """A share of the time of a run, as the median over pairs and how sure that is."""

    name: str
    share: float
    lowest: float
    """With `highest`: where the median lies, 95 times of 100."""
    highest: float
    extra_ms: float
    """For one checkpoint, or one step under guard."""
    bar: float | None = None
    """What it may be; None where nothing was asked for."""

    def __str__(self) -> str:
        said = (
            f"{self.name}: {self.share:.2%} of the time ({self.lowest:.2%} to {self.highest:.2%})"
        )
        if self.bar is None:
            return said
        verdict = "yes" if self.share < self.bar else "NO"
        return f"{said}, less than {self.bar:.0%} asked for: {verdict}"


@dataclass(frozen=True, kw_only=True)
class Report:
    """All that was measured."""

    spent: Spent
    every_steps: int
    """Between two checkpoints."""
    block_steps: int
    first_start_s: float
    """From nothing to the first step, on a Ray that is there."""
    workers_again_s: float
    """The same from a checkpoint."""
    driver_again_s: float
    """The same when the driver is started again, too."""
    setting: str

    @property
    def step_s(self) -> float:
        """Of a step without anything, the median."""
        blocks = [*self.spent.background, *self.spent.foreground]
        return median(each.without for each in blocks) / self.block_steps

    def costs(self) -> list[Cost]:
        """Of checkpoints in the background and in the foreground, and of the guard."""
        run_s = self.every_steps * self.step_s
        every = f"a checkpoint every {self.every_steps} steps"
        return [
            cost(f"{every}, in the background", self.spent.background, run_s, bar=CHECKPOINT_BAR),
            cost(f"{every}, in the foreground", self.spent.foreground, run_s),
            cost("the guard", self.spent.guard, self.guarded_step_s, bar=GUARD_BAR),
        ]

    @property
    def guarded_step_s(self) -> float:
        """Of a step without the guard, the median."""
        return median(each.without for each in self.spent.guard)


def cost(name: str, pairs: Sequence[Pair], of_s: float, *, bar: float | None = None) -> Cost:
    """What comes on top of so many seconds, by pairs of the same work with it and without."""
    extra = sorted(each.with_it - each.without for each in pairs)
    # ranks between which the median lies, whatever the distribution
    reach = NORMAL_95 * math.sqrt(len(extra)) / 2
    low = max(0, math.floor((len(extra) - 1) / 2 - reach))
    high = min(len(extra) - 1, math.ceil((len(extra) - 1) / 2 + reach))
    return Cost(
        name=name,
        share=median(extra) / of_s,
        lowest=extra[low] / of_s,
        highest=extra[high] / of_s,
        extra_ms=1e3 * median(extra),
        bar=bar,
    )


def table(report: Report) -> Table:
    """A row a cost."""
    drawn = Table(title="of the time of a run", title_justify="left")
    drawn.add_column("")
    for name in ("share", "from", "to", "ms each", "pairs"):
        drawn.add_column(name, justify="right")
    spent = report.spent
    counts = map(len, (spent.background, spent.foreground, spent.guard))
    for each, pairs in zip(report.costs(), counts, strict=True):
        drawn.add_row(
            each.name,
            f"{each.share:.2%}",
            f"{each.lowest:.2%}",
            f"{each.highest:.2%}",
            f"{each.extra_ms:.1f}",
            str(pairs),
        )
    return drawn


def show(report: Report, console: Console) -> None:
    """The table, and what it comes to."""
    console.print(
        f"the demo's training, {report.setting}: {1e3 * report.step_s:.0f} ms a step; medians of "
        "pairs, and where they lie 95 times of 100"
    )
    console.print(table(report))
    for each in report.costs():
        console.print(str(each))
    console.print(
        f"until the first step: {report.first_start_s:.1f} s at first; from a checkpoint "
        f"{report.workers_again_s:.1f} s when workers start again, {report.driver_again_s:.1f} s "
        "when the driver does, too"
    )


def as_json(report: Report, *, settings: dict[str, Any]) -> str:
    """Every pair, and what it was measured on."""
    whole = {
        "settings": settings,
        "machine": machine(),
        "costs": [asdict(each) for each in report.costs()],
        "step_s": report.step_s,
        **asdict(report),
    }
    return json.dumps(whole, indent=1)


def picture(report: Report) -> Figure:
    """A bar a cost, a line where it may reach."""
    figure = Figure(figsize=(7, 3), layout="constrained")
    axes: Any = figure.subplots()
    for place, each in enumerate(reversed(report.costs())):
        axes.barh(place, 100 * each.share, color="#3d5a80", height=0.5)
        axes.plot([100 * each.lowest, 100 * each.highest], [place, place], color="0.2", lw=1.5)
        if each.bar is not None:
            axes.plot([100 * each.bar] * 2, [place - 0.35, place + 0.35], color="#c1292e", lw=2)
    axes.set_yticks(range(3), [each.name for each in reversed(report.costs())])
    axes.set_xlabel("% of the time of a run; red: what it may cost")
    axes.grid(visible=True, axis="x", color="0.92")
    axes.spines[["top", "right"]].set_visible(False)
    return figure
