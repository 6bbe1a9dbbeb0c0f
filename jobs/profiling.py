"""What the time and the memory of a few steps go into, as torch's profiler sees them.

    storage_path/NAME/profile/steps-0000011-0000013/
      rank-0.trace.json.gz        for chrome://tracing or https://ui.perfetto.dev
      rank-0.operations.txt       the costliest operations by their own time and memory
      rank-0.memory.json.gz       on a GPU: every allocation, with the lines of code it came from

Numbers stay what they are without it; the steps take longer while they are watched.
"""

import gzip
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch.profiler import ProfilerActivity, profile

from fit_model import checks
from pipeline.storage import Location

FOLDER = "profile"
MAX_STEPS = 20
ROWS = 20
MAX_ALLOCATIONS = 100_000
PRODUCTS = ("trace", "operations", "memory")


@dataclass(frozen=True, kw_only=True)
class ProfileConfig:
    """Which steps are watched, on whom, and what is kept of them."""

    first_step: int = 11
    """Steps count from 1, as in the record of the run; the first few are slower than all others."""
    last_step: int = 13
    ranks: tuple[int, ...] = (0,)
    products: tuple[Literal["trace", "operations", "memory"], ...] = ("trace", "operations")
    """A file of each kind for every rank; memory needs a GPU."""

    def __post_init__(self) -> None:
        if not 1 <= self.first_step <= self.last_step:
            raise ValueError(
                f"profile.first_step {self.first_step} and profile.last_step {self.last_step}: "
                "steps count from 1, and the last one does not come before the first"
            )
        if self.last_step - self.first_step >= MAX_STEPS:
            raise ValueError(
                f"profile.first_step {self.first_step} to profile.last_step {self.last_step} are "
                f"more than {MAX_STEPS} steps, and their files would be larger than anyone can read"
            )
        if not self.products or not self.ranks or min(self.ranks) < 0:
            raise ValueError("profile.products and profile.ranks need one entry each, from 0 up")
        for product in self.products:
            checks.one_of(PRODUCTS, **{"profile.products": product})


def require_profile(
    config: ProfileConfig | None, *, total_steps: int, num_workers: int, device: str
) -> None:
    """Refuse steps and ranks that there will not be, and memory where nobody records it."""
    if config is None:
        return
    if config.last_step > total_steps:
        raise ValueError(f"profile.last_step {config.last_step}: training has {total_steps} steps")
    if max(config.ranks) >= num_workers:
        raise ValueError(
            f"profile.ranks {list(config.ranks)}: {num_workers} workers have ranks 0 to "
            f"{num_workers - 1}"
        )
    if "memory" in config.products and device != "gpu":
        raise ValueError(
            "profile.products 'memory' needs workers.device gpu: on the CPU take 'operations', "
            "which says what memory each of them takes"
        )


class Profiler:
    """Watches the steps of one worker that are to be watched.

    Args:
        config: which; None for none.
        run: storage_path/NAME.
        rank: of the worker.
        device: of the worker.
    """

    def __init__(
        self, config: ProfileConfig | None, *, run: str, rank: int, device: torch.device
    ) -> None:
        self.config, self.rank, self.device = config, rank, device
        self.run = run
        self._watching: profile | None = None

    @contextmanager
    def around(self, step: int) -> Iterator[None]:
        """One training step, by its number from 1; after the last one the files are written.

        A training that goes on in the midst of the steps watches those that are left.
        """
        config = self.config
        mine = config is not None and self.rank in config.ranks
        if config is None or not mine or not config.first_step <= step <= config.last_step:
            yield
            return
        if self._watching is None:
            self._start(config)
        yield
        if step == config.last_step:
            self._finish(config)

    def _start(self, config: ProfileConfig) -> None:
        if "memory" in config.products:
            torch.cuda.memory._record_memory_history(max_entries=MAX_ALLOCATIONS)
        activities = [ProfilerActivity.CPU]
        if self.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        self._watching = profile(activities=activities, profile_memory=True, acc_events=True)
        self._watching.start()

    def _finish(self, config: ProfileConfig) -> None:
        watched, self._watching = self._watching, None
        if watched is None:
            return
        watched.stop()
        steps = f"steps-{config.first_step:07d}-{config.last_step:07d}"
        folder = Location.of(self.run).child(FOLDER).child(steps)
        for product in config.products:
            WRITERS[product](watched, folder, f"rank-{self.rank}", self.device)


def _trace(watched: profile, folder: Location, who: str, device: torch.device) -> None:
    with tempfile.TemporaryDirectory(prefix="farreach-profile-") as draft:
        file = Path(draft) / "trace.json"
        watched.export_chrome_trace(str(file))
        _compressed(folder.child(f"{who}.trace.json.gz"), file.read_bytes())


def _operations(watched: profile, folder: Location, who: str, device: torch.device) -> None:
    events: Any = watched.key_averages()
    tables = [
        f"by {by}\n{events.table(sort_by=by, row_limit=ROWS)}"
        for kind in dict.fromkeys((device.type, "cpu"))
        for by in (f"self_{kind}_time_total", f"self_{kind}_memory_usage")
    ]
    folder.child(f"{who}.operations.txt").write_bytes("\n\n".join(tables).encode())


def _memory(watched: profile, folder: Location, who: str, device: torch.device) -> None:
    """As JSON: torch's own file of a snapshot is a pickle."""
    snapshot = torch.cuda.memory._snapshot()
    torch.cuda.memory._record_memory_history(enabled=None)
    text = json.dumps(snapshot, default=str)
    _compressed(folder.child(f"{who}.memory.json.gz"), text.encode())


def _compressed(place: Location, content: bytes) -> None:
    place.write_bytes(gzip.compress(content, mtime=0))


WRITERS = dict(zip(PRODUCTS, (_trace, _operations, _memory), strict=True))


def profile_files(run: str) -> list[str]:
    """What was written of a run's steps, below storage_path/NAME."""
    return [f"{FOLDER}/{name}" for name in Location.of(run).child(FOLDER).files()]


def log_profile(run: str, log_file: Callable[[Path, str], None]) -> None:
    """Make artifacts of what was written: `log_file` takes a file and the artifact's folder."""
    for name in profile_files(run):
        with tempfile.TemporaryDirectory(prefix="farreach-profile-") as draft:
            copy = Path(draft) / Path(name).name
            copy.write_bytes(Location.of(run).child(name).read_bytes())
            log_file(copy, str(Path(name).parent))
