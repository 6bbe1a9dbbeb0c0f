"""The trials of a search: trainings in processes of their own, which Ray Tune starts one by one."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray
from ray import tune

from jobs.best import read_best
from jobs.mlflow_store import tracking_uri
from jobs.search_space import Value
from pipeline.lease import AT_WORK
from pipeline.storage import Location

HANDED_ON = ("MLFLOW_", "AWS_")
"""What trials need of the environment, by how the names begin."""
FINISHED_BEFORE = "this run has finished"
"""What a training says that is asked for again."""
NODE_SHARE = 0.001
ORPHAN_S, AGAIN_S = 120.0, 5.0
"""How long a training may live on whose search was killed: it ends when it misses its Ray."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One training of a search."""

    number: int
    values: Mapping[str, Value]
    """What was drawn, by the dotted name of a setting."""
    settings: Mapping[str, Any]
    """All of them."""

    @property
    def folder(self) -> str:
        """storage_path/NAME of its training."""
        return str(Location.of(self.settings["storage_path"]).child(self.settings["name"]))

    def write(self, folder: Path) -> Path:
        """The settings as `farreach train` reads them; JSON is YAML, too."""
        file = folder / f"trial-{self.number:04d}.yaml"
        file.write_text(json.dumps(self.settings, indent=2) + "\n", encoding="utf-8")
        return file


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """How a trial ended."""

    number: int
    value: float | None
    """Its best validation figure; None where there is none."""
    step: int = 0
    reason: str = ""
    """Why there is none."""


class Telling(tune.Callback):
    """Hears of every trial that has ended; what it tells stays in this process."""

    def __init__(self, tell: Callable[[Tuned], None]) -> None:
        self.tell = tell

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
        """Tune's hook."""
        if "tuned" in trial.last_result:
            self.tell(Tuned(**trial.last_result["tuned"]))


def run_trials(
    trials: Sequence[Trial], *, concurrent: int, tell: Callable[[Tuned], None]
) -> list[Tuned]:
    """Run them with Ray Tune, so many at a time; `tell` is called as each one ends.

    They are driven from this node, and their workers go where there is room.
    """
    # what Tune itself writes says nothing that the record does not
    os.environ |= {"RAY_CHDIR_TO_TRIAL_DIR": "0", "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1"}
    handed = {name: each for name, each in os.environ.items() if name.startswith(HANDED_ON)}
    handed["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    handed["MLFLOW_TRACKING_URI"] = tracking_uri()

    def train(values: Mapping[str, Any], trials: Sequence[Trial], handed: Any) -> None:
        tune.report({"tuned": asdict(run_trial(trials[values["place"]], handed))})

    here = {"CPU": 0, f"node:{ray.util.get_node_ip_address()}": NODE_SHARE}
    with tempfile.TemporaryDirectory(prefix="farreach-tune-") as folder:
        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(train, trials=trials, handed=handed), here),
            param_space={"place": tune.grid_search(list(range(len(trials))))},
            tune_config=tune.TuneConfig(max_concurrent_trials=concurrent),
            run_config=tune.RunConfig(
                name="tune", storage_path=folder, verbose=0, callbacks=[Telling(tell)]
            ),
        )
        told = [each.metrics["tuned"] for each in tuner.fit() if "tuned" in (each.metrics or {})]
    known = {each["number"]: Tuned(**each) for each in told}
    lost = [Tuned(number=each.number, value=None, reason="its process died") for each in trials]
    return [known.get(each.number, each) for each in lost]


def run_trial(trial: Trial, environment: Mapping[str, str]) -> Tuned:
    """Train in a process of its own; what goes wrong there is a result, too."""
    until_s = time.monotonic() + ORPHAN_S
    code, said = _train(trial, environment)
    while code and AT_WORK in said and time.monotonic() < until_s:
        time.sleep(AGAIN_S)
        code, said = _train(trial, environment)
    if code and FINISHED_BEFORE not in said:
        return Tuned(number=trial.number, value=None, reason=said)
    best = read_best(trial.folder)
    if best is None:
        return Tuned(number=trial.number, value=None, reason="no validation gave a number")
    return Tuned(number=trial.number, value=best.figures[best.figure], step=best.step)


def _train(trial: Trial, environment: Mapping[str, str]) -> tuple[int, str]:
    """Exit code of `farreach train`, and the last line that it said."""
    with tempfile.TemporaryDirectory(prefix="farreach-trial-") as folder:
        done = subprocess.run(  # noqa: S603
            [sys.executable, "-m", "jobs.cli", "train", str(trial.write(Path(folder)))],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=False,
        )
    said = done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"]
    return done.returncode, said[-1]
