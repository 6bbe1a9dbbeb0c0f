"""`farreach train` with validation: the best model is registered, and nothing else is different."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import mlflow
import pytest

from fit_model import weights
from jobs import registry
from jobs.evaluate import EvaluateConfig
from jobs.evaluate import main as evaluate
from jobs.standing import ValidationConfig
from jobs.train import main
from jobs.train_config import TrainConfig
from jobs.trained import TrainResult
from tests.jobs.small_training import train_config

pytestmark = [pytest.mark.ray]

# only the first validation can be better than none, so the third of them is the last
IMPATIENT = ValidationConfig(split="test", every_steps=2, patience=2, min_improvement=100.0)
STEPS, STOPPED, BEST = 9, 6, 2


@dataclass(frozen=True)
class Runs:
    """The same training without and with validation."""

    config: TrainConfig
    plain: TrainResult
    validated: TrainResult

    def losses(self, result: TrainResult, name: str = "loss") -> dict[int, float]:
        points = mlflow.MlflowClient().get_metric_history(result.run_id, name)
        return {point.step: point.value for point in points}


@pytest.fixture(scope="module")
def once(ray_local, tiny_dataset, empty_store, tmp_path_factory) -> tuple[Runs, str]:
    folder = tmp_path_factory.mktemp("validated")
    (folder / "mlflow.db").write_bytes(empty_store.read_bytes())
    config = train_config(tiny_dataset, total_steps=STEPS, storage_path=str(folder / "runs"))
    trunk = replace(config.model.trunk, dropout=0.1)
    config = replace(
        config,
        model=replace(config.model, trunk=trunk),
        optimizer=replace(config.optimizer, ema_decay=0.5),
    )
    impatient = replace(config, name="validated", validation=IMPATIENT, register_as="validated")
    uri = f"sqlite:///{folder}/mlflow.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        return Runs(impatient, main(config), main(impatient)), uri


@pytest.fixture
def runs(once, monkeypatch) -> Runs:
    found, uri = once
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    mlflow.set_tracking_uri(uri)
    return found


def test_training_is_bit_by_bit_the_one_that_nobody_looks_at(runs):
    plain, looked_at = runs.losses(runs.plain), runs.losses(runs.validated)
    assert sorted(plain) == list(range(1, STEPS + 1))
    assert looked_at == {step: plain[step] for step in range(1, STOPPED + 1)}


def test_a_training_without_improvement_ends_early_and_has_finished(runs):
    assert sorted(runs.losses(runs.validated, "validation/loss")) == [2, 4, 6]
    assert mlflow.get_run(runs.validated.run_id).info.status == "FINISHED"
    folder = Path(runs.config.storage_path) / runs.config.name
    assert json.loads((folder / "run.json").read_text())["finished"]


def test_the_best_model_is_handed_out_with_its_figures(runs, tmp_path):
    version = registry.show("validated@challenger")
    values = runs.losses(runs.validated, "validation/loss")
    assert version.metrics["best/loss"] == values[BEST]
    assert f"best validation/loss, {values[BEST]:.6g} after step {BEST}" in version.description
    assert runs.validated.model_folder.endswith(f"validated/best/step-{BEST:07d}")
    registry.pull("validated@challenger", tmp_path / "pulled")
    pulled, best = weights.load(tmp_path / "pulled"), weights.load(runs.validated.model_folder)
    for one, other in zip(pulled.parameters(), best.parameters(), strict=True):
        assert one.equal(other)


def test_farreach_evaluate_says_the_same_of_it(runs):
    scores = evaluate(
        EvaluateConfig(model=runs.validated.model_folder, dataset=runs.config.dataset)
    )
    for name, value in scores.items():
        told = runs.losses(runs.validated, name.replace("test/", "validation/"))
        assert value == pytest.approx(told[BEST], rel=1e-5)
