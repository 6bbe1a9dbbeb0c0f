"""What a training may not be told, and which broken-off run it is taken to continue."""

from dataclasses import replace
from pathlib import Path

import pytest

from fit_model.bounded.config import BoundedConfig
from fit_model.vix import VixConfig
from jobs.assignment import RecordConfig
from jobs.engine import EngineConfig
from jobs.errors import UserError
from jobs.resuming import ResumeConfig, unfinished_record
from jobs.run_record import RunRecord
from jobs.settings import flat_defaults, to_flat_dict
from jobs.targets import GenerateTarget
from jobs.train_config import TrainConfig
from jobs.workers import WorkersConfig
from tests.jobs.small_generating import FACES, train_config
from tests.jobs.small_training import train_config as encoder_config

DIGEST = "d" * 64


def begun(folder, config, *, before: dict[str, object]) -> None:
    """A run of this config, begun when only those settings existed."""
    RunRecord(run_id="r", config=before, digest=DIGEST).write(str(folder))


def without(settings: dict[str, object], *names: str) -> dict[str, object]:
    assert set(names) <= settings.keys()
    return {name: value for name, value in settings.items() if name not in names}


@pytest.mark.parametrize(("face", "label_dropout"), [("diffusion", 0.1), ("autoregressive", 0.0)])
def test_a_run_begun_before_a_setting_existed_is_continued_with_its_default(
    tmp_path, face, label_dropout
):
    config = train_config("d", face)
    config = replace(config, model=replace(config.model, label_dropout=label_dropout))
    new = (
        "model.label_dropout", "model.trunk.checkpointing", "optimizer.kind", "optimizer.eps",
        "optimizer.ema_decay", "engine.zero_stage",
    )  # fmt: skip
    begun(tmp_path, config, before=without(to_flat_dict(config), *new))
    found = unfinished_record(config, str(tmp_path), digest=DIGEST)
    assert found is not None
    assert found.run_id == "r"


def test_a_setting_that_is_not_its_default_is_refused_where_the_run_began_without_it(tmp_path):
    config = encoder_config("d")
    begun(tmp_path, config, before=without(to_flat_dict(config), "optimizer.ema_decay"))
    changed = replace(config, optimizer=replace(config.optimizer, ema_decay=0.9))
    with pytest.raises(UserError, match=r"started with optimizer.ema_decay=None, not 0\.9"):
        unfinished_record(changed, str(tmp_path), digest=DIGEST)


def test_a_setting_without_a_default_is_never_taken_for_granted(tmp_path):
    config = encoder_config("d")
    begun(tmp_path, config, before=without(to_flat_dict(config), "total_steps"))
    with pytest.raises(UserError, match="started with total_steps=None, not 5"):
        unfinished_record(config, str(tmp_path), digest=DIGEST)


@pytest.mark.parametrize("face", FACES)
def test_every_default_stands_where_the_setting_does(face):
    config = train_config("d", face)
    assert flat_defaults(config).keys() < to_flat_dict(config).keys()
    assert flat_defaults(config)["model.kind"] == face


def test_an_autoregressive_model_without_labels_has_none_to_withhold():
    config = train_config("d", "autoregressive")
    unlabelled = GenerateTarget(pixel_range=(0.0, 16.0))
    with pytest.raises(ValueError, match=r"model.label_dropout 0.3 withholds labels, and there"):
        replace(config, target=unlabelled)
    replace(config, target=unlabelled, model=replace(config.model, label_dropout=0.0))
    # of a diffusion model it is the default
    replace(train_config("d", "diffusion"), target=unlabelled)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"engine": EngineConfig(zero_stage=3)}, "take engine.zero_stage 2"),
        (
            {"model": VixConfig(patch_px=8, depth=1, width=8, heads=2)},
            "kind 'vix' sees its images whole: leave bounded out",
        ),
    ],
    ids=["stage 3", "vix"],
)
def test_what_cannot_be_bounded_is_refused(changes, says):
    encoder_config("d", **changes)
    with pytest.raises(ValueError, match=says):
        encoder_config("d", bounded=BoundedConfig(), **changes)


def continued(folder: Path, config: TrainConfig, changed: TrainConfig, digest: str = DIGEST) -> str:
    """What is said of continuing a run with another configuration; empty when nothing is."""
    begun(folder, config, before=to_flat_dict(config))
    try:
        assert unfinished_record(changed, str(folder), digest=digest) is not None
    except UserError as error:
        return str(error)
    return ""


def test_who_trains_and_how_the_state_is_spread_may_differ(tmp_path):
    config = encoder_config("d")
    changed = replace(
        config,
        workers=WorkersConfig(num_workers=1, cpus_per_worker=2, max_failures=7),
        engine=replace(config.engine, zero_stage=3),
        batch=replace(config.batch, accumulation=4),
        record=RecordConfig(checkpoint_every_steps=7, keep_last=5),
        memory_limit_gb=3.0,
        dataset="elsewhere",
    )
    assert continued(tmp_path, config, changed) == ""
    bounded = replace(config, bounded=BoundedConfig(groups_a_chunk=2))
    assert continued(tmp_path, config, bounded) == ""
    assert continued(tmp_path, bounded, config) == ""


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("optimizer.lr", lambda c: replace(c, optimizer=replace(c.optimizer, lr=0.5))),
        ("batch.seed", lambda c: replace(c, batch=replace(c.batch, seed=99))),
        ("engine.precision", lambda c: replace(c, engine=replace(c.engine, precision="bf16"))),
        ("total_steps", lambda c: replace(c, total_steps=c.total_steps + 1)),
    ],
)
def test_another_setting_is_refused_and_the_line_names_how_to_allow_it(tmp_path, key, change):
    config = encoder_config("d")
    said = continued(tmp_path, config, change(config))
    assert f"this run was started with {key}=" in said
    assert f"continue it so with resume.allow='[{key}]'" in said
    for allowed in (key, key.split(".")[0]):
        resume = ResumeConfig(allow=(allowed,))
        assert continued(tmp_path, config, replace(change(config), resume=resume)) == ""
    other = ResumeConfig(allow=("target",))
    assert f"'[target, {key}]'" in continued(
        tmp_path, config, replace(change(config), resume=other)
    )


def test_another_dataset_is_refused_unless_it_is_allowed(tmp_path):
    config = encoder_config("d")
    said = continued(tmp_path, config, config, digest="e" * 64)
    assert "started on another dataset" in said
    assert "resume.allow='[dataset]'" in said
    allowing = replace(config, resume=ResumeConfig(allow=("dataset",)))
    assert continued(tmp_path, config, allowing, digest="e" * 64) == ""


def test_a_setting_that_does_not_exist_cannot_be_allowed(tmp_path):
    config = encoder_config("d")
    allowing = replace(config, resume=ResumeConfig(allow=("optimizer.l",)))
    assert continued(tmp_path, config, allowing) == (
        "resume.allow names 'optimizer.l', and there is no such setting"
    )


def test_a_run_of_an_older_version_is_refused_with_a_line(tmp_path):
    config = encoder_config("d")
    (tmp_path / "checkpoint_manager_snapshot.json").write_text("{}")
    assert "begun by an older version" in continued(tmp_path, config, config)
