"""FIT and ViX with every attention operator on one real task: accuracy, speed, memory.

Run      farreach bench digits output=FOLDER [key=value ...]
Writes   `output`/results.jsonl   a line for every run that ended
         `output`/digits.md       the tables, and what is better than softmax
         `output`/digits.png      accuracy against speed
         `output`/digits.json     all of it; written last
Takes    about 45 minutes on 2 CPU cores, with a quiet machine
Again    runs that ended are not run again; operators, bodies and seeds may be added
Example  farreach bench digits output=digits operators='[softmax, linformer@rank=16]' seeds='[0]'

The task: two of scikit-learn's digits lie on a larger canvas among scraps of others, and the upper
one is to be named (`jobs.digit_canvases`). All models have the same width and depth, and see the
same canvases in the same order for the same number of steps. The learning rate of each is the one
of a few that serves it best on validation digits. Test digits are held out of all of this.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from fit_model import checks
from jobs.consoles import wide_console
from jobs.digit_canvases import digits_of
from jobs.digits_children import children
from jobs.digits_costs import measure_costs
from jobs.digits_models import BODIES, OPERATORS, compared, mixing_of
from jobs.digits_report import Report, write
from jobs.digits_results import Results
from jobs.digits_training import Outcome, Run, Setup, train
from jobs.digits_verdict import REFERENCE, Score, score
from jobs.errors import MachineFault
from jobs.settings import to_flat_dict


@dataclass(frozen=True, kw_only=True)
class DigitsBench(Setup):
    """What is compared, and where the results go."""

    output: Path
    """A folder; one that holds runs with the same canvas, size and recipe is gone on with."""
    operators: tuple[str, ...] = tuple(OPERATORS)
    """Names of the bench, or as in local_operator, with settings behind an @."""
    bodies: tuple[str, ...] = tuple(BODIES)
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of weights, and of canvases and their order; the first one chooses the learning rate."""
    processes: int = 2
    """Runs at a time, with one thread each."""
    cost_rounds: int = 3
    """How often the speed of every model is measured."""

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.positive(processes=self.processes, cost_rounds=self.cost_rounds)
        for name in ("operators", "bodies", "seeds"):
            given = getattr(self, name)
            if not given or len(set(given)) < len(given):
                raise ValueError(f"{name} is {list(given)}: give at least one, and each once")
        if min(self.seeds) < 0:
            raise ValueError(f"seeds is {list(self.seeds)}: they must be at least 0")
        if REFERENCE not in self.operators:
            raise ValueError(f"operators lacks {REFERENCE!r}, with which all others are compared")
        for body in self.bodies:
            checks.one_of(tuple(BODIES), bodies=body)
        for operator in self.operators:
            mixing_of(operator)

    @property
    def setup(self) -> Setup:
        """What runs depend on."""
        return Setup(canvas=self.canvas, size=self.size, recipe=self.recipe)

    @property
    def models(self) -> list[tuple[str, str]]:
        """Body and operator of each."""
        return compared(self.bodies, self.operators)


def main(config: DigitsBench) -> Report:
    """Train what is not trained yet, measure the costs, write and print the comparison."""
    require_buildable(config)
    console = wide_console()
    results = Results(config.output, settings=to_flat_dict(config.setup))
    complete("learning rates", choosing_runs(config), results, config, console=console)
    complete("all seeds", final_runs(config, results), results, config, console=console)
    report = Report(
        scores=scores(config, results),
        costs=measure_costs(config.models, config.setup, rounds=config.cost_rounds),
        parameters={
            model: results.outcomes[
                final_run(config, results, *model, seed=config.seeds[0])
            ].parameters
            for model in config.models
        },
        num_digits=len(digits_of("test").kinds),
        setup=config.setup,
        seeds=config.seeds,
    )
    write(report, config.output, console=console)
    return report


def require_buildable(config: DigitsBench) -> None:
    """Refuse a model that cannot be before any other is trained."""
    for body, operator in config.models:
        try:
            config.model(body, operator)
        except ValueError as error:
            raise ValueError(f"{body} with {operator}: {error}") from error


def choosing_runs(config: DigitsBench) -> list[Run]:
    """Every model with every learning rate, with the first seed."""
    return [
        Run(body=body, operator=operator, seed=config.seeds[0], learning_rate=rate)
        for rate in config.recipe.learning_rates
        for body, operator in config.models
    ]


def final_runs(config: DigitsBench, results: Results) -> list[Run]:
    """Every model with its own learning rate, with every seed."""
    return [
        final_run(config, results, body, operator, seed=seed)
        for seed in config.seeds
        for body, operator in config.models
    ]


def final_run(config: DigitsBench, results: Results, body: str, operator: str, *, seed: int) -> Run:
    """With the learning rate of the best validation accuracy; the earlier one of equals."""
    choices = [run for run in choosing_runs(config) if (run.body, run.operator) == (body, operator)]
    best = max(choices, key=lambda run: results.outcomes[run].validation)
    return Run(body=body, operator=operator, seed=seed, learning_rate=best.learning_rate)


def complete(
    stage: str, runs: Sequence[Run], results: Results, config: DigitsBench, *, console: Console
) -> None:
    """Run what has no outcome yet, and say what came of it."""
    left = [run for run in runs if run not in results.outcomes]
    console.print(f"{stage}: {len(left)} runs to go, {config.processes} at a time")
    for number, outcome in enumerate(outcomes_of(left, config), start=1):
        results.add(outcome)
        run = outcome.run
        console.print(
            f"{stage}, {number} of {len(left)}: {run.body} {run.operator}, seed {run.seed}, "
            f"rate {run.learning_rate:g}, {outcome.test:.1%} right, {outcome.seconds:.0f} s"
        )


def outcomes_of(runs: Sequence[Run], config: DigitsBench) -> Iterator[Outcome]:
    """Of runs in processes of their own, as they end."""
    with children(config.processes) as trainers:
        futures = [trainers.submit(train, run, config.setup) for run in runs]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool as error:
            raise MachineFault(
                "a process was killed, perhaps for memory; the same command goes on, "
                "with processes=1 in half the memory"
            ) from error
        finally:
            trainers.shutdown(wait=False, cancel_futures=True)


def scores(config: DigitsBench, results: Results) -> tuple[Score, ...]:
    """Of every model, in the order in which they are named."""

    def accuracies(body: str, operator: str) -> list[float]:
        runs = [final_run(config, results, body, operator, seed=seed) for seed in config.seeds]
        return [results.outcomes[run].test for run in runs]

    return tuple(
        score(
            body,
            operator,
            learning_rate=final_run(
                config, results, body, operator, seed=config.seeds[0]
            ).learning_rate,
            accuracies=accuracies(body, operator),
            reference=accuracies(body, REFERENCE),
            num_digits=len(digits_of("test").kinds),
        )
        for body, operator in config.models
    )
