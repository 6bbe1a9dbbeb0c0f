"""What two trainings left is compared to the last bit, and the first difference is named."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from jobs.histories import FIGURES, Comparison, History, Recorded, compare, equal
from jobs.trace import TracedStep

STEPS = 6


def made_up(*, loss: float = 0.3) -> History:
    """A training of STEPS steps as it should be."""
    losses = [loss / step for step in range(1, STEPS + 1)]
    points = {name: list(enumerate(losses, start=1)) for name in FIGURES}
    return History(
        steps=[
            TracedStep(step=step, loss=each, images=(f"image-{step}", "image-a"))
            for step, each in enumerate(losses, start=1)
        ],
        weights={"b.weight": torch.ones(2, 3), "a.scale": torch.tensor(0.5)},
        runs=[Recorded(status="FINISHED", points=points, restarts=2)],
    )


def different(found: list[Comparison]) -> dict[str, str | None]:
    return {each.what: each.difference for each in found if each.is_different}


def against(killed: History, **settings) -> dict[str, str | None]:
    """Differences between the made-up training and this one."""
    asked = {"total_steps": STEPS, "tolerance": 0.0, "restarts": 2} | settings
    return different(compare(made_up(), killed, **asked))


def with_step(place: int, **changes) -> History:
    steps = list(made_up().steps)
    steps[place] = replace(steps[place], **changes)
    return replace(made_up(), steps=steps)


def with_points(change: Callable[[list], list], figure: str = "loss") -> History:
    (run,) = made_up().runs
    points = {**run.points, figure: change(list(run.points[figure]))}
    return replace(made_up(), runs=[replace(run, points=points)])


def with_weight(value: torch.Tensor) -> History:
    return replace(made_up(), weights={**made_up().weights, "b.weight": value})


def next_up(loss: float) -> float:
    return math.nextafter(loss, math.inf)


def test_the_same_training_twice_is_equal():
    assert against(made_up()) == {}


ODD = torch.ones(2, 3)
ODD[1, 1] = 1.0 + torch.finfo(torch.float32).eps
NEGATIVE_ZERO = torch.ones(2, 3) * 0.0
NEGATIVE_ZERO[0, 0] = -0.0


@pytest.mark.parametrize(
    ("killed", "what", "said"),
    [
        (with_step(3, loss=next_up(0.3 / 4)), "losses", "step 4: loss 0.075 and 0.0750000"),
        (with_step(3, loss=math.nan), "losses", "step 4: loss 0.075 and nan"),
        (with_step(2, images=("image-b", "image-3")), "image ids", "step 3: 2 and 2 images, of"),
        (with_step(2, images=("image-a",)), "image ids", "of one alone: image-3"),
        (with_step(2, images=("image-a", "image-3", "image-3")), "image ids", "not as often"),
        (replace(made_up(), steps=made_up().steps[:-1]), "losses", "step 6: the killed one does"),
        (with_step(4, step=4), "losses", "step 5: the killed one has step 4 in its place"),
        (with_weight(ODD), "weights", "b.weight: up to 1.19e-07 apart"),
        (with_weight(torch.ones(3, 2)), "weights", "b.weight: [2, 3] and [3, 2]"),
        (replace(made_up(), weights={}), "weights", "a.scale: only one of the two has it"),
        (replace(made_up(), runs=made_up().runs * 2), "MLflow runs", "1 and 2 runs"),
        (replace(made_up(), runs=[]), "MLflow runs", "1 and 0 runs"),
        (with_points(lambda points: points[1:]), "MLflow loss", "step 1: the killed one has"),
        (with_points(lambda points: [*points, points[-1]]), "MLflow loss", "step 7: the killed"),
        (with_points(lambda points: points[:2] + points[1:]), "MLflow loss", "step 3: the killed"),
        (with_points(lambda points: [], "grad_norm"), "MLflow grad_norm", "step 1: the killed one"),
        (
            with_points(lambda points: [(step, next_up(each)) for step, each in points], "lr"),
            "MLflow lr",
            "step 1: 0.3 and 0.30000000000000004",
        ),
    ],
)
def test_a_planted_difference_is_found_and_named(killed, what, said):
    found = against(killed)
    assert what in found
    assert said in found[what]


@pytest.mark.parametrize("status", ["FAILED", "RUNNING", "KILLED"])
def test_a_run_that_did_not_finish_is_a_difference(status):
    (run,) = made_up().runs
    killed = replace(made_up(), runs=[replace(run, status=status)])
    assert against(killed) == {"MLflow runs": f"FINISHED and {status}"}


def test_restarts_must_be_told():
    assert against(made_up(), restarts=3) == {"MLflow restarts": "2 restarts told, 3 made"}


def test_zeros_of_another_sign_are_other_bits():
    zeros = replace(made_up(), weights={"b.weight": NEGATIVE_ZERO.abs()})
    found = compare(
        zeros, with_weight_only(NEGATIVE_ZERO), total_steps=STEPS, tolerance=0.0, restarts=0
    )
    assert list(different(found)) == ["weights"]
    assert not equal(0.0, -0.0, tolerance=0.0)


def with_weight_only(value: torch.Tensor) -> History:
    return replace(made_up(), weights={"b.weight": value})


def test_with_a_tolerance_losses_may_differ_as_much_and_weights_are_told_not_judged():
    near = replace(made_up(loss=0.3 * (1 + 9e-6)), weights=with_weight(ODD).weights)
    found = compare(made_up(), near, total_steps=STEPS, tolerance=1e-5, restarts=2)
    assert different(found) == {}
    (weights,) = (each for each in found if each.what == "weights")
    assert weights.difference is not None
    far = made_up(loss=0.3 * (1 + 2e-5))
    assert "losses" in against(far, tolerance=1e-5)
    assert "losses" in against(near, tolerance=0.0)


def test_images_are_compared_however_large_the_tolerance_is():
    assert "image ids" in against(with_step(0, images=("image-a",)), tolerance=1.0)
