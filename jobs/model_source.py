"""Where a model comes from that the user names: a folder, local or s3://, or the registry."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fit_model import weights
from jobs import registry
from pipeline.storage import Location


@dataclass(frozen=True, kw_only=True)
class Source:
    """A model on this machine's disk, and where it came from."""

    folder: Path
    registered: registry.Registered | None


@contextmanager
def source(model: str) -> Iterator[Source]:
    """The model that the user named: a local folder as it is, all else fetched for the while."""
    if is_folder(model) and "://" not in model:
        yield Source(folder=Path(model), registered=None)
        return
    with tempfile.TemporaryDirectory(prefix="farreach-model-") as draft:
        folder = Path(draft) / "model"
        if is_folder(model):
            folder.mkdir()
            for name in (weights.CONFIG, weights.WEIGHTS):
                (folder / name).write_bytes(Location.of(model).child(name).read_bytes())
            yield Source(folder=folder, registered=None)
        else:
            yield Source(folder=folder, registered=registry.pull(model, folder))


def is_folder(model: str) -> bool:
    """Whether the user named a place, and not a model of the registry."""
    return "://" in model or Path(model).is_dir()
