"""A local Ray is private, sized as asked, and gone afterwards."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from jobs import cluster
from jobs.errors import MachineFault, UserError


def test_a_user_without_a_token_gets_one_that_nobody_else_can_read(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    cluster.ensure_token()
    path = tmp_path / ".ray" / "auth_token"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    first = path.read_text()
    assert len(first) == 64
    cluster.ensure_token()
    assert path.read_text() == first


def test_a_token_in_the_environment_leaves_the_home_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_TOKEN", "x" * 64)
    cluster.ensure_token()
    assert not list(tmp_path.iterdir())


def test_a_cluster_that_is_down_is_a_fault_of_the_machine_within_seconds():
    with pytest.raises(MachineFault, match=r"no Ray cluster answers at RAY_ADDRESS=127\.0\.0\.1:9"):
        cluster.require_reachable("127.0.0.1:9")


def test_a_job_server_is_no_cluster_address():
    with pytest.raises(UserError, match="farreach submit"):
        cluster.require_reachable("http://127.0.0.1:8265")


@pytest.mark.ray
@pytest.mark.usefixtures("ray_local")
def test_more_workers_than_cpus_are_refused_with_the_number_that_fits():
    cluster.require_cpus(2)
    with pytest.raises(UserError) as caught:
        cluster.require_cpus(4)
    assert str(caught.value) == (
        "4 workers of 1 CPU were asked for, but the cluster has 2 CPUs: "
        "set workers.num_workers=2 or join a larger cluster"
    )
    with pytest.raises(UserError, match=r"set workers\.device=cpu"):
        cluster.require_gpus(1)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_local")
def test_a_ray_that_is_held_already_is_shared_and_left_running():
    import ray

    before = ray.get_runtime_context().get_node_id()
    with cluster.connect(num_cpus=1):
        assert ray.get_runtime_context().get_node_id() == before
    assert ray.is_initialized()


ALONE = """
import warnings; warnings.simplefilter("error")
import os, psutil
from jobs.cluster import connect
def others():
    return psutil.Process().children(recursive=True)
with connect(num_cpus=1):
    import ray
    @ray.remote
    def work():
        from ray._private.authentication.authentication_utils import is_token_auth_enabled
        return os.getcwd(), is_token_auth_enabled()
    cwd, token = ray.get(work.remote())
    assert cwd == os.getcwd(), cwd
    assert token
    assert ray.cluster_resources()["CPU"] == 1
    ports = {c.laddr for p in others() for c in p.net_connections("inet") if c.status == "LISTEN"}
    print(sorted({address.ip.removeprefix("::ffff:") for address in ports}))
assert not [p for p in others() if p.status() != psutil.STATUS_ZOMBIE]
"""


@pytest.mark.ray
def test_a_local_ray_listens_on_loopback_asks_for_a_token_and_is_stopped(tmp_path):
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("RAY_")
    } | {"HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", ALONE],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "['127.0.0.1']"
    assert done.stderr == ""
    assert (tmp_path / ".ray" / "auth_token").is_file()
