"""What the tests of the jobs share: an MLflow store, and a warning that is not ours."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from jobs.small_world import in_small_world
from jobs.train import main
from jobs.train_config import TrainConfig
from jobs.trained import TrainResult
from tests.jobs.small_engines import WORKERS, on_two
from tests.jobs.small_training import train_config, write_dataset, write_images

# MLflow 3.17 uses a loader that SQLAlchemy 2.1 deprecates
NOT_OURS = "ignore:The ``noload`` loader strategy"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings(NOT_OURS))


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory) -> Path:
    """An empty store: MLflow takes seconds to make its tables, so once is enough."""
    import mlflow

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path.parent)  # where MLflow puts the artifacts of its default experiment
        mlflow.MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def store(tmp_path, monkeypatch, empty_store) -> Path:
    """A working folder with an empty MLflow store in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "mlflow.db").write_bytes(empty_store.read_bytes())
    return tmp_path


@pytest.fixture(scope="session")
def tiny_images(tmp_path_factory) -> Path:
    """A folder of small rasters of several sizes, with labels.csv."""
    folder = tmp_path_factory.mktemp("images")
    write_images(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_dataset(tiny_images, tmp_path_factory) -> str:
    """The small rasters in patch groups."""
    return write_dataset(tiny_images, tmp_path_factory.mktemp("stored") / "dataset")


@dataclass(frozen=True, kw_only=True)
class Sharded:
    """What two workers made of every variant of a small engine, and their checkpoints."""

    found: dict[str, Any]
    folder: Path


@pytest.fixture(scope="session")
def sharded(tmp_path_factory) -> Sharded:
    folder = tmp_path_factory.mktemp("sharded")
    found = in_small_world(on_two, str(folder), num_workers=WORKERS, threads=1)
    return Sharded(found=found, folder=folder)


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A finished training and where it left its traces."""

    config: TrainConfig
    result: TrainResult
    storage: Path

    def run(self) -> Any:
        import mlflow

        return mlflow.get_run(self.result.run_id)

    def history(self, metric: str) -> list[tuple[int, float]]:
        """(step, value) in the order of steps."""
        import mlflow

        points = mlflow.MlflowClient().get_metric_history(self.result.run_id, metric)
        return sorted((point.step, point.value) for point in points)


@pytest.fixture(scope="session")
def trained_once(ray_local, tiny_dataset, empty_store, tmp_path_factory) -> Trained:
    folder = tmp_path_factory.mktemp("trained")
    (folder / "mlflow.db").write_bytes(empty_store.read_bytes())
    config = train_config(
        tiny_dataset, total_steps=40, storage_path=str(folder / "runs"), register_as="tiny"
    )
    # dropout draws random numbers in every step: a restart must draw the same ones
    trunk = replace(config.model.trunk, dropout=0.1)
    config = replace(config, model=replace(config.model, trunk=trunk))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        return Trained(config=config, result=main(config), storage=folder / "runs")


@pytest.fixture
def trained(trained_once, monkeypatch) -> Trained:
    """A model trained on the small dataset by two workers, its store the current one."""
    import mlflow

    uri = f"sqlite:///{trained_once.storage.parent}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    mlflow.set_tracking_uri(uri)
    return trained_once
