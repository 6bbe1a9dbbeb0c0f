"""What a node keeps of what it has read: right or not there, within its limit, shared by all."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.cache import CacheConfig, RangeCache

SIZE = 1000
STORED = SIZE + 4
REPOSITORY = Path(__file__).resolve().parents[2]


def cache_of(folder: Path, *, entries: float = 100.0) -> RangeCache:
    return RangeCache(CacheConfig(folder=str(folder), limit_gb=entries * STORED / 1e9))


def content(number: int) -> bytes:
    return np.random.default_rng(number).bytes(SIZE)


class Source:
    """A store that counts how often it is asked."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def fetch(self, number: int) -> Callable[[], pa.Buffer]:
        def fetched() -> pa.Buffer:
            self.asked.append(number)
            return pa.py_buffer(content(number))

        return fetched

    def read(self, cache: RangeCache, number: int, **options: bool) -> bytes:
        found = cache.read(("digest", number), SIZE, self.fetch(number), **options)
        return found.to_pybytes()


def entries(folder: Path) -> list[Path]:
    return sorted(each for each in folder.glob("??/*") if len(each.name) == 64)


def test_a_range_is_fetched_once_and_survives_the_process(tmp_path: Path) -> None:
    source = Source()
    for cache in (cache_of(tmp_path), cache_of(tmp_path)):
        assert [source.read(cache, n) for n in (1, 2, 1)] == [content(n) for n in (1, 2, 1)]
    assert source.asked == [1, 2]


@settings(max_examples=40, deadline=None)
@given(asked=st.lists(st.integers(0, 9), max_size=40), room=st.integers(1, 8))
def test_the_last_ones_used_stay_and_the_limit_holds(
    asked: list[int], room: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder, source = tmp_path_factory.mktemp("cache"), Source()
    # so much that room for `room` entries is left when the oldest go
    cache = cache_of(folder, entries=room / 0.95 + 1e-3)
    recent: list[int] = []
    for moment, number in enumerate(asked):
        kept = number in recent
        before = len(source.asked)
        assert source.read(cache, number) == content(number)
        assert len(source.asked) == before + (not kept)
        recent = [*(each for each in recent if each != number), number]
        if len(recent) > cache.limit_bytes // STORED:
            recent = recent[-room:]
        assert sum(each.stat().st_size for each in entries(folder)) <= cache.limit_bytes
        for path in entries(folder):  # clocks tick more slowly than this loop
            state = path.stat()
            if state.st_mtime_ns > 1_000_000 * len(asked):
                os.utime(path, ns=(moment + 1, moment + 1))


def test_what_is_larger_than_the_limit_is_read_and_not_kept(tmp_path: Path) -> None:
    source, cache = Source(), cache_of(tmp_path, entries=0.5)
    assert [source.read(cache, 1), source.read(cache, 1)] == [content(1)] * 2
    assert source.asked == [1, 1]
    assert entries(tmp_path) == []


def test_a_limit_that_was_lowered_holds_from_the_start(tmp_path: Path) -> None:
    source = Source()
    for number in range(10):
        source.read(cache_of(tmp_path), number)
    cache_of(tmp_path, entries=3)
    assert len(entries(tmp_path)) == 3


@pytest.mark.parametrize("damage", ["flipped", "short", "long", "empty", "link"])
def test_a_damaged_entry_is_fetched_again_and_replaced(tmp_path: Path, damage: str) -> None:
    folder, source = tmp_path / "cache", Source()
    cache = cache_of(folder)
    source.read(cache, 1)
    (entry,) = entries(folder)
    whole = entry.read_bytes()
    secret = tmp_path / "secret"
    secret.write_bytes(whole)
    flipped = whole[:500] + bytes([whole[500] ^ 1]) + whole[501:]
    entry.unlink()
    if damage == "link":
        entry.symlink_to(secret)
    else:
        bad = {"flipped": flipped, "short": whole[:-1], "long": whole + b"1", "empty": b""}
        entry.write_bytes(bad[damage])
    assert source.read(cache, 1) == content(1)
    assert source.read(cache, 1) == content(1)
    assert source.asked == [1, 1]
    assert entry.read_bytes() == whole
    assert not entry.is_symlink()


def test_what_is_wanted_fresh_replaces_what_is_kept(tmp_path: Path) -> None:
    source, cache = Source(), cache_of(tmp_path)
    cache.read(("digest", 1), SIZE, source.fetch(2))
    assert source.read(cache, 1) == content(2)
    assert source.read(cache, 1, fresh=True) == content(1)
    assert source.read(cache, 1) == content(1)
    assert source.asked == [2, 1]


def test_what_comes_short_is_not_kept(tmp_path: Path) -> None:
    cache = cache_of(tmp_path)
    for _ in range(2):
        assert cache.read(("d",), SIZE, lambda: pa.py_buffer(b"ab")).to_pybytes() == b"ab"
    assert entries(tmp_path) == []


def test_names_do_not_leave_the_folder(tmp_path: Path) -> None:
    cache = cache_of(tmp_path / "cache")
    for key in (("../../up", 0), ("/etc/passwd",), ("a\0b",)):
        cache.read(key, 2, lambda: pa.py_buffer(b"ab"))
    assert [each.name for each in tmp_path.iterdir()] == ["cache"]
    assert len(entries(tmp_path / "cache")) == 3


def test_threads_that_want_one_range_fetch_it_once(tmp_path: Path) -> None:
    source, cache, all_here = Source(), cache_of(tmp_path), threading.Barrier(8)

    def read(_: int) -> bytes:
        all_here.wait()
        return source.read(cache, 1)

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(read, range(8))) == {content(1)}
    assert source.asked == [1]


