"""`farreach train` from its first step to its registered model, and what it refuses."""

import json
import shutil
import socket
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest
import torch

from fit_model import weights
from jobs import registry
from jobs.runner import exit_codes
from jobs.targets import ClassifyTarget, RegressTarget
from jobs.train import main
from jobs.train_config import TrainConfig
from jobs.workers import WorkersConfig
from pipeline.dataset import open_dataset
from tests.jobs.small_training import one_image

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_local")]


def refusal(config: TrainConfig, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit code and the one line that a mistake gets."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught, exit_codes("train"):
        main(config)
    (line,) = capsys.readouterr().err.strip().splitlines()
    return caught.value.code, line


def test_the_run_has_every_step_once_and_the_loss_falls(trained):
    steps, losses = zip(*trained.history("loss"), strict=True)
    assert steps == tuple(range(1, trained.config.total_steps + 1))
    assert sum(losses[-8:]) < 0.8 * sum(losses[:8])


def test_the_run_says_what_was_trained_on_what(trained):
    run = trained.run()
    info = open_dataset(trained.config.dataset).info
    assert run.info.status == "FINISHED"
    assert run.data.params["optimizer.lr"] == str(trained.config.optimizer.lr)
    assert run.data.params["model.trunk.layers"] == trained.config.model.trunk.layers
    assert run.data.tags["dataset_digest"] == info.digest
    assert run.data.tags["seed"] == str(trained.config.batch.seed)
    (entry,) = (
        used.dataset
        for used in run.inputs.dataset_inputs
        if {"mlflow.data.context": "training"}.items()
        <= {t.key: t.value for t in used.tags}.items()
    )
    assert info.digest.startswith(entry.digest)


def test_a_pulled_model_gives_the_very_outputs_of_the_last_checkpoint(trained, tmp_path):
    registry.pull("tiny@challenger", tmp_path / "pulled")
    pulled, last = weights.load(tmp_path / "pulled"), weights.load(trained.result.model_folder)
    dataset = open_dataset(trained.config.dataset)
    for record in dataset.images("test"):
        image = one_image(dataset, record)
        with torch.inference_mode():
            assert torch.equal(pulled(image), last(image))


def test_a_version_tells_its_last_figures_and_how_many_images_it_saw(trained):
    version = registry.show("tiny@challenger")
    assert version.metrics["final/loss"] == trained.history("loss")[-1][1]
    assert "**Trained on** 9 images" in version.description
    assert version.run_id == trained.result.run_id


def test_a_finished_name_is_refused(trained, capsys):
    code, line = refusal(trained.config, capsys)
    assert code == 2
    assert "tiny: this run has finished; choose another name" in line


@pytest.fixture
def unfinished(trained, tmp_path) -> TrainConfig:
    """The trained run as if it had been broken off before it was registered."""
    shutil.copytree(trained.storage, tmp_path / "runs")
    record = tmp_path / "runs" / "tiny" / "run.json"
    record.write_text(record.read_text().replace('"finished": true', '"finished": false'))
    return replace(trained.config, storage_path=str(tmp_path / "runs"))


def test_a_changed_setting_is_refused_by_name_when_a_run_is_continued(unfinished, capsys):
    changed = replace(unfinished, optimizer=replace(unfinished.optimizer, lr=0.5))
    code, line = refusal(changed, capsys)
    assert code == 2
    assert "was started with optimizer.lr=0.001, not 0.5" in line


def test_another_dataset_is_refused_when_a_run_is_continued(unfinished, capsys):
    record = Path(unfinished.storage_path) / "tiny" / "run.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"digest": "f" * 64}))
    code, line = refusal(unfinished, capsys)
    assert code == 2
    assert "was started on another dataset (digest ffffffffffff" in line


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"target": ClassifyTarget(label="knd")}, "no label 'knd'; its labels: kind, amount"),
        ({"target": ClassifyTarget(label="amount")}, "use target.kind=regress"),
        ({"target": RegressTarget(labels=("kind",))}, "use target.kind=classify"),
        ({"split": "training"}, "split 'training' has no images"),
        ({"dataset": "nowhere"}, "nowhere: no such folder, so not a finished dataset"),
        ({"workers": WorkersConfig(num_workers=3)}, "3 workers of 1 CPU were asked for"),
    ],
)
def test_mistakes_are_one_line_and_leave_no_trace(trained, store, tmp_path, capsys, change, says):
    config = replace(trained.config, storage_path=str(tmp_path / "runs"), **change)
    code, line = refusal(config, capsys)
    assert code == 2
    assert says in line
    assert not (tmp_path / "runs").exists()
    assert (
        mlflow.MlflowClient(f"sqlite:///{store}/mlflow.db").get_experiment_by_name("tests") is None
    )


def test_a_model_name_that_the_registry_cannot_hold_is_refused_before_training(trained):
    with pytest.raises(ValueError, match="'a/b' is no model name"):
        replace(trained.config, register_as="a/b")


def test_a_server_that_is_down_is_a_fault_of_the_machine(trained, tmp_path, monkeypatch, capsys):
    with socket.socket() as held:  # bound, and nobody listens
        held.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{held.getsockname()[1]}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        config = replace(trained.config, storage_path=str(tmp_path / "runs"))
        code, line = refusal(config, capsys)
    assert code == 1
    assert f"no MLflow server answers at {uri}" in line
    assert not (tmp_path / "runs").exists()


def damaged_copy(dataset: str, folder: Path) -> str:
    """Flip a byte in the pixels of one image of the training split; gives the image's id."""
    shutil.copytree(dataset, folder)
    stored = open_dataset(str(folder))
    record = next(each for each in stored.images("train") if each.groups)
    first = stored.read(record).pixels[0].tobytes()
    shard = folder / record.parts[0].shard
    content = bytearray(shard.read_bytes())
    content[content.index(first[:64]) + 5] ^= 0xFF
    shard.write_bytes(content)
    return record.image_id


def test_a_damaged_shard_ends_training_with_its_image(trained, store, tmp_path, capsys):
    folder = tmp_path / "damaged"
    image_id = damaged_copy(trained.config.dataset, folder)
    config = replace(
        trained.config, dataset=str(folder), storage_path=str(tmp_path / "runs"), total_steps=3
    )
    code, line = refusal(config, capsys)
    assert code == 1
    assert f"images cannot be read ({image_id!r})" in line
    assert "batch.max_damaged_share allows 0: preprocess them again" in line
    with pytest.raises(ValueError, match="no model 'tiny'"):
        registry.show("tiny")


def test_a_damaged_image_is_replaced_counted_and_named_in_the_run(trained, store, tmp_path):
    image_id = damaged_copy(trained.config.dataset, tmp_path / "damaged")
    config = replace(
        trained.config,
        dataset=str(tmp_path / "damaged"),
        storage_path=str(tmp_path / "runs"),
        batch=replace(trained.config.batch, max_damaged_share=0.2),
        total_steps=2,  # an epoch
        register_as=None,
    )
    result = main(config)
    history = mlflow.MlflowClient().get_metric_history(result.run_id, "damaged_images")
    assert sorted(point.value for point in history) == [0.0, 1.0]
    (step,) = [point.step for point in history if point.value]
    (file,) = mlflow.artifacts.list_artifacts(run_id=result.run_id, artifact_path="damaged_images")
    assert file.path == f"damaged_images/step-{step:07d}.json"
    assert json.loads(mlflow.artifacts.load_text(f"runs:/{result.run_id}/{file.path}")) == [
        image_id
    ]
