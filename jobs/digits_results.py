"""The folder of `farreach bench digits`: settings, and a line for every run that ended.

`settings.json` is written first and holds what every run depends on; a bench with other settings
is refused. A line that an interruption left half written is cut off.
"""

import json
from pathlib import Path
from typing import Any

from jobs.digits_training import Outcome, Run
from jobs.errors import UserError

SETTINGS, RESULTS = "settings.json", "results.jsonl"


class Results:
    """Outcomes by run, on disk and in memory."""

    def __init__(self, folder: Path, *, settings: dict[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()) and not (folder / SETTINGS).exists():
            raise UserError(
                f"{folder} holds something else than runs of this bench: choose another output"
            )
        require_same(folder / SETTINGS, settings)
        self.path = folder / RESULTS
        self.outcomes: dict[Run, Outcome] = {}
        if self.path.exists():
            written = self.path.read_text()
            whole = written[: written.rfind("\n") + 1]
            if whole != written:
                self.path.write_text(whole)
            for line in whole.splitlines():
                outcome = Outcome.from_dict(json.loads(line))
                self.outcomes[outcome.run] = outcome

    def add(self, outcome: Outcome) -> None:
        """Keep what came of a run."""
        with self.path.open("a") as file:
            file.write(json.dumps(outcome.to_dict()) + "\n")
        self.outcomes[outcome.run] = outcome


def require_same(path: Path, settings: dict[str, Any]) -> None:
    """Refuse settings that differ from those of the runs in the folder."""
    if not path.exists():
        path.write_text(json.dumps(settings, indent=2) + "\n")
        return
    there = json.loads(path.read_text())
    different = sorted(
        name for name in {*there, *settings} if there.get(name) != settings.get(name)
    )
    if different:
        name = different[0]
        raise UserError(
            f"the runs in {path.parent} have {name} {there.get(name)}, not {settings.get(name)}: "
            "take another output, or leave this setting as it was"
        )
