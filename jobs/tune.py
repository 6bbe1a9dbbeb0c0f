"""Search for good settings of a training with Ray Tune; each trial is a run below one MLflow run.

Run      farreach tune CONFIG.yaml [key=value ...]
Submit   farreach submit tune CONFIG.yaml [key=value ...] --address http://HEAD:8265
Reads    `train`: the settings of `farreach train`, `validation` among them, whose figure decides;
         `search`: what each trial draws some of them from
Writes   `train.storage_path`/`train.name`: a folder a trial, and best.yaml, the best settings;
         one MLflow run with the table, and a run below it for each trial
Needs    what a training needs, `concurrent` times
Again    trials that have finished are left alone, and one that was killed continues

Example  farreach tune tune.yaml trials=20 train.validation.patience=3
"""

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from jobs.best import Exported
from jobs.cluster import connect, require_lasting
from jobs.errors import MachineFault, UserError
from jobs.mlflow_store import tracking_uri
from jobs.search_space import Domain, Value, draw, laid_over
from jobs.settings import load, to_dict, to_flat_dict
from jobs.standing import goal_of
from jobs.tracking import Run, open_run
from jobs.train_config import TrainConfig
from jobs.trials import Trial, Tuned, run_trials
from pipeline.storage import Location

BEST = "best.yaml"


@dataclass(frozen=True, kw_only=True)
class TuneConfig:
    """One search."""

    train: TrainConfig
    search: Mapping[str, Domain]
    """By the dotted name of a setting of `train`, as optimizer.lr."""
    trials: int = 10
    concurrent: int = 1
    """How many train at a time; more than one needs an MLflow server."""
    seed: int = 0
    """Of what is drawn; more trials begin with the same ones."""

    def __post_init__(self) -> None:
        for name in ("trials", "concurrent"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} must be at least 1")
        if self.seed < 0:
            raise ValueError(f"seed {self.seed} must not be negative")
        if not self.search:
            raise ValueError("search is empty: name a setting, as optimizer.lr, and what to try")
        if self.train.validation is None:
            raise ValueError(
                "train.validation is not set, and its figure says which trial is the best: take "
                "for example train.validation.every_steps=100"
            )

    @property
    def figure(self) -> str:
        """What decides."""
        return self.train.validation.figure if self.train.validation else ""

    @property
    def place(self) -> Location:
        """Of everything that is written."""
        return Location.of(self.train.storage_path).child(self.train.name)


def main(config: TuneConfig) -> Trial:
    """Run all trials, record them, and say which was the best."""
    require_lasting(**{"train.storage_path": config.train.storage_path})
    if config.concurrent > 1 and tracking_uri().startswith("sqlite:"):
        raise UserError(
            f"concurrent {config.concurrent}: trials would write to one SQLite file at the same "
            "time; set MLFLOW_TRACKING_URI to a server (`mlflow server`), or take concurrent=1"
        )
    console = Console(soft_wrap=True, markup=False, highlight=False)
    drawn = draw(config.search, trials=config.trials, seed=config.seed)
    require_trials(config, drawn)
    with open_run(
        config.train.experiment,
        name=config.train.name,
        params=to_flat_dict(config),
    ) as run:
        trials = trials_of(config, drawn, parent_run=run.run_id)
        console.print(f"{len(trials)} trials, {config.concurrent} at a time, below {run.run_id}")
        with connect():
            found = run_trials(
                trials,
                concurrent=config.concurrent,
                tell=lambda each: console.print(line_of(config, drawn[each.number], each)),
            )
        best = best_of(config, found)
        record(config, trials, found, best, run)
    tell(config, trials, found, best, console)
    return trials[best.number]


