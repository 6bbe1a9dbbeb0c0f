"""What came of `farreach bench scaling`: a table, JSON and a picture."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from jobs.operators_report import machine, rounded
from jobs.scaling_steps import Spent


@dataclass(frozen=True, kw_only=True)
class Report:
    """Seconds by number of workers, the smallest first."""

    spent: Mapping[int, Spent]
    setting: str

    def ideal_s(self, workers: int) -> float:
        """Outside meetings, if the work of the fewest workers were divided and nothing lost."""
        fewest = min(self.spent)
        return self.spent[fewest].outside_s * fewest / workers

    def efficiency(self, workers: int) -> float:
        """Share of the ideal speed that is reached outside meetings."""
        return self.ideal_s(workers) / self.spent[workers].outside_s


def table(report: Report) -> Table:
    """A row a number of workers."""
    drawn = Table(title="seconds", title_justify="left")
    names = ("workers", "step", "meetings", "outside", "ideal", "of the ideal", "gradients")
    for name in names:
        drawn.add_column(name, justify="right")
    for workers, spent in report.spent.items():
        drawn.add_row(
            str(workers),
            rounded(spent.step_s),
            rounded(spent.meetings_s),
            rounded(spent.outside_s),
            rounded(report.ideal_s(workers)),
            f"{report.efficiency(workers):.0%}",
            rounded(spent.gradients_s),
        )
    return drawn


def show(report: Report, console: Console) -> None:
    """The table and how to read it."""
    console.print(f"one training step of one image: {report.setting}")
    console.print(table(report))
    console.print("step: both passes and the sum of gradients; outside: passes without meetings")


def as_json(report: Report, *, settings: dict[str, Any]) -> str:
    """Every figure, and what it was measured on."""
    points = [
        {
            "workers": workers,
            **asdict(spent),
            "step_s": spent.step_s,
            "outside_s": spent.outside_s,
            "efficiency_outside": report.efficiency(workers),
        }
        for workers, spent in report.spent.items()
    ]
    return json.dumps({"settings": settings, "machine": machine(), "points": points}, indent=1)


def picture(report: Report) -> Figure:
    """Seconds against workers, on logarithmic axes."""
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes: Any = figure.subplots()
    workers = list(report.spent)
    lines = {
        "step": ([each.step_s for each in report.spent.values()], "#0b6e4f", "-"),
        "outside meetings": ([each.outside_s for each in report.spent.values()], "#3d5a80", "-"),
        "ideal": ([report.ideal_s(each) for each in workers], "0.5", "--"),
        "meetings": ([each.meetings_s for each in report.spent.values()], "#c1292e", "-"),
    }
    for name, (seconds, colour, style) in lines.items():
        axes.plot(workers, seconds, color=colour, ls=style, marker="o", ms=4, label=name)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(workers, [str(each) for each in workers])
    axes.set_xlabel("workers that share the image")
    axes.set_title("seconds", loc="left")
    axes.grid(visible=True, color="0.92")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.suptitle(report.setting, fontsize=9)
    return figure
