"""What came of `farreach verify-resume`: the kills and the comparisons as tables."""

from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from jobs.histories import Comparison
from jobs.killed_training import Kill


def kills_table(kills: Sequence[Kill]) -> Table:
    """A row a kill."""
    drawn = Table(title="kills", title_justify="left")
    for name in ("", "steps done", "s to the next step"):
        drawn.add_column(name, justify="right")
    for name in ("process", "while", "after it"):
        drawn.add_column(name)
    for number, kill in enumerate(kills, start=1):
        waited = kill.to_next_step_s
        drawn.add_row(
            str(number),
            str(kill.step),
            "never" if waited is None else f"{waited:.1f}",
            kill.what,
            kill.moment,
            "same command typed again" if kill.typed_again else "went on by itself",
        )
    return drawn


def comparisons_table(found: Sequence[Comparison]) -> Table:
    """A row a comparison."""
    drawn = Table(title="undisturbed and killed", title_justify="left")
    for name in ("", "compared", "", "first difference"):
        drawn.add_column(name)
    for each in found:
        verdict = "[red]DIFFERENT[/]" if each.is_different else "equal"
        if not each.judged and each.difference is not None:
            verdict = "not judged"
        drawn.add_row(each.what, each.compared, verdict, escape(each.difference or ""))
    return drawn
