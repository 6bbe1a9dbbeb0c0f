"""Bringing an engine to the state that a checkpoint holds, if the checkpoint is good.

All workers call these functions together; what one of them finds, all act upon.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.distributed as dist

from jobs import engine_state
from jobs.checkpoint_folders import clear_leftovers, delete, files_by_step, finished, folder_of
from jobs.engine_state import WEIGHT
from jobs.errors import UserError
from jobs.fragments import Files, Fragments
from jobs.manifests import MANIFEST, Manifest, manifest_of, read_manifest
from jobs.notes import found_by_all, found_by_first
from pipeline.patience import patiently
from pipeline.storage import Location


class Damaged(ValueError):  # noqa: N818 - it is the checkpoint that is
    """A checkpoint that cannot be used: which file, and what is wrong with it."""


@dataclass(frozen=True, kw_only=True)
class Shelf:
    """A training's checkpoints, as all of its workers see them."""

    folder: Location
    device: torch.device
    """Where collectives work."""
    patience_s: float

    def steps(self, *, at_most: int | None) -> list[int]:
        """That have a checkpoint, newest first; what was begun before and never finished goes."""
        return self._by_first(lambda: self._steps(at_most))

    def _steps(self, at_most: int | None) -> list[int]:
        clear_leftovers(self.folder)
        steps = finished(files_by_step(self.folder))
        return [step for step in steps if at_most is None or step <= at_most]

    def drop_after(self, step: int) -> None:
        """Delete the checkpoints after a step."""

        def drop() -> None:
            files = files_by_step(self.folder)
            for each in files:
                if each > step:
                    delete(folder_of(self.folder, each), files[each])

        self._by_first(drop)

    def load(self, engine: Any, step: int, *, states: Sequence[str]) -> Manifest:
        """Bring the engine to this checkpoint; raises Damaged, on all workers alike.

        The optimizer goes on with those of its `states` that the checkpoint has.
        """
        folder = folder_of(self.folder, step)
        manifest = self._manifest(folder)
        require_same_model(engine, manifest, folder)
        with Files(folder, patience_s=self.patience_s) as files:
            share = manifest.parts[dist.get_rank() :: dist.get_world_size()]
            self._require_good(lambda: files.verify(share))
            self._require_good(
                lambda: fill(engine, manifest, Fragments(files, manifest), states=states)
            )
        engine_state.refresh(engine)
        return manifest

    def _manifest(self, folder: Location) -> Manifest:
        def read() -> dict[str, Any]:
            try:
                return asdict(read_manifest(folder))
            except UserError:
                raise
            except (ValueError, FileNotFoundError) as error:
                return {"damaged": f"{MANIFEST} {error}"}

        found = self._by_first(read)
        if "damaged" in found:
            raise Damaged(found["damaged"])
        return manifest_of(found)

    def _by_first(self, work: Callable[[], Any]) -> Any:
        def attempt() -> Any:
            return patiently(
                work,
                patience_s=self.patience_s,
                setting="record.patience_s",
                faults=ConnectionError,
            )

        return found_by_first(attempt, device=self.device)

    def _require_good(self, check: Callable[[], None]) -> None:
        for complaint in found_by_all(lambda: _complaint(check), device=self.device):
            if complaint:
                raise Damaged(complaint)


def _complaint(check: Callable[[], None]) -> str:
    try:
        check()
    except ValueError as error:
        return str(error)
    return ""


def require_same_model(engine: Any, manifest: Manifest, folder: Location) -> None:
    """Refuse a checkpoint of another model than the engine's."""
    here = engine_state.num_elements(engine) | engine_state.num_buffered(engine)
    there = {**manifest.elements, **manifest.buffers}
    for name in sorted(here.keys() | there.keys()):
        if here.get(name) != there.get(name):
            raise UserError(
                f"{folder}: this checkpoint is of another model: {name} has "
                f"{there.get(name, 'no')} elements there and {here.get(name, 'none')} here; give "
                "the same model to continue it, or choose another name"
            )


def fill(engine: Any, manifest: Manifest, fragments: Fragments, *, states: Sequence[str]) -> None:
    """Put in what this worker holds; the weights that the model computes with are refreshed after.

    Cost: each byte that this worker holds is read once.
    """
    kept = tuple(name for name in manifest.states if name in states)
    engine_state.prepare_states(engine, steps=manifest.optimizer_steps, names=kept)
    for piece in engine_state.held(engine):
        fragments.fill(WEIGHT, piece.name, piece.start, piece.weight)
        for kind, state in engine_state.states_of(engine, piece).items():
            fragments.fill(kind, piece.name, piece.start, state)
    for name, buffer in engine_state.buffers(engine).items():
        fragments.fill_whole(name, buffer)
