"""Training that was killed goes on where it was saved, in the same run, to the same end."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import mlflow
import psutil
import pytest
import yaml

from jobs.settings import to_dict
from jobs.train import main
from jobs.train_config import TrainConfig
from tests.jobs.conftest import Trained

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_local")]
REPOSITORY = Path(__file__).parents[2]


def checkpoints(folder: Path) -> list[str]:
    """The checkpoints that a restart would continue from, oldest first."""
    return sorted(path.parent.name for path in folder.glob("checkpoints/step-*/manifest.json"))


def modified(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def kill_after_a_checkpoint(config: TrainConfig, settings: Path, folder: Path) -> None:
    """`farreach train` as a user types it, killed with all its processes between checkpoints."""
    settings.write_text(yaml.safe_dump(to_dict(config)))
    environment = {name: each for name, each in os.environ.items() if name != "RAY_ADDRESS"}
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs.cli", "train", str(settings)],
        env=environment,
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    family: list[psutil.Process] = []
    try:
        deadline = time.monotonic() + 300
        while not checkpoints(folder) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        family = psutil.Process(process.pid).children(recursive=True)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        # Ray's own processes have sessions of their own; all of them are this test's
        for each in family:
            if each.is_running():
                each.kill()
        psutil.wait_procs(family, timeout=10)
        said = process.communicate()[0]
    assert checkpoints(folder), said


def forget_figures(store: Path, *, after_step: int) -> None:
    """Leave the run as if its driver had been killed with newer figures not logged yet."""
    with closing(sqlite3.connect(store)) as database, database:
        for table in ("metrics", "latest_metrics"):
            database.execute(
                f"DELETE FROM {table} WHERE step > ? AND key NOT LIKE 'system/%'", (after_step,)
            )


@pytest.fixture(scope="module")
def killed_and_continued(trained_once, tmp_path_factory, empty_store) -> Iterator[dict]:
    folder = tmp_path_factory.mktemp("killed")
    (folder / "mlflow.db").write_bytes(empty_store.read_bytes())
    config = replace(trained_once.config, storage_path=str(folder / "runs"))
    # more than the undisturbed run keeps: they show what was not done again
    config = replace(config, record=replace(config.record, keep_last=9))
    runs = folder / "runs" / config.name
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        kill_after_a_checkpoint(config, folder / "train.yaml", runs)
        kept = checkpoints(runs)
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        (run,) = mlflow.search_runs(experiment_names=["tests"], output_format="list")
        forget_figures(folder / "mlflow.db", after_step=4)
        before = {
            path: at for name in kept for path, at in modified(runs / "checkpoints" / name).items()
        }
        result = main(config)
        yield {
            "trained": Trained(config=config, result=result, storage=folder / "runs"),
            "run_id": run.info.run_id,
            "status": run.info.status,
            "kept": kept,
            "modified": before,
        }


def test_the_kill_came_before_the_end(killed_and_continued):
    last = f"step-{killed_and_continued['trained'].config.total_steps:07d}"
    assert killed_and_continued["kept"]
    assert last not in killed_and_continued["kept"]
    assert killed_and_continued["status"] == "RUNNING"


def test_it_continues_from_the_last_checkpoint_and_does_nothing_twice(killed_and_continued):
    folder = killed_and_continued["trained"].storage / "tiny"
    assert checkpoints(folder)[-1] == "step-0000040"
    after = modified(folder)
    for path, at in killed_and_continued["modified"].items():
        assert after[path] == at, f"{path} was written again"


def test_it_stays_one_run_with_every_step_once_also_those_that_died_unlogged(killed_and_continued):
    trained = killed_and_continued["trained"]
    (run,) = mlflow.search_runs(experiment_names=["tests"], output_format="list")
    assert run.info.run_id == trained.result.run_id == killed_and_continued["run_id"]
    assert run.info.status == "FINISHED"
    for metric in ("loss", "lr", "grad_norm"):
        steps = [step for step, _ in trained.history(metric)]
        assert steps == list(range(1, trained.config.total_steps + 1)), metric


def test_it_ends_where_the_run_that_was_never_killed_ends(killed_and_continued, trained_once):
    continued = dict(killed_and_continued["trained"].history("loss"))
    mlflow.set_tracking_uri(f"sqlite:///{trained_once.storage.parent}/mlflow.db")
    assert continued == dict(trained_once.history("loss"))
