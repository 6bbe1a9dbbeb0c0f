"""`farreach train` as a user types it, in a process of its own; started again when it is killed."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from jobs.checkpoint_folders import FOLDER
from jobs.errors import MachineFault, UserError
from jobs.manifests import MANIFEST
from jobs.trace import read_trace
from jobs.victims import end, family
from pipeline.storage import Location

POLL_S = 0.02
GIVEN_UP, USERS_MISTAKE = 1, 2
"""Exit codes of a driver whose machine let it down, and of one that was told nonsense."""
MOST_FALSE_STARTS = 2
"""A busy machine may be too slow for Ray to start on it."""


@dataclass(kw_only=True)
class TrainingProcess:
    """One training: its settings, where it writes, and its driver while there is one."""

    settings: dict[str, Any]
    """As in a file for `farreach train`."""
    logs: Path
    """Folder of the settings and of what each driver says."""
    store: str
    """Of MLflow."""
    starts: int = 0
    known: dict[int, psutil.Process] = field(default_factory=dict)
    """All processes that were ever seen to descend from a driver of this training."""

    _driver: psutil.Popen | None = None

    @property
    def driver(self) -> psutil.Popen:
        """The newest one."""
        if self._driver is None:
            raise RuntimeError(f"{self.name} was not started")
        return self._driver

    @property
    def name(self) -> str:
        """Of the training."""
        return str(self.settings["name"])

    @property
    def folder(self) -> Location:
        """Where the training leaves its traces."""
        return Location.of(self.settings["storage_path"]).child(self.name)

    def start(self, overrides: Sequence[str] = ()) -> None:
        """Type the command."""
        path = self.logs / f"{self.name}.yaml"
        # JSON is YAML
        path.write_text(json.dumps(self.settings, indent=1), encoding="utf-8")
        self.starts += 1
        with self.log.open("wb") as log:
            self._driver = psutil.Popen(
                [sys.executable, "-m", "jobs.cli", "train", str(path), *overrides],
                env=os.environ | {"MLFLOW_TRACKING_URI": self.store},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def log(self) -> Path:
        """What the newest driver says."""
        return self.logs / f"{self.name}-{self.starts:02d}.log"

    def look(self) -> None:
        """Remember the processes of this training, for they may outlive their driver."""
        if self._driver is not None:
            self.known |= {each.pid: each for each in family(self.driver)}

    def steps(self) -> int:
        """How many are in the record."""
        trace = read_trace(str(self.folder))
        return trace[-1].step if trace else 0

    def ended(self) -> int | None:
        """The driver's exit code; None while it runs."""
        return self.driver.poll()

    def is_saving(self) -> bool:
        """Whether a checkpoint is begun and not whole, as far as one can see from here."""
        names = self.folder.child(FOLDER).files()
        begun = {name.split("/")[0] for name in names}
        whole = {name.split("/")[0] for name in names if name.endswith(f"/{MANIFEST}")}
        return max(begun, default="") > max(whole, default="")

    def fault(self, code: int) -> Exception:
        """Why the driver ended, out of what it said last."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        said = lines[-1] if lines else "it said nothing"
        kind = UserError if code == USERS_MISTAKE else MachineFault
        return kind(f"{self.name} ended with {code}: {said} (see {self.log})")

    def run_to_its_end(self) -> float:
        """Train undisturbed; gives the seconds it took."""
        started_s = time.monotonic()
        self.start()
        while (code := self.ended()) != 0:
            time.sleep(POLL_S)
            if code is None:
                continue
            if code != GIVEN_UP or self.steps() or self.starts > MOST_FALSE_STARTS:
                raise self.fault(code)
            self.start()
        return time.monotonic() - started_s

    def clear_away(self) -> None:
        """End what is left of all its processes."""
        self.look()
        end(list(self.known.values()))
