"""Who reads, and in whose environment; each system is a module with `opened` and `write`."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from jobs.ingest_epochs import Epoch, Source
from pipeline.dataset import open_dataset

Opened = Callable[[Source], AbstractContextManager[Epoch]]


@dataclass(frozen=True, kw_only=True)
class System:
    """A way to read patch groups."""

    module: str
    settings: dict[str, Any]
    """Of its `opened`."""
    copies: bool
    """Whether it reads a copy in a format of its own; else the shards themselves."""
    guest: bool
    """Whether it lives in the environment of the others."""

    def opened(self, source: Source) -> AbstractContextManager[Epoch]:
        """Ready to read epochs."""
        return partial(import_module(self.module).opened, **self.settings)(source)

    def write(self, dataset: str, folder: Path) -> None:
        """Its copy of a dataset."""
        import_module(self.module).write(open_dataset(dataset), folder)


def of_shards(module: str, **settings: Any) -> System:
    """One that reads what we store."""
    return System(module=module, settings=settings, copies=False, guest=False)


def with_copy(module: str, *, guest: bool) -> System:
    """One with a format of its own."""
    return System(module=module, settings={}, copies=True, guest=guest)


CEILING, OURS = "raw bytes", "farreach"
SYSTEMS = {
    CEILING: of_shards("jobs.ingest_raw", check=False),
    "raw bytes, checksums": of_shards("jobs.ingest_raw", check=True),
    OURS: of_shards("jobs.ingest_farreach", check=True),
    "farreach, no checksums": of_shards("jobs.ingest_farreach", check=False),
    "ray data": with_copy("jobs.ingest_ray", guest=False),
    "webdataset": with_copy("jobs.ingest_webdataset", guest=True),
    "mosaicml streaming": with_copy("jobs.ingest_mosaic", guest=True),
    "litdata": with_copy("jobs.ingest_litdata", guest=True),
}
