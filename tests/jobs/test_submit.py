"""A real Ray head with tokens on: what a submitted job ends with is what `submit` ends with."""

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from fit_model import weights
from pipeline.dataset import open_dataset

REPOSITORY = Path(__file__).parents[2]
pytestmark = pytest.mark.ray

TRAINING = """
name: tiny
total_steps: 2
target: {kind: classify}
model:
  kind: encoder
  patch_px: 16
  trunk: {layers: "(1)1", width: 16, latent_width: 16, latents_per_group: 1, heads: 2,
          latent_heads: 2}
batch: {images_per_step: 2}
workers: {num_workers: 2}
"""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    address: str
    environment: dict[str, str]

    def submit(self, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-m", "jobs.cli", "submit", *map(str, arguments)],
            env=self.environment | {"RAY_API_SERVER_ADDRESS": self.address} | environment,
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=150,
        )


def free_ports(count: int) -> list[int]:
    held = [socket.socket() for _ in range(count)]
    try:
        for each in held:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in held]
    finally:
        for each in held:
            each.close()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[Cluster]:
    home = tmp_path_factory.mktemp("home")
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text(secrets.token_hex(32))
    ray = str(Path(sys.executable).with_name("ray"))
    port, dashboard, client, agent = free_ports(4)
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW"))
    } | {
        "HOME": str(home),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
        "RAY_AUTH_MODE": "token",
        "MLFLOW_TRACKING_URI": f"sqlite:///{home}/mlflow.db",
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
    }
    log = (home / "ray.log").open("w")
    # its own session, so that its processes, and no other Ray of this machine, can be stopped
    head = subprocess.Popen(
        [
            *(ray, "start", "--head", "--block", "--num-cpus=2", "--node-ip-address=127.0.0.1"),
            *(f"--port={port}", f"--dashboard-port={dashboard}", "--include-dashboard=true"),
            *(f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}"),
        ],
        env=environment,
        cwd=home,
        stdout=log,
        stderr=log,
        start_new_session=True,
    )
    try:
        wait_for(dashboard, head, home / "ray.log")
        del environment["RAY_AUTH_MODE"]
        yield Cluster(address=f"http://127.0.0.1:{dashboard}", environment=environment)
    finally:
        stop(head)
        log.close()


def wait_for(port: int, head: subprocess.Popen, log: Path) -> None:
    for _ in range(600):
        assert head.poll() is None, log.read_text()
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    pytest.fail(log.read_text())


def stop(head: subprocess.Popen) -> None:
    family = [psutil.Process(head.pid), *psutil.Process(head.pid).children(recursive=True)]
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    head.wait(timeout=20)
    psutil.wait_procs(family, timeout=20)


def test_jobs_that_preprocess_and_train_run_on_the_cluster_and_end_with_0(cluster, tmp_path):
    (tmp_path / "images").mkdir()
    for number, name in enumerate("ab"):
        pixels = np.random.default_rng(number).integers(0, 255, (64, 96, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{name}.png")
    (tmp_path / "labels.csv").write_text("image,label,split\na,x,train\nb,y,train\n")
    config = tmp_path / "mine.yaml"
    config.write_text("grouping: {group_side_px: 32, patch_px: 16}\n")
    done = cluster.submit(
        "preprocess",
        *(config, f"sources={tmp_path}/images", f"output={tmp_path}/set"),
        f"labels={tmp_path}/labels.csv",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert open_dataset(str(tmp_path / "set")).images()[0].groups == tuple(range(6))

    config.write_text(TRAINING)
    done = cluster.submit(
        "train", config, f"dataset={tmp_path}/set", f"storage_path={tmp_path}/runs"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    model = weights.load(tmp_path / "runs" / "tiny" / "model")
    assert model.config.head.classes == ("x", "y")


def test_a_place_that_would_be_thrown_away_is_refused(cluster, tmp_path):
    config = tmp_path / "mine.yaml"
    config.write_text(TRAINING)
    done = cluster.submit("train", config, "dataset=/nowhere")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "storage_path 'runs' is relative" in done.stdout


def test_a_config_with_a_mistake_ends_with_2_and_the_reason(cluster, tmp_path):
    config = tmp_path / "mine.yaml"
    config.write_text("output: /nowhere\n")
    done = cluster.submit("preprocess", config, "sourcse=/images")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "no setting 'sourcse'; did you mean 'sources'?" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_a_wrong_token_is_refused_in_one_line(cluster, tmp_path):
    done = cluster.submit("doctor", RAY_AUTH_TOKEN="wrong" * 8)
    assert done.returncode == 2
    assert done.stderr.startswith(f"farreach submit: the Ray cluster at {cluster.address} refuses")
    assert done.stderr.count("\n") == 1
    done = cluster.submit("doctor", HOME=str(tmp_path))
    assert done.returncode == 2
    assert "refuses the token" in done.stderr
    assert done.stderr.count("\n") == 1


def test_interrupting_leaves_the_job_running_and_says_how_to_stop_it(cluster, tmp_path):
    config = tmp_path / "slow.yaml"
    config.write_text("{}")
    with subprocess.Popen(
        [sys.executable, "-m", "jobs.cli", "submit", "doctor", config],
        env=cluster.environment | {"RAY_API_SERVER_ADDRESS": cluster.address},
        cwd=REPOSITORY,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr
        assert " runs as raysubmit_" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert "ray job stop --address" in rest
    assert process.returncode == 130


def test_an_address_where_nobody_listens_is_one_line():
    address = f"http://127.0.0.1:{free_ports(1)[0]}"
    done = subprocess.run(
        [sys.executable, "-m", "jobs.cli", "submit", "doctor", "--address", address],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"farreach submit: no Ray job server answers at {address}")
    assert done.stderr.count("\n") == 1
