"""A record that MLflow cannot take now is kept, and in the end it is there once and whole."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import mlflow
import pytest
import requests
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

from jobs import tracking, unsent
from jobs.errors import MachineFault
from jobs.tracking import Run
from jobs.unsent import Spool, recorded

START_S = 240.0
SERVE = """
import os, sys
from mlflow import server
from werkzeug.serving import run_simple
port, os.environ[server.BACKEND_STORE_URI_ENV_VAR], os.environ[server.ARTIFACT_ROOT_ENV_VAR] = (
    sys.argv[1:]
)
run_simple("127.0.0.1", int(port), server.app, threaded=True)
"""
# without the processes that `mlflow server` starts beside it


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(unsent, "RETRY_S", 0.05)
    monkeypatch.setattr(unsent, "ENDING_S", 0.2)


class FakeRun:
    """A run whose store is away when it is told to be."""

    run_id, uri = "r", "http://ada:s3cr3t@host"

    def __init__(self) -> None:
        self.fault: Exception | None = None
        self.in_record = 0
        self.points: list[tuple[int, float, int]] = []
        self.calls: list[tuple[str, Any]] = []

    def last_step(self, metric: str) -> int:
        self._answer()
        return max([self.in_record, *(step for step, _, _ in self.points)])

    def log_points(self, points: Any) -> None:
        self._answer()
        self.points += [(step, metrics["loss"], time_ms) for metrics, step, time_ms in points]

    def log_json(self, value: Any, file: str) -> None:
        self._answer()
        self.calls.append((file, value))

    def set_tags(self, tags: Any) -> None:
        self._answer()
        self.calls.append(("tags", tags))

    def begin(self, *, params: Any, tags: Any) -> None:
        self._answer()
        self.calls.append(("begin", params))

    def end(self, status: str) -> None:
        self._answer()
        self.calls.append(("end", status))

    def _answer(self) -> None:
        if self.fault is not None:
            raise self.fault


AWAY = MlflowException("API request to http://host failed with exception Max retries exceeded")


def spool_of(run: FakeRun, folder: Path) -> Spool:
    return Spool(run, folder=str(folder))  # type: ignore[arg-type]


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert condition()


def test_what_is_logged_while_the_store_is_away_arrives_in_order_and_once(tmp_path):
    run = FakeRun()
    spool = spool_of(run, tmp_path)
    spool.log_metrics({"loss": 1.0}, step=1, time_ms=10)
    assert spool.sent(patience_s=20)
    run.fault = AWAY
    for step in range(2, 200):
        spool.log_metrics({"loss": 1.0 / step}, step=step, time_ms=10 * step)
        if step == 100:
            spool.log_json([1], "events.json")
    until(lambda: spool.away and (tmp_path / "unsent.jsonl").exists())
    run.fault = None
    assert spool.sent(patience_s=20)
    spool.close()
    assert run.points == [(step, 1.0 / step, 10 * step) for step in range(1, 200)]
    assert run.calls == [("events.json", [1])]
    assert [event.kind for event in spool.take_events()] == ["record away", "record back"]
    assert not (tmp_path / "unsent.jsonl").exists()


def test_another_process_sends_what_one_has_left(tmp_path):
    run = FakeRun()
    run.fault = AWAY
    spool = spool_of(run, tmp_path)
    spool.log_metrics({"loss": 0.5}, step=3, time_ms=30)
    spool.end("FAILED")
    spool.close()
    assert len((tmp_path / "unsent.jsonl").read_text().splitlines()) == 2
    run.fault = None
    again = spool_of(run, tmp_path)
    assert again.last_step() == 3, "or its driver would log the step again"
    again.log_metrics({"loss": 0.4}, step=4, time_ms=40)
    assert again.sent(patience_s=20)
    again.close()
    assert run.points == [(3, 0.5, 30), (4, 0.4, 40)]
    assert run.calls == [("end", "FAILED")]


def test_steps_done_again_while_nobody_knew_what_was_in_the_record_are_not_in_it_twice(tmp_path):
    run = FakeRun()
    run.in_record, run.fault = 7, AWAY
    spool = spool_of(run, tmp_path)
    assert spool.last_step() == 0
    for step in range(5, 10):
        spool.log_metrics({"loss": 0.5}, step=step, time_ms=10 * step)
    until(lambda: spool.away)
    run.fault = None
    assert spool.sent(patience_s=20)
    spool.close()
    assert [step for step, _, _ in run.points] == [8, 9]


def test_what_will_never_be_taken_is_told_and_holds_up_nothing(tmp_path):
    run = FakeRun()
    spool = spool_of(run, tmp_path)
    assert spool.sent(patience_s=20)
    run.fault = MlflowException("no such name", error_code=INVALID_PARAMETER_VALUE)
    spool.set_tags({"(": 1})
    assert spool.sent(patience_s=20)
    run.fault = None
    spool.log_metrics({"loss": 0.5}, step=1, time_ms=10)
    assert spool.sent(patience_s=20)
    spool.close()
    assert [event.kind for event in spool.take_events()] == ["record refuses"]
    assert run.points == [(1, 0.5, 10)]


def test_a_run_that_takes_nothing_any_more_is_told_of_once_and_not_for_every_call(tmp_path):
    run = FakeRun()
    run.fault = MlflowException("the run was deleted", error_code=INVALID_PARAMETER_VALUE)
    spool = spool_of(run, tmp_path)
    told: list[str] = []
    for _ in range(5):
        for event in spool.take_events():
            # as a monitor does with every event
            spool.log_json([event.kind], "events.json")
            spool.set_tags({"restarts": 0})
            told.append(event.text)
        spool.log_metrics({"loss": 0.5}, step=1, time_ms=10)
        assert spool.sent(patience_s=20)
    spool.close()
    assert len(told) == len(set(told)) <= 3


def test_a_password_in_the_address_of_the_store_is_not_told(tmp_path):
    run = FakeRun()
    address = f"{run.uri}/api/2.0/mlflow/runs/log-batch"
    run.fault = MlflowException(f"API request to {address} failed with exception refused")
    spool = spool_of(run, tmp_path)
    spool.log_metrics({"loss": 0.5}, step=1, time_ms=10)
    until(lambda: spool.away)
    run.fault = MlflowException(f"{address} refuses", error_code=INVALID_PARAMETER_VALUE)
    assert spool.sent(patience_s=20)
    spool.close()
    away, refuses, _ = (event.text for event in spool.take_events())
    assert "http://host/api" in away
    assert "http://host/api" in refuses
    assert "s3cr3t" not in away + refuses


def test_a_line_that_no_call_can_be_made_of_holds_up_nothing(tmp_path):
    (tmp_path / "unsent.jsonl").write_text(
        '{"call": "log_metrics"}\n{"call": "log_json", "name": "a"}\n'
        '{"call": "end", "status": "KILLED"}\n'
    )
    run = FakeRun()
    spool = spool_of(run, tmp_path)
    assert spool.last_step() == 0
    assert spool.sent(patience_s=5)
    spool.close()
    assert run.calls == [("end", "KILLED")]


def test_calls_that_no_run_has_are_not_made_for_a_file(tmp_path):
    (tmp_path / "unsent.jsonl").write_text(
        json.dumps({"call": "__init__"}) + "\nnot JSON\n" + json.dumps(["end"]) + "\n"
        + json.dumps({"call": "end", "status": "KILLED"}) + "\n"
    )  # fmt: skip
    run = FakeRun()
    spool = spool_of(run, tmp_path)
    spool.set_tags({"a": 1})
    assert spool.sent(patience_s=20)
    spool.close()
    assert run.calls == [("end", "KILLED"), ("tags", {"a": 1})]


@pytest.mark.parametrize(
    ("error", "status"),
    [(RuntimeError, "FAILED"), (KeyboardInterrupt, "KILLED"), (SystemExit, "KILLED")],
)
def test_a_training_that_breaks_does_not_stay_running(tmp_path, error, status):
    run = FakeRun()
    with pytest.raises(error), recorded(run, folder=str(tmp_path), params={}, tags={}):
        raise error
    assert run.calls == [("begin", {}), ("end", status)]


def test_a_training_that_ends_while_the_store_is_away_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(unsent, "PATIENCE_S", 0.2)
    run = FakeRun()
    run.fault = AWAY
    with (
        pytest.raises(MachineFault, match=r"http://host does not answer.*same command sends it"),
        recorded(run, folder=str(tmp_path), params={}, tags={}),
    ):
        pass
    assert len((tmp_path / "unsent.jsonl").read_text().splitlines()) == 2
    assert "MLFLOW_HTTP_REQUEST_MAX_RETRIES" not in os.environ


def test_a_model_may_take_longer_than_figures_and_what_the_user_has_said_stays(
    tmp_path, monkeypatch
):
    retries, timeout = "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"
    monkeypatch.setenv(retries, "3")
    monkeypatch.delenv(timeout, raising=False)
    with recorded(FakeRun(), folder=str(tmp_path), params={}, tags={}) as spool:  # type: ignore[arg-type]
        assert (os.environ[retries], os.environ[timeout]) == ("3", "10")
        with spool.at_leisure():
            assert os.environ[retries] == "3"
            assert timeout not in os.environ
        assert os.environ[timeout] == "10"
    assert timeout not in os.environ


class Server:
    """A real MLflow server on loopback that comes and goes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as held:
            held.bind(("127.0.0.1", 0))
            self.port = held.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-c", SERVE, str(self.port)),
                *(f"sqlite:///{self.folder}/mlflow.db", str(self.folder / "artifacts")),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            try:
                if requests.get(f"{self.uri}/health", timeout=5).ok:
                    return
            except requests.RequestException:
                time.sleep(0.1)
        raise TimeoutError(f"no MLflow server at {self.uri}")

    def stop(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def close(self) -> None:
        if self.process.poll() is None:
            self.stop()


def test_a_server_that_dies_and_comes_back_has_every_step_once(store, monkeypatch):
    monkeypatch.setattr(unsent, "RETRY_S", 0.5)
    before = mlflow.get_tracking_uri()
    with closing(Server(store)) as server:
        server.start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
        run: Run = tracking.new_run("away", name="kept")
        with recorded(run, folder=str(store / "run"), params={"lr": 1}, tags={"seed": 3}) as spool:
            log_steps(spool, range(1, 40))
            assert spool.sent(patience_s=60)
            server.stop()
            log_steps(spool, range(40, 80))
            until(lambda: spool.away)
            server.start()
            log_steps(spool, range(80, 120))
            # what a killed driver's successor sends again
            log_steps(spool, range(30, 60))
        client = mlflow.MlflowClient()
        history = client.get_metric_history(run.run_id, "loss")
        seen = client.get_run(run.run_id)
    mlflow.set_tracking_uri(before)
    assert sorted((point.step, point.value) for point in history) == [
        (step, 1.0 / step) for step in range(1, 120)
    ]
    assert seen.info.status == "FINISHED"
    assert (seen.data.params, seen.data.tags["seed"]) == ({"lr": "1"}, "3")


def log_steps(spool: Spool, steps: range) -> None:
    for step in steps:
        spool.log_metrics({"loss": 1.0 / step}, step=step, time_ms=1_000_000 + step)
