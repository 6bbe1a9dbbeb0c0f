"""`farreach preprocess` as a user runs it: another process, its own Ray, exit codes and words."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import requests
from moto.server import ThreadedMotoServer

from jobs.cli import run_entry
from jobs.preprocess import PreprocessConfig, main
from jobs.settings import load
from pipeline.dataset import open_dataset
from pipeline.verify import verify
from tests.pipeline.scenes import noise, write_raster

REPOSITORY = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.ray


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "tester",
        "AWS_SECRET_ACCESS_KEY": "tester",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    yield f"http://{host}:{port}"
    server.stop()


def start(*arguments: str) -> subprocess.Popen[str]:
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    return subprocess.Popen(
        [sys.executable, "-m", "jobs.preprocess", *arguments],
        cwd=REPOSITORY,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_scans_travel_from_one_bucket_prefix_to_another_with_a_count(
    endpoint: str, tmp_path: Path
) -> None:
    path = write_raster(tmp_path / "scan.tif", noise(300, 200, 3))
    for key, content in {"": b"", "/in/scan.tif": path.read_bytes(), "/in/bad.tif": b"?"}.items():
        requests.put(f"{endpoint}/scans{key}", data=content, timeout=10).raise_for_status()
    process = start("sources=s3://scans/in", "output=s3://scans/out", "grouping.group_side_px=64")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "1 image(s), 20 group(s) stored" in out
    assert "1 image(s) in quarantine" in out
    assert "s3://scans/in/bad.tif" in out
    assert "next: farreach train CONFIG.yaml dataset=s3://scans/out" in out
    stored = open_dataset("s3://scans/out")
    (record,) = stored.images()
    assert np.array_equal(stored.read(record).pixels[0], noise(300, 200, 3)[:64, :64])


@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("on_error=fail", "bad.tif"),
        ("grouping.group_side_px=50", "50 is no multiple of patch_px 16: take 48"),
        ("sources=nowhere", "nowhere: no such folder"),
        ("grouping.group_sid_px=64", "did you mean 'grouping.group_side_px'"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    setting: str,
    says: str,
) -> None:
    write_raster(tmp_path / "in" / "good.tif", noise(64, 64, 3))
    (tmp_path / "in" / "bad.tif").write_bytes(b"?")
    common = [f"sources={tmp_path / 'in'}", f"output={tmp_path / 'out'}"]
    monkeypatch.setattr("sys.argv", ["x", *common, "grouping.group_side_px=64", setting])
    with pytest.raises(SystemExit) as caught:
        run_entry(PreprocessConfig, main, "preprocess")
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert says in line
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("ray_local")
def test_a_killed_job_leaves_no_dataset_and_the_same_command_then_makes_it(tmp_path: Path) -> None:
    for number in range(6):
        write_raster(tmp_path / "in" / f"{number}.tif", noise(1500, 1500, 3, seed=number))
    out = tmp_path / "out"
    command = [f"sources={tmp_path / 'in'}", f"output={out}", "grouping.group_side_px=64"]
    command.append("shard_mb=1")
    process = start(*command)
    try:
        deadline = time.monotonic() + 100
        while not list(out.glob("shards/*.arrow")) and time.monotonic() < deadline:
            time.sleep(0.02)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    assert list(out.glob("shards/*.arrow")), "the job never wrote a shard"
    assert not (out / "dataset.json").exists()
    with pytest.raises(ValueError, match="not a finished dataset"):
        open_dataset(str(out))
    main(load(PreprocessConfig, None, command))
    assert verify(open_dataset(str(out))) == []
    assert not (out / "unfinished.json").exists()
