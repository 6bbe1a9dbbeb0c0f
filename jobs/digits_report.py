"""The results of `farreach bench digits`: tables to print and to paste, JSON, and a picture."""

import json
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from jobs.digits_costs import Cost
from jobs.digits_picture import picture
from jobs.digits_training import Setup
from jobs.digits_verdict import REFERENCE, Score, sentence
from jobs.settings import to_dict

TABLES, PICTURE, JSON = "digits.md", "digits.png", "digits.json"
COLUMNS = ("operator", "right", "difference", "", "tokens/s", "peak memory", "parameters", "rate")
PRINTED = 6
"""Columns that fit on a terminal."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What is known of every model."""

    scores: tuple[Score, ...]
    costs: dict[tuple[str, str], Cost]
    parameters: dict[tuple[str, str], int]
    num_digits: int
    """That the test is made of."""
    setup: Setup
    seeds: tuple[int, ...]

    @property
    def bodies(self) -> tuple[str, ...]:
        """In the order of the scores."""
        return tuple(dict.fromkeys(score.body for score in self.scores))

    @property
    def rule(self) -> str:
        """How it was measured, and when a difference counts."""
        recipe, canvas = self.setup.recipe, self.setup.canvas
        return (
            f"{recipe.steps:,} steps of {recipe.batch} canvases of {canvas.side_px} px. Right: "
            f"mean and deviation of {len(self.seeds)} seeds, over {self.num_digits} held-out "
            f"digits in {recipe.places} places each. Better or worse than softmax: the mean "
            "difference, seed by seed, is larger than twice its standard error and than the "
            f"binomial error of {self.num_digits} digits; neither: not distinguishable. Tokens/s: "
            "patches of canvases, training on one thread. Peak memory: of training steps, and "
            "beside softmax. Rate: the best learning rate on validation digits."
        )

    def rows(self, body: str) -> Iterator[tuple[str, ...]]:
        """The cells of a body's table, best model first."""
        reference = self.costs[body, REFERENCE].peak_bytes
        found = [score for score in self.scores if score.body == body]
        for score in sorted(found, key=lambda each: -each.mean):
            model = (body, score.operator)
            cost = self.costs[model]
            is_reference = score.operator == REFERENCE
            yield (
                score.operator,
                f"{score.mean:.1%} ± {score.spread:.1%}",
                "" if is_reference else f"{score.difference:+.1%}",
                score.verdict if score.verdict in ("better", "worse") else "",
                f"{cost.tokens_per_s:,.0f}",
                f"{cost.peak_bytes / 1e6:.0f} MB, {cost.peak_bytes / reference:.2f}x",
                f"{self.parameters[model]:,}",
                f"{score.learning_rate:g}",
            )


def write(report: Report, folder: Path, *, console: Console) -> None:
    """Print the tables and the verdict; write both, the picture, and all numbers last."""
    show(report, console)
    (folder / TABLES).write_text(markdown(report))
    picture(report.scores, report.costs).savefig(folder / PICTURE, dpi=150)
    (folder / JSON).write_text(json.dumps(as_json(report), indent=2) + "\n")
    console.print(f"written: {folder / TABLES}, {PICTURE}, {JSON}")


def show(report: Report, console: Console) -> None:
    """A table a body, then what is better than softmax."""
    for body in report.bodies:
        table = Table(title=body, box=box.SIMPLE)
        for number, name in enumerate(COLUMNS[:PRINTED]):
            table.add_column(name, justify="left" if number in (0, 3) else "right")
        for row in report.rows(body):
            table.add_row(*row[:PRINTED])
        console.print(table)
    for body in report.bodies:
        console.print(sentence(body, report.scores))


def markdown(report: Report) -> str:
    """The same for a text."""
    parts = []
    for body in report.bodies:
        rows = [COLUMNS, ("---",) * len(COLUMNS), *report.rows(body)]
        lines = ["| " + " | ".join(row) + " |" for row in rows]
        parts += [f"### {body}", "\n".join(lines), sentence(body, report.scores)]
    return "\n\n".join([*parts, report.rule]) + "\n"


def as_json(report: Report) -> dict[str, Any]:
    """Everything, with the settings and the machine."""
    return {
        "models": [
            {
                "body": score.body,
                "operator": score.operator,
                "learning_rate": score.learning_rate,
                "accuracies": list(score.accuracies),
                "mean": score.mean,
                "spread": score.spread,
                "difference": score.difference,
                "needed": score.needed,
                "verdict": score.verdict,
                "parameters": report.parameters[score.body, score.operator],
                "tokens_per_s": report.costs[score.body, score.operator].tokens_per_s,
                "peak_bytes": report.costs[score.body, score.operator].peak_bytes,
            }
            for score in report.scores
        ],
        "verdicts": [sentence(body, report.scores) for body in report.bodies],
        "seeds": list(report.seeds),
        "settings": to_dict(report.setup),
        "machine": {"processor": platform.processor() or platform.machine()}
        | {"torch": torch.__version__, "python": platform.python_version()},
    }
