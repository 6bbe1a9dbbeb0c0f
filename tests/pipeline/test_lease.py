"""Two jobs at one output refuse each other; a dead one's place is taken, a slow one finds out."""

import json
import os
import signal
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import s3fs

from pipeline import lease
from pipeline.config import GroupingConfig, PreprocessConfig
from pipeline.dataset import open_dataset
from pipeline.flow import Stage, preprocess
from pipeline.lease import hold
from pipeline.storage import Location
from pipeline.verify import verify
from tests.pipeline.killing import forks, hold_and_wait
from tests.pipeline.scenes import in_process, noise, stores, write_raster


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    if request.param == "local":
        return Location.of(str(tmp_path / "out"))
    request.getfixturevalue("s3")
    return Location.of("s3://scans/leased")


def leases(place: Location) -> list[str]:
    return [name for name in place.files() if name.startswith("lease")]


def from_elsewhere(place: Location, **said: Any) -> Location:
    """The lease of a job on a machine that cannot be seen from here."""
    file = place.child("lease-000004.json")
    holder = {"owner": "x", "host": "far", "pid": 1, "machine": "far", "started": "1", "beat": 3}
    file.create_bytes(json.dumps({**holder, **said}).encode())
    return file


def test_a_second_job_is_refused_while_the_first_one_works(place: Location) -> None:
    with hold(place):
        with pytest.raises(ValueError, match=rf"at work here \(process {os.getpid()} on"):
            hold(place).__enter__()
        assert len(leases(place)) == 1
    assert leases(place) == []
    with hold(place):
        pass


def test_a_file_is_created_once_whoever_comes_first(place: Location) -> None:
    file = place.child("one.json")
    file.create_bytes(b"first")
    with pytest.raises(FileExistsError):
        file.create_bytes(b"second")
    assert file.read_bytes() == b"first"
    assert place.files() == ["one.json"]


def test_a_killed_job_s_lease_is_taken_over_at_once_and_a_living_one_s_is_not(
    tmp_path: Path,
) -> None:
    place = Location.of(str(tmp_path / "out"))
    processes = forks()
    holding = processes.Event()
    other = processes.Process(target=hold_and_wait, args=(place, holding), daemon=True)
    other.start()
    assert holding.wait(60)
    with pytest.raises(ValueError, match=rf"process {other.pid} on"):
        hold(place).__enter__()
    assert other.pid is not None
    os.kill(other.pid, signal.SIGKILL)
    other.join()
    with hold(place):
        assert leases(place) == ["lease-000002.json"]


def test_a_holder_that_slept_through_two_others_leaves_the_lease_to_the_last(
    place: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "SILENT_S", 0.0)
    monkeypatch.setattr(lease, "_is_alive", lambda holder: None)
    with ExitStack() as slow:
        first = slow.enter_context(hold(place))
        with hold(place):
            pass
        with hold(place) as last:
            assert leases(place) == ["lease-000001.json"]
            with pytest.raises(ValueError, match="another job has taken over"):
                first.check()
            slow.close()
            last.check()


def test_a_process_that_got_a_dead_holder_s_id_is_not_taken_for_it(tmp_path: Path) -> None:
    place = Location.of(str(tmp_path / "out"))
    from_elsewhere(place, machine=lease._machine(), pid=os.getppid(), started="1")
    with hold(place):
        assert leases(place) == ["lease-000005.json"]


def test_a_job_elsewhere_is_watched_and_its_place_taken_only_when_it_is_silent(
    place: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "WATCH_S", 0.0)
    monkeypatch.setattr(lease, "SILENT_S", 0.05)
    file = from_elsewhere(place)
    read, beats = lease._read, iter(range(100))

    def beating(watched: Location) -> bytes | None:
        content = read(watched)
        file.write_bytes(json.dumps({"host": "far", "beat": next(beats)}).encode())
        return content

    with monkeypatch.context() as patched:
        patched.setattr(lease, "SILENT_S", 600.0)
        patched.setattr(lease, "_read", beating)
        with pytest.raises(ValueError, match="another job is at work here"):
            hold(place).__enter__()
    with hold(place):
        assert leases(place) == ["lease-000005.json"]


def test_of_two_jobs_that_take_over_at_the_same_time_one_is_refused(
    place: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "WATCH_S", 0.0)
    monkeypatch.setattr(lease, "SILENT_S", 0.0)
    from_elsewhere(place)
    take = lease.Lease.take

    def slowly(late: lease.Lease) -> None:
        monkeypatch.setattr(lease.Lease, "take", take)
        with hold(place), pytest.raises(FileExistsError):
            take(late)
        raise FileExistsError

    monkeypatch.setattr(lease.Lease, "take", slowly)
    with pytest.raises(ValueError, match="another job is at work here"):
        hold(place).__enter__()
    assert leases(place) == []


def test_the_holder_renews_its_lease_and_finds_out_when_it_has_lost_it(
    place: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "RENEW_S", 0.01)
    with hold(place) as held:
        first = held._file.read_bytes()
        while held._file.read_bytes() == first:
            time.sleep(0.01)
        held.check()
        place.child("lease-000002.json").create_bytes(b"{}")
        held._thread.join(60)
        assert held.lost
        with pytest.raises(ValueError, match="another job has taken over"):
            held.check()
    assert leases(place) == ["lease-000002.json"]


@pytest.mark.parametrize("tasks", [0, 2])
def test_a_job_that_lost_its_lease_publishes_nothing(tmp_path: Path, tasks: int) -> None:
    for name in ("a", "b"):
        write_raster(tmp_path / "in" / f"{name}.tif", noise(700, 700, 3, seed=ord(name)))
    config = PreprocessConfig(
        sources=str(tmp_path / "in"),
        output=str(tmp_path / "out"),
        grouping=GroupingConfig(group_side_px=64),
        shard_mb=1,
    )
    done = []

    def overtaken(stage: Stage, each: list[Any]) -> Any:
        for number, result in enumerate(in_process(stage, each)):
            if stores(each) and number == tasks:
                # as if this process had been silent for so long that another machine took over
                (mine,) = leases(Location.of(config.output))
                (tmp_path / "out" / mine).unlink()
                done.append(preprocess(config, run_stage=in_process))
            yield result

    with pytest.raises(ValueError, match="another job has taken over") as caught:
        preprocess(config, run_stage=overtaken)
    assert "\n" not in str(caught.value)
    stored = open_dataset(config.output)
    assert stored.info.digest == done[0].digest
    # what the loser still wrote down is nobody's, and goes with the next job
    assert all("refers to journal/" in problem.line for problem in verify(stored))


def test_a_store_that_is_away_loses_nobody_a_lease(
    s3: s3fs.S3FileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Location.of("s3://scans/leased")
    with hold(place) as held:
        with monkeypatch.context() as patched:
            patched.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
            patched.setenv("AWS_MAX_ATTEMPTS", "1")
            s3fs.S3FileSystem.clear_instance_cache()
            with pytest.raises(ConnectionError):
                held.check()
        s3fs.S3FileSystem.clear_instance_cache()
        assert not held.lost
        held.check()
