"""What a run holds afterwards, read back through MLflow's own client."""

import socket

import mlflow
import pytest

from jobs import mlflow_store, tracking
from jobs.errors import MachineFault, UserError


def test_the_default_store_lies_in_the_working_folder_wherever_it_is_read_from(store):
    assert mlflow_store.tracking_uri() == f"sqlite:///{store}/mlflow.db"


def test_a_run_keeps_its_numbers_dataset_and_files_beside_the_database(store):
    with tracking.open_run("scenes", name="first", params={"lr": 1e-3}, tags={"seed": 7}) as run:
        run.log_metrics({"loss": 0.5, "speed_mpx_s": 3}, step=10)
        run.log_dataset(
            "s3://bucket/set", name="set", digest="a" * 64, context="training", counts={"images": 4}
        )
        run.log_json({"a": [1]}, "config.json")
    client = mlflow.MlflowClient(mlflow_store.tracking_uri())
    seen = client.get_run(run.run_id)
    assert seen.info.status == "FINISHED"
    assert seen.data.params == {"lr": "0.001"}
    assert seen.data.metrics == {"loss": 0.5, "speed_mpx_s": 3.0}
    assert seen.data.tags["seed"] == "7"
    assert seen.data.tags["farreach_version"]
    entry = seen.inputs.dataset_inputs[0]
    assert entry.dataset.digest == "a" * 36
    assert "s3://bucket/set" in entry.dataset.source
    assert {"digest": "a" * 64, "images": "4", "mlflow.data.context": "training"}.items() <= {
        tag.key: tag.value for tag in entry.tags
    }.items()
    assert list((store / "mlruns" / "scenes").rglob("config.json"))


def test_a_figure_becomes_a_picture(store):
    from matplotlib.figure import Figure

    with tracking.open_run("scenes") as run:
        run.log_figure(Figure(), "plots/confusion.png")
    picture = next((store / "mlruns").rglob("plots/confusion.png"))
    assert picture.read_bytes()[:4] == b"\x89PNG"


def test_a_run_that_was_deleted_is_not_continued(store):
    with tracking.open_run("scenes") as run:
        pass
    mlflow.MlflowClient().delete_run(run.run_id)
    with pytest.raises(UserError, match=f"{run.run_id} was deleted: restore it"):
        tracking.known_run(run.run_id)


def test_a_resumed_run_is_the_same_run_and_keeps_what_it_was_started_with(store):
    with tracking.open_run("scenes", params={"lr": 1, "w": 2}) as first:
        first.log_metrics({"loss": 2.0}, step=1)
    again = tracking.known_run(first.run_id)
    again.begin(params={"lr": 1, "w": 4, "new": 5}, tags={})
    again.log_metrics({"loss": 1.0}, step=2)
    seen = mlflow.MlflowClient(mlflow_store.tracking_uri()).get_run(first.run_id)
    assert again.run_id == first.run_id
    assert seen.data.params == {"lr": "1", "w": "2", "new": "5"}
    assert seen.data.tags["resumed.w"] == "4"
    assert "resumed.lr" not in seen.data.tags
    assert seen.data.metrics["loss"] == 1.0
    assert seen.info.status == "RUNNING"


@pytest.mark.parametrize(
    ("error", "status"), [(RuntimeError, "FAILED"), (KeyboardInterrupt, "KILLED")]
)
@pytest.mark.usefixtures("store")
def test_a_run_that_breaks_does_not_stay_running(error, status):
    with (
        pytest.raises(error),
        tracking.open_run("scenes") as run,
    ):
        raise error
    assert (
        mlflow.MlflowClient(mlflow_store.tracking_uri()).get_run(run.run_id).info.status == status
    )


def test_a_server_that_is_down_is_one_line_not_minutes_of_retries(monkeypatch):
    with socket.socket() as held:  # bound, so that nobody else listens there
        held.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{held.getsockname()[1]}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        with pytest.raises(MachineFault) as caught:
            mlflow_store.require_tracking()
    assert str(caught.value).startswith(f"no MLflow server answers at {uri}")
    assert "\n" not in str(caught.value)


def test_a_store_in_a_folder_that_is_absent_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/absent/mlflow.db")
    with pytest.raises(UserError, match="set MLFLOW_TRACKING_URI"):
        mlflow_store.require_tracking()


@pytest.mark.usefixtures("store")
def test_a_run_that_does_not_exist_cannot_be_resumed():
    with pytest.raises(UserError, match="not found"):
        tracking.known_run("0" * 32)


def test_the_password_of_a_store_is_not_shown(monkeypatch):
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{held.getsockname()[1]}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://ada:s3cr3t@{place}/mlflow")
        with pytest.raises(MachineFault) as caught:
            mlflow_store.require_tracking()
    assert f"at http://{place}/mlflow " in str(caught.value)
    assert "s3cr3t" not in str(caught.value)


def test_adding_to_a_run_that_has_ended_leaves_its_status_and_makes_no_experiment(store):
    with tracking.open_run("scenes") as run:
        pass
    with tracking.ended_run(run.run_id) as again:
        again.log_dataset("dataset", name="test", digest="d" * 64, context="evaluation", counts={})
    with pytest.raises(MachineFault), tracking.ended_run(run.run_id) as again:
        again.log_metrics({"no (such) name": 1.0}, step=0)
    client = mlflow.MlflowClient()
    assert client.get_run(run.run_id).info.status == "FINISHED"
    assert [used.dataset.name for used in client.get_run(run.run_id).inputs.dataset_inputs] == [
        "test"
    ]
    assert {each.name for each in client.search_experiments()} == {"Default", "scenes"}
