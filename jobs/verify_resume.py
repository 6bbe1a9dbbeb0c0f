"""Does a training that is killed again and again end as if nothing had happened? Try it here.

Run      farreach verify-resume CONFIG.yaml [key=value ...]
Reads    the settings of `farreach train`, and verify.* beside them
Does     trains verify.steps steps undisturbed, then again under another name while processes of
         that training are killed at random places: workers, the driver (whose command is typed
         again), Ray's own processes; on a cluster (RAY_ADDRESS) workers and the driver only
Compares the images of every step, losses, weights, and the MLflow runs
Prints   the kills and the comparisons; the first difference, if there is one
Writes   verify.output: both trainings, what their drivers said, mlflow.db, verify.json
Exits    0 when all is equal, 1 at a difference or when a training did not end
Needs    what the training needs; about a minute a kill on 2 cores

verify.workers='[2, 1, 2]' kills the driver and starts it with another number of workers in turn;
losses then are compared within verify.tolerance, 1e-5 relative. Dropout draws from other numbers on
other workers, so leave it out.

Example  farreach verify-resume train.yaml verify.kills=5 engine.zero_stage=3
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from fit_model import checks
from jobs.consoles import wide_console
from jobs.errors import MachineFault
from jobs.histories import Comparison, History, compare, read_history
from jobs.kill_plan import VICTIMS, Victim, plan_kills
from jobs.killed_training import Kill, KilledTraining
from jobs.settings import to_dict
from jobs.tracking import SQLITE, require_tracking
from jobs.train_config import TrainConfig
from jobs.training_process import TrainingProcess
from jobs.verify_resume_report import comparisons_table, kills_table
from jobs.whole_folder import require_new
from pipeline.storage import Location

CHANGED_WORKERS_TOLERANCE = 1e-5
STEPS, STEPS_WHEN_WORKERS_CHANGE = 200, 40
NOTICE_S, TELL_S = 5.0, 30.0
"""Until a process that is gone is missed (Ray takes 3.5 s for a raylet), and until a driver has
told of it."""


@dataclass(frozen=True, kw_only=True)
class KillsConfig:
    """How the training is tried."""

    output: str = "verify-resume"
    """A local folder, which is not there yet."""
    steps: int | None = None
    """In place of total_steps: 200, or 40 with `workers`, where rounding in another order moves
    losses apart step by step."""
    kills: int | None = None
    """10; with `workers` one less than there are numbers."""
    seed: int = 0
    """Of the places and the processes."""
    victims: tuple[Victim, ...] = VICTIMS
    workers: tuple[int, ...] = ()
    """Numbers of workers, from one start of the driver to the next; empty for always the same."""
    tolerance: float | None = None
    """Relative, of losses; 0, bit by bit, unless the number of workers changes."""
    checkpoint_every_steps: int = 5
    patience_s: float = 300.0
    """A training without a new step for so long hangs."""

    def __post_init__(self) -> None:
        checks.positive(
            **{
                "verify.steps": self.num_steps,
                "verify.checkpoint_every_steps": self.checkpoint_every_steps,
            }
        )
        if not self.victims:
            raise ValueError(f"verify.victims is empty; choose of {', '.join(VICTIMS)}")
        if self.num_kills < 1 or self.num_kills >= self.num_steps:
            raise ValueError(
                f"verify.kills is {self.num_kills}: at least 1, and less than verify.steps "
                f"{self.num_steps}"
            )
        if self.workers and min(self.workers) < 1:
            raise ValueError(f"verify.workers is {list(self.workers)}: give positive numbers")
        if not self.accepted >= 0.0:
            raise ValueError(f"verify.tolerance is {self.tolerance}: it cannot be negative")
        if not self.patience_s > 0.0:
            raise ValueError(f"verify.patience_s is {self.patience_s:g}: it must be more than 0")

    @property
    def num_steps(self) -> int:
        """That are trained."""
        if self.steps is not None:
            return self.steps
        return STEPS_WHEN_WORKERS_CHANGE if self.workers else STEPS

    @property
    def num_kills(self) -> int:
        """Asked for, or what goes without saying."""
        if self.kills is not None:
            return self.kills
        return max(1, len(self.workers) - 1) if self.workers else 10

    @property
    def killed(self) -> Sequence[Victim]:
        """Another number of workers takes another start of the driver."""
        return ("driver",) if self.workers else self.victims

    @property
    def overrides(self) -> list[list[str]]:
        """Of the driver's starts, in turn; without `workers` there are as many as ever."""
        return [[f"workers.num_workers={each}"] for each in self.workers] or [[]]

    @property
    def accepted(self) -> float:
        """The tolerance that is in force."""
        if self.tolerance is not None:
            return self.tolerance
        return CHANGED_WORKERS_TOLERANCE if len(set(self.workers)) > 1 else 0.0


