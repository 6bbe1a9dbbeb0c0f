"""Real workers that are killed, stopped or asked to leave: the training ends all the same."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import psutil
import pytest
import ray

from jobs.assignment import RecordConfig
from jobs.events import read_events
from jobs.runner import exit_codes
from jobs.train import main
from jobs.train_config import TrainConfig
from jobs.workers import WorkersConfig
from tests.jobs.small_training import train_config

pytestmark = [
    pytest.mark.ray,
    pytest.mark.usefixtures("ray_local", "store"),
    pytest.mark.timeout(1200),  # three starts of Ray's workers, however busy the machine is
]
TOTAL_STEPS = 120
OFTEN = RecordConfig(checkpoint_every_steps=5, log_every_steps=1, keep_last=TOTAL_STEPS)


def config_of(dataset: str, folder: Path, **workers) -> TrainConfig:
    return train_config(
        dataset,
        total_steps=TOTAL_STEPS,
        storage_path=str(folder / "runs"),
        record=OFTEN,
        workers=WorkersConfig(**workers),
    )


def workers(title: str = "ray::RayTrain") -> list[psutil.Process]:
    """Ray's processes that train, below this one, the newest last; numbers begin anew at 32,768."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if process.name().startswith(title):
                found.append(process)
        except psutil.Error:
            continue
    return sorted(found, key=lambda process: process.create_time())


def saved(config: TrainConfig) -> int:
    """How many checkpoints there are."""
    folder = Path(config.storage_path) / config.name / "checkpoints"
    return len(list(folder.glob("step-*/manifest.json")))


class Mischief(threading.Thread):
    """Does each thing after another checkpoint has been written by workers that are there."""

    def __init__(self, config: TrainConfig, *things: Callable[[], None]) -> None:
        super().__init__(daemon=True)
        self.config, self.things, self.num_done = config, things, 0

    def run(self) -> None:
        for thing in self.things:
            before = saved(self.config)
            while saved(self.config) <= before:
                time.sleep(0.05)
            thing()
            self.num_done += 1


def history(run_id: str, metric: str) -> list[int]:
    return sorted(each.step for each in mlflow.MlflowClient().get_metric_history(run_id, metric))


def kinds(config: TrainConfig) -> list[str]:
    return [each.kind for each in read_events(f"{config.storage_path}/{config.name}")]


def test_workers_that_die_and_hang_are_replaced_and_the_record_has_every_step_once(
    tiny_dataset, tmp_path
):
    config = config_of(tiny_dataset, tmp_path, num_workers=2, hang_timeout_s=10.0)
    stopped: list[psutil.Process] = []

    def stop_one() -> None:
        stopped.append(workers()[-1])
        stopped[0].send_signal(signal.SIGSTOP)

    mischief = Mischief(
        config,
        lambda: workers("ray::TrainContr")[-1].kill(),
        lambda: workers()[-1].kill(),
        stop_one,
    )
    mischief.start()
    result = main(config)
    assert mischief.num_done == 3
    assert kinds(config) == ["worker lost", "worker lost", "worker hangs"]
    assert not stopped[0].is_running()
    assert history(result.run_id, "loss") == list(range(1, TOTAL_STEPS + 1))
    run = mlflow.get_run(result.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["restarts"] == "3"
    assert any(name.startswith("system/") for name in run.data.metrics)


@pytest.fixture
def one_cpu() -> Iterator[Callable[[], None]]:
    """Somebody else uses one of the two CPUs, until it is called."""

    @ray.remote(num_cpus=1)
    class Somebody:
        def is_there(self) -> bool:
            return True

    somebody = Somebody.remote()
    assert ray.get(somebody.is_there.remote())
    yield lambda: ray.kill(somebody)
    ray.kill(somebody)


def test_a_training_that_was_told_to_end_goes_on_with_as_many_workers_as_there_is_room_for(
    tiny_dataset, tmp_path, one_cpu, capsys
):
    config = config_of(tiny_dataset, tmp_path, num_workers=(1, 2))
    first: list[int] = []

    def end() -> None:
        first.append(len(workers()))
        os.kill(os.getpid(), signal.SIGTERM)

    Mischief(config, end).start()
    with pytest.raises(SystemExit) as caught, exit_codes("train"):
        main(config)
    assert caught.value.code == 143
    assert "which is saved; the same command goes on" in capsys.readouterr().err
    assert first == [1]
    (run,) = mlflow.search_runs(experiment_names=["tests"], output_format="list")
    assert run.info.status == "KILLED"
    one_cpu()
    seen: list[int] = []
    Mischief(config, lambda: seen.append(len(workers()))).start()
    result = main(config)
    assert seen == [2]
    assert result.run_id == run.info.run_id
    assert kinds(config) == ["stopped", "continued"]
    assert history(result.run_id, "loss") == list(range(1, TOTAL_STEPS + 1))
    assert mlflow.get_run(result.run_id).info.status == "FINISHED"
