"""Checkpoints of a training: written by all workers beside their work, read by any number of them.

    FOLDER/step-0000050/part-00000-of-00002-1a2b3c4d.safetensors, ..., manifest.json

Each worker writes what it answers for, and nothing travels between workers for it. When all have
written, the first one writes the manifest, and with that the checkpoint is there. A part's name
ends in letters that no other save has: a worker that was given up and wakes again spoils nothing.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any
from uuid import uuid4

import torch
import torch.distributed as dist
from torch import Tensor

from jobs import engine_state
from jobs.assignment import RecordConfig
from jobs.background_job import Job
from jobs.checkpoint_folders import delete, folder_of, prune
from jobs.engine_state import WEIGHT
from jobs.errors import MachineFault
from jobs.events import Event
from jobs.manifests import MANIFEST, Manifest, PartEntry, Progress
from jobs.notes import all_agree, from_everyone, from_first
from jobs.parts import BUFFER, Key, write_part
from jobs.restoring import Damaged, Shelf
from jobs.run_record import RunRecord
from pipeline.patience import patiently
from pipeline.storage import Location

PROGRAMS = ("farreach", "torch", "deepspeed")


@dataclass
class Pending:
    """A checkpoint that is being written."""

    folder: Location
    token: str
    manifest: Callable[..., Manifest]
    """All of it but the parts."""
    job: Job
    progress: Progress
    parts_written: bool = False


class Checkpoints:
    """One worker's hand in the checkpoints of a training; all workers call the same methods."""

    def __init__(
        self,
        folder: Location,
        *,
        config: RecordConfig,
        states: Sequence[str],
        origin: RunRecord,
        last_step: int,
        device: torch.device,
        tell: Callable[[Event], None],
    ) -> None:
        """Know where to write and what for.

        Args:
            folder: where checkpoints lie.
            config: how they are written, and how many are kept.
            states: what the optimizer keeps of every element.
            origin: the run, for the manifest.
            last_step: whose checkpoint must not fail.
            device: where collectives work.
            tell: takes what happened; only called on the first worker.
        """
        self.folder = folder
        self.config = config
        self.states = tuple(states)
        self.origin = origin
        self.last_step = last_step
        self.device = device
        self.tell = tell if dist.get_rank() == 0 else _say_nothing
        self.damaged: set[int] = set()
        self._pending: Pending | None = None

    def save(self, engine: Any, progress: Progress, *, wait: bool) -> None:
        """A checkpoint of the engine as it is now; `wait` until it is there, or has failed.

        Waits for the one before. A failure is told, and an error only of the last checkpoint.
        Memory: a copy of what this worker writes, until it is written; none in the foreground.
        """
        self._finish()
        token = from_first(uuid4().hex[:8], device=self.device)
        folder = folder_of(self.folder, progress.step)
        tensors = _tensors(engine)
        in_background = self.config.writing == "background"
        if in_background:
            tensors = {key: each.to("cpu", copy=True) for key, each in tensors.items()}
        place = folder.child(_part_name(dist.get_rank(), token))
        self._pending = Pending(
            folder=folder,
            token=token,
            manifest=self._manifest(engine, progress),
            job=Job(partial(self._write, place, tensors)),
            progress=progress,
        )
        if wait or not in_background:
            self._finish()

    def settle(self) -> None:
        """Finish a save whose files are written, if there is one; cheap, once a step."""
        pending = self._pending
        if pending is None or not all_agree(pending.job.done, device=self.device):
            return
        notes = from_everyone(pending.job.note, device=self.device)
        failed = [
            f"worker {rank}: {note['failed']}"
            for rank, note in enumerate(notes)
            if "failed" in note
        ]
        if failed:
            self._give_up(pending, failed[0])
        elif pending.parts_written:
            self._pending = None
            self.damaged.discard(pending.progress.step)
        else:
            parts = tuple(
                PartEntry(name=_part_name(rank, pending.token), **note)
                for rank, note in enumerate(notes)
            )
            commit = partial(self._commit, pending.folder, pending.manifest(parts=parts))
            pending.job = Job(commit if dist.get_rank() == 0 else dict)
            pending.parts_written = True

    def _finish(self) -> None:
        while self._pending is not None:
            self._pending.job.wait()
            self.settle()

    def _write(self, place: Location, tensors: dict[Key, Tensor]) -> dict[str, Any]:
        def attempt() -> dict[str, Any]:
            with place.writer() as draft:
                return asdict(write_part(draft, tensors))

        return self._patiently(attempt)

    def _commit(self, folder: Location, manifest: Manifest) -> dict[str, Any]:
        """The manifest, and then everything goes that is not wanted any more."""
        self._patiently(lambda: manifest.write(folder))
        with contextlib.suppress(OSError):
            named = {MANIFEST, *(part.name for part in manifest.parts)}
            folder.delete_below(set(folder.files_here()) - named)
            prune(
                self.folder,
                keep_last=self.config.keep_last,
                keep_best=self.config.keep_best,
                spared=self.damaged - {manifest.step},
            )
        return {}

    def _give_up(self, pending: Pending, why: str) -> None:
        self._pending = None
        step = pending.progress.step
        mine = [_part_name(dist.get_rank(), pending.token)]
        if dist.get_rank() == 0 and pending.parts_written:
            mine.append(MANIFEST)
        # a store that is away would hold up the training
        Job(partial(_delete, pending.folder, mine))
        if step == self.last_step:
            raise MachineFault(f"{pending.folder}: the last checkpoint cannot be written ({why})")
        text = f"step {step}: no checkpoint, for it could not be written ({why})"
        self.tell(Event(kind="checkpoint failed", step=step, text=text, facts={"reason": why}))

    def _patiently(self, attempt: Callable[[], Any]) -> Any:
        return patiently(
            attempt,
            patience_s=self.config.patience_s,
            setting="record.patience_s",
            faults=ConnectionError,
        )

    def _manifest(self, engine: Any, progress: Progress) -> Callable[..., Manifest]:
        steps = engine_state.optimizer_steps(engine)
        return partial(
            Manifest,
            step=progress.step,
            optimizer_steps=steps,
            states=engine_state.state_names(engine),
            elements=engine_state.num_elements(engine),
            buffers=engine_state.num_buffered(engine),
            world_size=dist.get_world_size(),
            zero_stage=engine.zero_optimization_stage(),
            precision="bf16" if engine.bfloat16_enabled() else "fp32",
            progress=progress,
            run_id=self.origin.run_id,
            config=self.origin.config,
            dataset_digest=self.origin.digest,
            made_by=dict(_versions()),
        )

    def restore(self, engine: Any, *, at_most: int | None = None) -> Progress:
        """Bring the engine to the newest good checkpoint, and give how far that has come.

        Damaged ones are told, passed over and left where they are. Where there is none at all the
        engine stays as it is. With `at_most` it is rolled back: checkpoints after that step are
        of a course that is given up, and go.

        Raises:
            UserError: a checkpoint is of another model, or of another version of this program.
            MachineFault: none of the checkpoints is good, or their store is away.
        """
        self._finish()
        shelf = Shelf(folder=self.folder, device=self.device, patience_s=self.config.patience_s)
        complaints: dict[int, str] = {}
        for step in shelf.steps(at_most=at_most):
            try:
                progress = shelf.load(engine, step, states=self.states).progress
            except Damaged as damage:
                complaints[step] = str(damage)
                continue
            for damaged, complaint in complaints.items():
                self._tell_damage(damaged, complaint, instead=f"that of step {step} is used")
            if at_most is not None:
                shelf.drop_after(step)
            return progress
        for damaged, complaint in complaints.items():
            self._tell_damage(damaged, complaint, instead="and no other one is good")
        if complaints:
            newest = next(iter(complaints.values()))
            raise MachineFault(
                f"{self.folder}: none of {len(complaints)} checkpoints is good, the newest for "
                f"this: {newest}; bring one back from a copy, or choose another name"
            )
        if at_most is not None:
            shelf.drop_after(0)
        return Progress()

    def _tell_damage(self, step: int, complaint: str, *, instead: str) -> None:
        self.damaged.add(step)
        self.tell(
            Event(
                kind="checkpoint damaged",
                step=step,
                text=f"{folder_of(self.folder, step)}: {complaint}; {instead}",
                facts={"folder": str(folder_of(self.folder, step)), "complaint": complaint},
            )
        )


def _tensors(engine: Any) -> dict[Key, Tensor]:
    """What this worker writes, as views."""
    found: dict[Key, Tensor] = {}
    for piece in engine_state.own(engine):
        found[Key(kind=WEIGHT, name=piece.name, start=piece.start)] = piece.weight
        for kind, state in engine_state.states_of(engine, piece).items():
            found[Key(kind=kind, name=piece.name, start=piece.start)] = state
    if dist.get_rank() == 0:
        for name, buffer in engine_state.buffers(engine).items():
            found[Key(kind=BUFFER, name=name)] = buffer
    return found


def _part_name(rank: int, token: str) -> str:
    return f"part-{rank:05d}-of-{dist.get_world_size():05d}-{token}.safetensors"


def _delete(folder: Location, names: list[str]) -> dict[str, Any]:
    delete(folder, names)
    return {}


def _versions() -> Iterator[tuple[str, str]]:
    for name in PROGRAMS:
        with contextlib.suppress(PackageNotFoundError):
            yield name, version(name)


def _say_nothing(event: Event) -> None:
    """The first worker speaks for all."""