SHARE = """
import sys
from pathlib import Path
from tests.pipeline.test_cache import Source, cache_of, content, entries
folder, seed = Path(sys.argv[1]), int(sys.argv[2])
cache, source = cache_of(folder, entries=6), Source()
for turn in range(100):
    number = (turn * (seed + 3)) % 10
    assert source.read(cache, number) == content(number), number
    # another process may be about to replace one
    assert sum(1 for _ in entries(folder)) <= 6
print(len(source.asked))
"""


def run_process(script: str, *arguments: object) -> subprocess.Popen:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)


def test_processes_share_a_folder_that_is_too_small_and_all_read_right(tmp_path: Path) -> None:
    sharing = [run_process(SHARE, tmp_path, seed) for seed in range(3)]
    assert [each.communicate()[1] for each in sharing] == [None] * 3
    assert [each.returncode for each in sharing] == [0, 0, 0]
    total = sum(each.stat().st_size for each in entries(tmp_path))
    assert int((tmp_path / "space").read_text()) == total <= 6 * STORED


DIE = """
import os, signal, sys
from pathlib import Path
from tests.pipeline.test_cache import Source, cache_of
cache, source = cache_of(Path(sys.argv[1])), Source()
source.read(cache, 1)
moment = sys.argv[2]
def die(*_, **__): os.kill(os.getpid(), signal.SIGKILL)
if moment == "fetching": source.fetch = lambda number: die
if moment == "counting": type(cache)._make_room = die; cache.limit_bytes = 1500
if moment == "replacing": Path.replace = die
source.read(cache, 2)
"""


@pytest.mark.parametrize("moment", ["fetching", "counting", "replacing"])
def test_a_process_that_is_killed_leaves_nothing_behind(tmp_path: Path, moment: str) -> None:
    killed = run_process(DIE, tmp_path, moment)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    assert [each.name for each in tmp_path.rglob("*.partial")] or moment == "fetching"
    source, cache = Source(), cache_of(tmp_path)
    assert not list(tmp_path.rglob("*.partial"))
    assert [source.read(cache, n) for n in (1, 2)] == [content(1), content(2)]
    assert source.asked == [2]
    assert int((tmp_path / "space").read_text()) == 2 * STORED


def test_a_draft_of_a_writer_that_lives_is_left_alone(tmp_path: Path) -> None:
    cache, drafts = cache_of(tmp_path), []

    def fetch() -> pa.Buffer:
        (shelf,) = tmp_path.glob("??")
        (shelf / "half.partial").write_bytes(b"half")
        cache_of(tmp_path)  # another worker starts, and clears up
        drafts.extend(tmp_path.rglob("*.partial"))
        return pa.py_buffer(content(1))

    cache.read(("digest", 1), SIZE, fetch)
    assert [each.name for each in drafts] == ["half.partial"]


def test_a_full_disk_is_no_reason_to_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    source, cache = Source(), cache_of(tmp_path)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    assert [source.read(cache, n) for n in (1, 1, 2)] == [content(n) for n in (1, 1, 2)]
    assert not list(tmp_path.rglob("*.partial"))
    (line,) = [record.getMessage() for record in caplog.records]
    assert "No space left on device" in line
    assert "reading goes on without" in line


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"limit_gb": 0.0}, r"reading\.cache\.limit_gb 0\.0 must be more than 0"),
        ({"limit_gb": float("inf")}, r"limit_gb inf must be"),
        ({"folder": "near"}, r"reading\.cache\.folder 'near' must be an absolute path"),
    ],
)
def test_what_cannot_be_a_cache_is_refused(settings: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        CacheConfig(**{"folder": "/tmp/cache", "limit_gb": 1.0, **settings})


def test_a_folder_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"file/cache: cannot be written .* leave the cache out"):
        cache_of(tmp_path / "file" / "cache")
