"""Training goes around what it cannot be stepped on, on all workers, and survives kills there."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from jobs.assignment import RecordConfig
from jobs.checkpoints import Checkpoints
from jobs.engine import EngineConfig, build_engine, full_weights, set_learning_rate
from jobs.engine_state import states_kept
from jobs.events import Event
from jobs.guard import Diverged, GuardConfig, RollBack
from jobs.guarded import Guarded
from jobs.lessons import FILE
from jobs.manifests import Progress
from jobs.offenders import LineUp
from jobs.run_record import RunRecord
from jobs.small_world import in_small_world
from pipeline.storage import Location
from tests.jobs.test_sharded_optimizers import LAMB, Small, inputs, loss

STEPS = 10
SAVE_EVERY = 3
CPU = torch.device("cpu")
IDS = [f"image-{number}" for number in range(100)]
CONFIG = GuardConfig(spike_deviations=None, max_skips_in_a_row=2, margin_steps=1, max_rollbacks=2)


class KilledError(Exception):
    """The process is gone."""


@dataclass
class Training:
    """A loop like that of a worker, as small as can be; bad steps have a loss that is not one."""

    folder: str
    bad: Sequence[int] = ()
    told_bad: Sequence[int] = ()
    """Steps whose loss is finite, as is its gradient, and on one worker is told to be none."""
    kill: str = ""
    """After the first event of this kind, or before that event's checkpoint is loaded."""
    guarded: Guarded = field(init=False)
    told: list[Event] = field(default_factory=list)
    taken: list[int] = field(default_factory=list)
    named: list[list[str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.checkpoints = Checkpoints(
            Location.of(self.folder).child("checkpoints"),
            config=RecordConfig(keep_last=3),
            states=states_kept(LAMB),
            origin=RunRecord(run_id="1", config={}, digest="2"),
            last_step=STEPS,
            device=CPU,
            tell=self.told.append,
        )
        self.guarded = Guarded(
            CONFIG,
            folder=self.folder,
            build=build,
            restore=self.restore,
            device=CPU,
            tell=self.told.append,
        )

    def restore(self, engine: Any, *, at_most: int | None) -> Progress:
        if self.kill == "before going back" and at_most is not None:
            raise KilledError
        return self.checkpoints.restore(engine, at_most=at_most)

    def run(self) -> None:
        progress = self.guarded.begin()
        while True:
            try:
                return self.steps(progress.step)
            except RollBack as back:
                progress = self.guarded.roll_back(back)
                if self.kill == "after going back":
                    raise KilledError from None

    def steps(self, first: int) -> None:
        for step in range(first, STEPS):
            if step not in self.guarded.guard.goes_around():
                self.step(step)
            if (step + 1) % SAVE_EVERY == 0:
                state = Progress(step=step + 1, guard=self.guarded.guard.state())
                self.checkpoints.save(self.guarded.engine, state, wait=True)

    def step(self, step: int) -> None:
        engine, rank = self.guarded.engine, dist.get_rank()
        set_learning_rate(engine, 0.01 * (step + 1))
        # on one worker only
        factor = math.nan if step in self.bad and rank == 1 else 1.0
        found = loss(engine(inputs(step, rank)), 0) * factor
        engine.backward(found)
        line_up = LineUp()
        line_up.add([2 * step + rank], found[None])
        told = math.nan if step in self.told_bad and rank == 1 else float(found) / 2
        outcome = self.guarded.step(step, loss=told, line_up=line_up, ids=IDS)
        if outcome.skip is None:
            self.taken.append(step)
            return
        self.named.append([each["id"] for each in outcome.events[0].facts["images"]])
        self.guarded.guard.skipped(outcome.skip)

    def weights(self) -> dict[str, np.ndarray]:
        return {name: each.numpy() for name, each in full_weights(self.guarded.engine)}


def build() -> Any:
    return build_engine(
        Small(seed=1),
        optimizer=LAMB,
        engine=EngineConfig(zero_stage=2),
        accumulation=1,
        device=CPU,
    )


def plain(steps: Sequence[int]) -> dict[str, np.ndarray]:
    """The weights after these steps alone, without a guard."""
    engine = build()
    for step in steps:
        set_learning_rate(engine, 0.01 * (step + 1))
        engine.backward(loss(engine(inputs(step, dist.get_rank())), 0))
        engine.step()
    return {name: each.numpy() for name, each in full_weights(engine)}


def seen(training: Training) -> dict[str, Any]:
    return {
        "weights": training.weights(),
        "taken": training.taken,
        "named": training.named,
        "told": [vars(each) for each in training.told],
        "state": training.guarded.guard.state(),
    }


def everything(folder: str, rank: int) -> dict[str, Any]:
    """All trainings of this file in one world."""
    found: dict[str, Any] = {}
    bad = {
        "undisturbed": (),
        "one bad step": (4,),
        "two in a row": (5, 6),
        "at the beginning": (0, 1),
    }
    for name, steps in bad.items():
        training = Training(f"{folder}/{name}", bad=steps)
        training.run()
        found[name] = seen(training)
    training = Training(f"{folder}/told", told_bad=(4,))
    training.run()
    found["a loss of the other worker"] = seen(training)
    for kill in ("before going back", "after going back"):
        place = f"{folder}/{kill}"
        with pytest.raises(KilledError):
            Training(place, bad=(5, 6), kill=kill).run()
        again = Training(place, bad=(5, 6))
        again.run()
        found[kill] = seen(again)
    hopeless = Training(f"{folder}/hopeless", bad=range(2, STEPS))
    with pytest.raises(Diverged) as raised:
        hopeless.run()
    found["hopeless"] = str(raised.value)
    for name, steps in {
        "undisturbed": range(STEPS),
        "one bad step": (0, 1, 2, 3, 5, 6, 7, 8, 9),
        "two in a row": (0, 1, 2, 3, 7, 8, 9),
        "at the beginning": range(2, STEPS),
    }.items():
        found[f"plain {name}"] = plain(steps)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("guarded")


@pytest.fixture(scope="module")
def found(folder) -> dict[str, Any]:
    return in_small_world(everything, str(folder), num_workers=2, threads=1)


def same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, each in expected.items():
        np.testing.assert_array_equal(found[name], each, err_msg=name)


@pytest.mark.parametrize(
    "name", ["undisturbed", "one bad step", "two in a row", "at the beginning"]
)
def test_training_ends_bit_by_bit_as_if_the_batches_left_out_had_never_been(found, name):
    same(found[name]["weights"], found[f"plain {name}"])


def test_without_trouble_nothing_is_told(found):
    assert found["undisturbed"]["told"] == []
    assert found["undisturbed"]["taken"] == list(range(STEPS))


def test_a_loss_that_one_worker_alone_has_is_judged_by_all(found):
    same(found["a loss of the other worker"]["weights"], found["plain one bad step"])


def test_the_image_of_the_other_worker_is_named(found):
    assert found["one bad step"]["named"] == [["image-9"]]


def test_a_full_row_goes_back_to_the_checkpoint_before_its_margin(found):
    (event,) = found["two in a row"]["told"]
    assert event["kind"] == "rolled back"
    assert event["facts"] == {"to": 3, "first": 5, "last": 7}
    assert found["two in a row"]["taken"] == [0, 1, 2, 3, 4, 3, 7, 8, 9]


def test_without_a_checkpoint_it_goes_back_to_the_initial_weights(found):
    (event,) = found["at the beginning"]["told"]
    assert event["facts"] == {"to": 0, "first": 1, "last": 2}


@pytest.mark.parametrize("kill", ["before going back", "after going back"])
def test_what_is_gone_around_survives_a_kill(found, folder, kill):
    same(found[kill]["weights"], found["plain two in a row"])
    assert found[kill]["state"]["around"] == [[4, 7]]
    assert json.loads((folder / kill / FILE).read_text())["around"] == [[4, 7]]


def test_training_that_going_back_does_not_help_ends_with_a_line_that_says_why(found):
    assert found["hopeless"].startswith("steps ")
    assert "2 times has not helped" in found["hopeless"]
    assert "image-" in found["hopeless"]
