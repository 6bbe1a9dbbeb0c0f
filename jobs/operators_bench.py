"""Time and memory of every attention operator against the length of the sequence.

Run      farreach bench operators [key=value ...]
Writes   `output`/operators.png    both against length, on logarithmic axes
         `output`/operators.txt    the tables that are printed
         `output`/operators.json   all of it, with the settings and the machine; written last
Takes    10 minutes or less on 2 CPU cores
Needs    Linux on the CPU; `output` must not exist yet
Example  farreach bench operators operators='[softmax, linformer@rank=64]' lengths='[1024, 4096]'

A layer is an operator with its projections, forward and backward. First every operator climbs the
lengths as far as the limits let it, which measures memory; then all pairs that fit are timed in
rounds, shuffled, so that what slows the machine down for a while hits all alike. Times are medians
over the rounds. `jobs.operator_costs` says what is counted, `jobs.operator_growth` what to expect.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
from rich.progress import track

from fit_model import checks
from fit_model.attention.mixers import MIXERS, read_operator
from fit_model.attention.operators import OPERATORS
from jobs.bench_results import publish
from jobs.errors import UserError
from jobs.operator_children import Nursery
from jobs.operator_costs import Cost, LayerSpec, LeftOut, Task
from jobs.operator_growth import law_of, predicted
from jobs.operators_picture import picture
from jobs.operators_report import (
    Point,
    Report,
    as_json,
    show,
)
from jobs.settings import to_dict
from jobs.whole_folder import require_new
from pipeline.storage import Location

Measure = Callable[[Task], Cost | LeftOut]
START_S = 60.0
"""More than a process and its warm-up need."""
Rounds = dict[tuple[str, int], list[Cost | LeftOut]]


@dataclass(frozen=True, kw_only=True)
class OperatorsBench:
    """What is compared, on what, and how far."""

    output: str = "operators"
    operators: tuple[str, ...] = (*OPERATORS, *MIXERS)
    """As in local_operator: with settings behind an @."""
    lengths: tuple[int, ...] = (1024, 2048, 4096, 8192, 16384, 32768, 65536)
    """Tokens; they lie on the grid nearest to a square."""
    width: int = 128
    heads: int = 4
    batch: int = 1
    dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    device: Literal["cpu", "cuda"] = "cpu"
    rounds: int = 3
    limit_s: float = 10.0
    """A pair that is predicted to need more for one pass is left out."""
    limit_gb: float = 4.0
    """The same for memory; a pair that needs more after all is stopped."""
    slope_lengths: int = 4
    """Slopes are of so many of the longest lengths that were measured."""
    seed: int = 0
    """Of the order within a round."""

    def __post_init__(self) -> None:
        for name in ("operators", "lengths"):
            given = getattr(self, name)
            if not given or len(set(given)) < len(given):
                raise ValueError(f"{name} is {list(given)}: give at least one, and each once")
        for length in self.lengths:
            checks.positive(lengths=length)
        for operator in self.operators:
            read_operator(operator, setting="operators")
        checks.positive(width=self.width, heads=self.heads, batch=self.batch, rounds=self.rounds)
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of heads {self.heads}")
        if self.slope_lengths < 2:
            raise ValueError(f"slope_lengths is {self.slope_lengths}: a slope needs at least 2")
        for name in ("limit_s", "limit_gb"):
            if not getattr(self, name) > 0.0:
                raise ValueError(f"{name} is {getattr(self, name):g}: it must be more than 0")

    def in_words(self) -> str:
        """What all pairs have in common."""
        batch = f"batch {self.batch}, width {self.width}, {self.heads} heads"
        return f"{batch}, {self.dtype}, {self.device}, torch threads: {torch.get_num_threads()}"

    def task(self, operator: str, length: int, allocator: Literal["returning", "usual"]) -> Task:
        """One measurement."""
        layer = LayerSpec(
            width=self.width,
            heads=self.heads,
            batch=self.batch,
            dtype=self.dtype,
            device=self.device,
        )
        return Task(
            operator=operator,
            length=length,
            layer=layer,
            warm_length=min(self.lengths),
            limit_s=self.limit_s,
            limit_gb=self.limit_gb,
            patience_s=START_S + 2 * self.limit_s,
            allocator=allocator,
        )


@dataclass(kw_only=True)
class Climb:
    """How far an operator has come up the lengths."""

    operator: str
    costs: dict[int, Cost] = field(default_factory=dict)
    left_out: dict[int, LeftOut] = field(default_factory=dict)


def main(config: OperatorsBench) -> None:
    """Measure, print the tables and write them."""
    place = Location.of(config.output)
    require_new(place, name="output")
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UserError("device is 'cuda', but PyTorch sees no GPU here: set device=cpu")
    with Nursery() as nursery:
        report = measured(config, nursery)
    publish(
        place,
        "operators",
        show=partial(show, report),
        picture=picture(report),
        values=as_json(report, settings=to_dict(config)),
    )


def measured(config: OperatorsBench, measure: Measure) -> Report:
    """All pairs of operator and length, with what `measure` finds."""
    climbs = [Climb(operator=operator) for operator in config.operators]
    pairs = [(length, climb) for length in sorted(config.lengths) for climb in climbs]
    for length, climb in track(pairs, description="memory", transient=True):
        found = out_of_reach(climb, length, config) or measure(
            config.task(climb.operator, length, "returning")
        )
        if isinstance(found, Cost) and found.seconds > config.limit_s:
            found = LeftOut(why=f"> {config.limit_s:g} s")
        if isinstance(found, Cost):
            climb.costs[length] = found
        else:
            climb.left_out[length] = found
    rounds = timed(climbs, config, measure)
    points = [
        point(climb, length, rounds.get((climb.operator, length), []))
        for climb in climbs
        for length in sorted(config.lengths)
    ]
    return Report(points=points, slope_lengths=config.slope_lengths, setting=config.in_words())


def out_of_reach(climb: Climb, length: int, config: OperatorsBench) -> LeftOut | None:
    """Why an operator cannot come to this length, as far as one can tell; None where it may."""
    stopped = next(iter(climb.left_out.values()), None)
    if stopped or not climb.costs:
        return stopped
    law, longest = law_of(climb.operator), max(climb.costs)
    cost = climb.costs[longest]
    seconds = predicted(cost.seconds, law.time, measured_at=longest, length=length)
    peak_bytes = predicted(cost.peak_bytes, law.memory, measured_at=longest, length=length)
    if peak_bytes > config.limit_gb * 1e9:
        return LeftOut(why=f"> {config.limit_gb:g} GB")
    return LeftOut(why=f"> {config.limit_s:g} s") if seconds > config.limit_s else None


def timed(climbs: Sequence[Climb], config: OperatorsBench, measure: Measure) -> Rounds:
    """What every pair that fits costs in every round."""
    pairs = [(climb.operator, length) for climb in climbs for length in climb.costs]
    order = random.Random(config.seed)  # noqa: S311 - no secret
    shuffled = [pair for _ in range(config.rounds) for pair in order.sample(pairs, len(pairs))]
    rounds: Rounds = {pair: [] for pair in pairs}
    for operator, length in track(shuffled, description="time", transient=True):
        rounds[operator, length].append(measure(config.task(operator, length, "usual")))
    return rounds


def point(climb: Climb, length: int, rounds: Sequence[Cost | LeftOut]) -> Point:
    """All that was found of a pair; one that failed in any round counts as left out."""
    stopped = climb.left_out.get(length)
    stopped = stopped or next((each for each in rounds if isinstance(each, LeftOut)), None)
    if stopped:
        return Point(operator=climb.operator, length=length, left_out=stopped.why)
    return Point(
        operator=climb.operator,
        length=length,
        peak_bytes=climb.costs[length].peak_bytes,
        rounds=tuple(each for each in rounds if isinstance(each, Cost)),
    )
