"""A training whose worker dies in the middle ends with a line, and leaves nothing behind."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import torch.distributed as dist

from fit_model.bounded.config import BoundedConfig
from fit_model.parallel.config import ParallelConfig
from jobs.assignment import RecordConfig
from jobs.runner import exit_codes
from jobs.small_world import in_small_world
from jobs.train import main
from jobs.worker import told_of_each_other
from jobs.workers import WorkersConfig
from tests.jobs.small_training import train_config, write_dataset, write_images

MANY_STEPS = 100_000


def leave(task: None, rank: int) -> None:
    """The second worker goes before the gradients are summed."""
    if rank == 1:
        os._exit(1)
    with told_of_each_other():
        dist.all_reduce(torch.ones(1))


def test_a_worker_that_gets_no_answer_says_so():
    with pytest.raises(
        ConnectionError,
        match=r"^worker 0 of 2 got no answer from the others: one of them has died or hangs",
    ):
        in_small_world(leave, None, num_workers=2, threads=1)


def test_what_is_not_the_fault_of_a_collective_stays_as_it_is():
    with pytest.raises(RuntimeError, match=r"^shapes differ$"), told_of_each_other():
        raise RuntimeError("shapes differ")


def holding(folder: Path) -> Iterator[psutil.Process]:
    """Children of this process that hold a file of the folder open, also one without a name."""
    for process in psutil.Process().children(recursive=True):
        try:
            files = [os.readlink(each) for each in Path(f"/proc/{process.pid}/fd").iterdir()]
        except OSError:
            continue
        if any(name.startswith(str(folder)) for name in files):
            yield process


class Killer(threading.Thread):
    """Waits for a checkpoint, then kills the first worker whose tokens lie in the folder."""

    def __init__(self, folder: Path, training: Path) -> None:
        super().__init__(daemon=True)
        self.folder, self.training, self.killed = folder, training, False

    def run(self) -> None:
        while not self.killed:
            time.sleep(0.05)
            if not list(self.training.glob("checkpoints/step-*/manifest.json")):
                continue
            for process in holding(self.folder):
                process.send_signal(signal.SIGKILL)
                self.killed = True
                break


@pytest.fixture
def shared_images(tmp_path) -> Any:
    """Images of at least two groups."""
    write_images(tmp_path / "images", sizes_px=((32, 32), (20, 40)))
    return write_dataset(tmp_path / "images", tmp_path / "dataset")


@pytest.mark.ray
@pytest.mark.usefixtures("ray_local", "store")
def test_a_killed_worker_ends_a_training_of_one_attempt_with_a_line(
    shared_images, tmp_path, capsys
):
    waiting = tmp_path / "waiting"
    waiting.mkdir()
    config = train_config(
        shared_images,
        total_steps=MANY_STEPS,
        storage_path=str(tmp_path / "runs"),
        parallel=ParallelConfig(groups=2, timeout_s=60.0),
        workers=WorkersConfig(num_workers=2, max_failures=0),
        bounded=BoundedConfig(groups_a_chunk=1, offload="disk", folder=str(waiting)),
        record=RecordConfig(checkpoint_every_steps=2),
    )
    killer = Killer(waiting, tmp_path / "runs" / config.name)
    killer.start()
    with pytest.raises(SystemExit) as caught, exit_codes("train"):
        main(config)
    assert killer.killed
    assert caught.value.code == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "died in the middle" in line or "another one has died or hangs" in line
    assert not list(waiting.iterdir())
    assert not list(holding(waiting))