@dataclass(frozen=True, kw_only=True)
class VerifyResumeConfig(TrainConfig):
    """A training, and how it is tried."""

    verify: KillsConfig = field(default_factory=KillsConfig)


def main(config: VerifyResumeConfig) -> None:
    """Train twice, compare; MachineFault at a difference."""
    console = wide_console()
    asked, output = config.verify, Path(config.verify.output).absolute()
    require_new(Location.of(str(output)), name="verify.output")
    output.mkdir(parents=True)
    store = require_tracking(f"{SQLITE}{output}/mlflow.db")
    undisturbed = training(config, "undisturbed", output, store=store)
    killed = training(config, "killed", output, store=store)
    console.print(
        f"{asked.num_steps} steps undisturbed, then with {asked.num_kills} kills: {output}",
        soft_wrap=True,
    )
    kills = trained(config, undisturbed, killed, console)
    judge(config, undisturbed, killed, kills, console)


def noticed(kills: Sequence[Kill]) -> list[Kill]:
    """Those that the record can tell apart: not one that another follows before it is noticed."""
    return [
        kill
        for kill, after in zip(kills, [*kills[1:], None], strict=True)
        if kill.typed_again
        or after is None
        or after.at_s - kill.at_s > (TELL_S if after.typed_again else NOTICE_S)
    ]


def judge(
    config: VerifyResumeConfig,
    undisturbed: TrainingProcess,
    killed: TrainingProcess,
    kills: Sequence[Kill],
    console: Console,
) -> None:
    """Compare what both left; MachineFault that names the first difference."""
    asked = config.verify
    found = compare(
        *(history(config, each) for each in (undisturbed, killed)),
        total_steps=asked.num_steps,
        tolerance=asked.accepted,
        # before the first checkpoint it may begin afresh, and at its end have nothing left to do
        restarts=sum(
            each.moment in ("training", "saving") and each.step > asked.checkpoint_every_steps
            for each in noticed(kills)
        ),
    )
    console.print(kills_table(kills))
    console.print(comparisons_table(found))
    write(killed.logs, config, kills, found)
    for each in found:
        if each.is_different:
            raise MachineFault(f"{each.what} differ: {each.difference} (see {killed.logs})")
    if len(kills) < asked.num_kills:
        raise MachineFault(
            f"training was over after {len(kills)} of {asked.num_kills} kills: "
            "take a larger verify.steps"
        )
    console.print(
        f"equal after {len(kills)} kills; wrote {killed.logs}/verify.json", soft_wrap=True
    )


def training(config: VerifyResumeConfig, part: str, output: Path, *, store: str) -> TrainingProcess:
    """One of the two: the user's, shorter, every step recorded, and registered nowhere."""
    settings = to_dict(config)
    asked = settings.pop("verify")
    settings |= {
        "name": f"{config.name}-{part}",
        "total_steps": config.verify.num_steps,
        "register_as": None,
        "storage_path": config.storage_path
        if "://" in config.storage_path
        else str(output / "runs"),
    }
    settings["record"] |= {
        "trace": "images",
        "log_every_steps": 1,
        "checkpoint_every_steps": asked["checkpoint_every_steps"],
    }
    return TrainingProcess(settings=settings, logs=output, store=store)


def trained(
    config: VerifyResumeConfig,
    undisturbed: TrainingProcess,
    killed: TrainingProcess,
    console: Console,
) -> list[Kill]:
    """Both trainings to their ends; whatever happens, nothing of them is left running."""
    asked = config.verify
    try:
        with console.status("training undisturbed"):
            taken_s = undisturbed.run_to_its_end()
        console.print(f"undisturbed: {taken_s:.0f} s")
        trial = KilledTraining(
            training=killed,
            patience_s=asked.patience_s,
            overrides=asked.overrides,
            tell=lambda line: console.print(line, soft_wrap=True),
        )
        plan = plan_kills(
            kills=asked.num_kills, steps=asked.num_steps, victims=asked.killed, seed=asked.seed
        )
        with console.status("training, and killing it"):
            return trial.run(plan)
    finally:
        undisturbed.clear_away()
        killed.clear_away()


def history(config: VerifyResumeConfig, training: TrainingProcess) -> History:
    """What a training left."""
    return read_history(
        training.folder, experiment=config.experiment, name=training.name, store=training.store
    )


def write(
    output: Path, config: VerifyResumeConfig, kills: Sequence[Kill], found: Sequence[Comparison]
) -> None:
    """Everything that was found, as JSON."""
    whole: dict[str, Any] = {
        "settings": to_dict(config),
        "kills": [asdict(each) for each in kills],
        "comparisons": [asdict(each) | {"equal": each.difference is None} for each in found],
    }
    place = Location.of(str(output)).child("verify.json")
    place.write_bytes(json.dumps(whole, indent=1).encode())


if __name__ == "__main__":
    from jobs.runner import run_entry

    run_entry(VerifyResumeConfig, main, "verify-resume")
