"""What the tests of the jobs share: an MLflow store, and a warning that is not ours."""

from pathlib import Path

import pytest

from tests.jobs.small_training import write_dataset, write_images

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
