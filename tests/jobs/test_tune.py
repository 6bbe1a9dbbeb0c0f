"""`farreach tune`: every trial is a run below the search's, and the best one is named."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import mlflow
import pytest

from jobs import trials
from jobs.best import name_best, read_best
from jobs.errors import MachineFault, UserError
from jobs.search_space import Choice, Integer, LogUniform, Uniform, draw, laid_over
from jobs.settings import load, to_dict
from jobs.standing import Standing, ValidationConfig
from jobs.train_config import TrainConfig
from jobs.trials import Trial, Tuned, run_trial
from jobs.tune import TuneConfig, main, ranking, require_trials, trials_of
from jobs.workers import WorkersConfig
from pipeline.lease import AT_WORK
from tests.jobs.small_training import train_config

SPACE = {
    "optimizer.lr": LogUniform(low=1e-4, high=1e-2),
    "optimizer.weight_decay": Uniform(low=0.0, high=0.5),
    "optimizer.warmup_steps": Integer(low=1, high=3),
    "batch.accumulation": Choice(values=(1, 2)),
}


def search(dataset: str = "dataset", **changes) -> TuneConfig:
    train = train_config(
        dataset, validation=ValidationConfig(split="test", every_steps=2, figure="accuracy")
    )
    return replace(TuneConfig(train=train, search=SPACE), **changes)


def test_all_is_drawn_from_where_it_should_be_and_a_longer_search_begins_alike():
    drawn = draw(SPACE, trials=200, seed=7)
    assert draw(SPACE, trials=20, seed=7) == drawn[:20]
    assert draw(SPACE, trials=20, seed=8) != drawn[:20]
    rates = [each["optimizer.lr"] for each in drawn]
    assert all(1e-4 <= rate <= 1e-2 for rate in rates)
    assert 60 < sum(rate < 1e-3 for rate in rates) < 140  # as many below the middle as above it
    assert all(0.0 <= each["optimizer.weight_decay"] <= 0.5 for each in drawn)
    assert {each["optimizer.warmup_steps"] for each in drawn} == {1, 2, 3}
    assert {each["batch.accumulation"] for each in drawn} == {1, 2}
    assert all(type(value) in (int, float) for each in drawn for value in each.values())


def test_a_value_is_laid_over_its_own_setting_and_no_other():
    config = search()
    (values, *_) = drawn = draw(SPACE, trials=3, seed=0)
    trial = trials_of(config, drawn, parent_run="parent")[0]
    wanted = to_dict(config.train)
    for name, value in values.items():
        above, _, last = name.partition(".")
        wanted[above][last] = value
    differing = {key for key in wanted if wanted[key] != trial.settings[key]}
    assert differing == {"name", "storage_path", "dataset", "parent_run"}
    assert laid_over({"a": 1}, {"b.c": 2}) == {"a": 1, "b": {"c": 2}}


@pytest.mark.parametrize(
    ("space", "says"),
    [
        ({"optimizer.lrr": Uniform(low=0.1, high=0.2)}, "did you mean 'optimizer.lr'"),
        ({"optimizer.lr": Uniform(low=-0.2, high=-0.1)}, "it cannot be negative"),
        ({"optimizer.kind": Choice(values=("lamp",))}, "lamp"),
    ],
)
def test_a_search_that_no_training_could_take_is_refused_before_it_starts(space, says):
    config = search(search=space)
    with pytest.raises(UserError, match=says):
        require_trials(config, draw(space, trials=2, seed=0))


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (lambda: Uniform(low=2.0, high=2.0), "low 2.0 of a uniform must be below high 2.0"),
        (lambda: LogUniform(low=0.0, high=1.0), "low 0 of a log_uniform must be more than 0"),
        (lambda: Choice(values=()), "give at least one"),
        (lambda: search(trials=0), "trials 0 must be at least 1"),
        (lambda: search(search={}), "search is empty"),
        (lambda: search(train=train_config("dataset")), "train.validation is not set"),
    ],
)
def test_a_search_without_sense_is_refused(made, says):
    with pytest.raises(ValueError, match=says):
        made()


def test_several_at_a_time_need_a_server(store):
    with pytest.raises(UserError, match="concurrent 2: trials would write to one SQLite file"):
        main(search(concurrent=2))


def test_the_best_comes_first_and_what_failed_not_at_all():
    values = [0.5, None, 0.9, 0.9, 0.7]
    found = [Tuned(number=number, value=value) for number, value in enumerate(values)]
    assert [each.number for each in ranking(search(), found)] == [2, 3, 4, 0]
    lower = replace(search().train, validation=ValidationConfig(figure="loss"))
    assert [each.number for each in ranking(search(train=lower), found)] == [0, 4, 2, 3]


@pytest.mark.parametrize(
    ("code", "said", "value", "reason"),
    [
        (0, "", 0.25, ""),
        (2, "farreach train: x: this run has finished; choose another name", 0.25, ""),
        (2, "farreach train: no such thing", None, "farreach train: no such thing"),
        (-9, "", None, "it ended with -9"),
    ],
)
def test_what_a_trials_process_says_is_understood(tmp_path, monkeypatch, code, said, value, reason):
    settings = {"storage_path": str(tmp_path), "name": "trial-0003"}
    trial = Trial(number=3, values={}, settings=settings)
    new = Standing.of(ValidationConfig(), {})
    best = replace(new, best=0.25, best_step=8, figures={"loss": 0.25})
    name_best(trial.folder, best)
    done = SimpleNamespace(returncode=code, stderr=said)
    monkeypatch.setattr(trials.subprocess, "run", lambda *_, **__: done)
    found = run_trial(trial, {})
    assert (found.number, found.value, found.reason) == (3, value, reason)


def test_a_trial_waits_for_the_training_that_a_killed_search_has_left(tmp_path, monkeypatch):
    trial = Trial(
        number=3, values={}, settings={"storage_path": str(tmp_path), "name": "trial-0003"}
    )
    new = Standing.of(ValidationConfig(), {})
    name_best(trial.folder, replace(new, best=0.25, best_step=8, figures={"loss": 0.25}))
    ends = [
        SimpleNamespace(returncode=2, stderr=f"farreach train: x: {AT_WORK} (process 7 on y)"),
        SimpleNamespace(returncode=0, stderr=""),
    ]
    monkeypatch.setattr(trials, "AGAIN_S", 0.0)
    monkeypatch.setattr(trials.subprocess, "run", lambda *_, **__: ends.pop(0))
    assert run_trial(trial, {}).value == 0.25
    assert not ends


@pytest.mark.ray
def test_a_search_trains_below_one_run_and_hands_out_the_best_settings(
    ray_local, tiny_dataset, store, capfd
):
    config = search(
        tiny_dataset,
        search={"split": Choice(values=("train", "nowhere"))},
        trials=2,
        seed=next(seed for seed in range(99) if both_splits(seed)),
    )
    one = WorkersConfig(num_workers=1)
    config = replace(config, train=replace(config.train, total_steps=2, workers=one))
    best = main(config)
    assert best.values == {"split": "train"}
    told = capfd.readouterr().out
    assert "failed: farreach train: split 'nowhere' has no images" in told
    client = mlflow.MlflowClient()
    runs = mlflow.search_runs(experiment_names=["tests"], output_format="list")
    (parent,) = (run for run in runs if run.info.run_name == config.train.name)
    (child,) = (run for run in runs if run.data.tags.get("mlflow.parentRunId"))
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert child.info.run_name == best.settings["name"] == parent.data.tags["best_trial"]
    figures = read_best(best.folder).figures
    assert parent.data.metrics == {"best/accuracy": figures["accuracy"]}
    rows = json.loads(
        Path(client.download_artifacts(parent.info.run_id, "trials.json")).read_text()
    )
    assert sorted(row["value"] is None for row in rows) == [False, True]
    again = load(TrainConfig, Path(str(config.place)) / "best.yaml")
    assert again == replace(config.train, name=f"{config.train.name}-best", split="train")


def both_splits(seed: int) -> bool:
    space = {"split": Choice(values=("train", "nowhere"))}
    return len({each["split"] for each in draw(space, trials=2, seed=seed)}) == 2


def test_a_search_in_which_nothing_came_of_any_trial_says_why(store, monkeypatch):
    config = search(trials=1)
    lost = [Tuned(number=0, value=None, reason="no room")]
    monkeypatch.setattr("jobs.tune.connect", lambda: pytest.MonkeyPatch.context())
    monkeypatch.setattr("jobs.tune.run_trials", lambda *_, **__: lost)
    with pytest.raises(MachineFault, match="none of 1 trials has a figure; one: no room"):
        main(config)