def trials_of(
    config: TuneConfig, drawn: Sequence[Mapping[str, Value]], *, parent_run: str | None
) -> list[Trial]:
    """A training for each draw, in a folder below that of the search."""
    own = replace(
        config.train,
        storage_path=str(config.place),
        dataset=str(Location.of(config.train.dataset)),
        register_as=None,
        parent_run=parent_run,
    )
    settings = [
        laid_over(to_dict(replace(own, name=f"trial-{number:04d}")), values)
        for number, values in enumerate(drawn)
    ]
    return [
        Trial(number=number, values=values, settings=each)
        for number, (values, each) in enumerate(zip(drawn, settings, strict=True))
    ]


def require_trials(config: TuneConfig, drawn: Sequence[Mapping[str, Value]]) -> None:
    """Refuse a search with a setting that does not exist, or with values that it cannot have."""
    with tempfile.TemporaryDirectory(prefix="farreach-tune-") as folder:
        for trial in trials_of(config, drawn, parent_run=None):
            load(TrainConfig, trial.write(Path(folder)))


def best_of(config: TuneConfig, found: Sequence[Tuned]) -> Tuned:
    """The trial with the best figure, of equal ones the first."""
    ranked = ranking(config, found)
    if not ranked:
        raise MachineFault(f"none of {len(found)} trials has a figure; one: {found[0].reason}")
    return ranked[0]


def ranking(config: TuneConfig, found: Sequence[Tuned]) -> list[Tuned]:
    """Trials with a figure, the best first."""
    sign = {"lower": 1.0, "higher": -1.0}[goal_of(config.figure)]
    known = [(sign * each.value, each.number) for each in found if each.value is not None]
    by_number = {each.number: each for each in found}
    return [by_number[number] for _, number in sorted(known)]


def record(
    config: TuneConfig, trials: Sequence[Trial], found: Sequence[Tuned], best: Tuned, run: Run
) -> None:
    """The table and the best settings, in the parent run and in the search's folder."""
    chosen = replace(config.train, name=f"{config.train.name}-best")
    settings = laid_over(to_dict(chosen), trials[best.number].values)
    config.place.child(BEST).write_bytes((json.dumps(settings, indent=2) + "\n").encode())
    run.log_json(settings, BEST)
    rows = [
        {"settings": dict(trial.values), "figure": config.figure} | asdict(each)
        for trial, each in zip(trials, found, strict=True)
    ]
    run.log_json(rows, "trials.json")
    if best.value is not None:
        run.log_metrics({f"best/{config.figure}": best.value}, step=0)
    run.set_tags({"best_trial": trials[best.number].settings["name"]})


def line_of(config: TuneConfig, values: Mapping[str, Value], result: Tuned) -> str:
    """How one trial ended."""
    given = " ".join(f"{name}={shown(value)}" for name, value in values.items())
    ended = f"failed: {result.reason}"
    if result.value is not None:
        ended = f"validation/{config.figure} {result.value:.6g} after step {result.step}"
    return f"trial {result.number}  {given}  {ended}"


def shown(value: Value) -> str:
    """A value in few digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def tell(
    config: TuneConfig,
    trials: Sequence[Trial],
    found: Sequence[Tuned],
    best: Tuned,
    console: Console,
) -> None:
    """All trials, the best first, and what to type next."""
    table = Table(title=f"{len(trials)} trials of {config.train.name}")
    for name in ("trial", *config.search):
        table.add_column(name)
    table.add_column(f"validation/{config.figure}", justify="right")
    table.add_column("after step", justify="right")
    for each in ranking(config, found):
        values = map(shown, trials[each.number].values.values())
        table.add_row(str(each.number), *values, shown(each.value), str(each.step))
    for each in found:
        if each.value is None:
            values = map(shown, trials[each.number].values.values())
            table.add_row(str(each.number), *values, "failed", "")
    console.print(table)
    made = Exported.best(trials[best.number].folder)
    if made is not None:
        console.print(f"the best trial's model: {made.folder}")
    console.print(f"next: farreach train {config.place.child(BEST)}")


if __name__ == "__main__":
    from jobs.runner import run_entry

    run_entry(TuneConfig, main, "tune")
