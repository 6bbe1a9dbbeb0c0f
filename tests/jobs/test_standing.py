"""Which validation is the best, and when to stop: held against a plain reading of the list."""

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.standing import Standing, ValidationConfig, goal_of

VALUES = st.lists(st.sampled_from([0.1, 0.2, 0.3, 0.4, 0.5, math.nan]), max_size=12)


def standings(values: list[float], config: ValidationConfig) -> list[Standing]:
    """The standing after each validation; a restart lies between any two."""
    standing, found = Standing.of(config, {}), []
    for number, value in enumerate(values):
        standing = standing.after(
            value, step=number + 1, figures={}, min_improvement=config.min_improvement
        )
        standing = Standing.of(config, json.loads(json.dumps(standing.as_json())))
        found.append(standing)
    return found


@pytest.mark.parametrize(("figure", "best_of"), [("loss", min), ("kind/r2", max)])
@given(values=VALUES)
def test_the_best_is_the_first_of_the_best_numbers(figure, best_of, values):
    found = standings(values, ValidationConfig(figure=figure))
    for count, standing in enumerate(found, start=1):
        numbers = [each for each in values[:count] if math.isfinite(each)]
        if not numbers:
            assert (standing.best, standing.best_step, standing.since) == (None, 0, count)
            continue
        place = values.index(best_of(numbers)) + 1
        assert (standing.best, standing.best_step) == (best_of(numbers), place)
        assert standing.since == count - place


def test_a_little_better_is_not_better_where_more_is_asked_for():
    config = ValidationConfig(figure="accuracy", min_improvement=0.1)
    values = [0.5, 0.55, 0.59, 0.65, 0.7]
    assert [each.best for each in standings(values, config)] == [0.5, 0.5, 0.5, 0.65, 0.65]
    assert [each.since for each in standings(values, config)] == [0, 1, 2, 0, 1]


def test_another_figure_starts_anew():
    (told,) = standings([0.3], ValidationConfig(figure="loss"))
    other = Standing.of(ValidationConfig(figure="auroc"), told.as_json())
    assert (other.figure, other.goal, other.best, other.since) == ("auroc", "higher", None, 0)
    assert goal_of("amount/rmse") == "lower"


@pytest.mark.parametrize(
    ("change", "anew"),
    [
        ({"split": "other"}, True),
        ({"images": 3}, True),
        ({"images": 4, "seed": 1}, True),
        ({"every_steps": 7, "patience": 2}, False),
        ({"images": 4}, False),
    ],
)
def test_figures_of_other_images_are_not_compared(change, anew):
    config = ValidationConfig(images=4)
    (told,) = standings([0.3], config)
    other = Standing.of(replace(config, **change), told.as_json())
    assert other.best == (None if anew else 0.3)


def test_the_models_of_the_newest_checkpoints_are_remembered():
    standing = Standing.of(ValidationConfig(), {})
    for step in (10, 20, 30, 40):
        standing = standing.after(1.0 / step, step=step, figures={}, min_improvement=0.0)
        standing = standing.saved(keep=2)
    assert standing.kept == (30, 40)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"every_steps": 0}, "validation.every_steps 0 must be at least 1"),
        ({"images": 0}, "validation.images 0 must be at least 1"),
        ({"patience": 0}, "validation.patience 0 must be at least 1"),
        ({"min_improvement": -0.1}, "validation.min_improvement -0.1 must be finite"),
        ({"min_improvement": math.nan}, "validation.min_improvement nan must be finite"),
        ({"seed": -1}, "validation.seed -1 must not be negative"),
    ],
)
def test_a_validation_that_cannot_be_is_refused(change, says):
    with pytest.raises(ValueError, match=says):
        ValidationConfig(**change)
