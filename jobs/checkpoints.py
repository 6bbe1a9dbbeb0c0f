"""Training checkpoints in Ray Train's storage: every worker's DeepSpeed state, whole or not there.

    storage_path/NAME/
      run.json                     the MLflow run's id, the resolved configuration, finished or not
      step-0000050/state/...       DeepSpeed's files, one set a worker
      step-0000100/model/          fit_model.weights layout, in the last checkpoint only

Ray Train uploads a checkpoint and only then names it in its own record, so a kill in between leaves
a folder that nothing refers to. These files are for resuming one's own training and are pickled by
torch; what people exchange is `model/` (safetensors and JSON).
"""

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import ray.train

from jobs.inbox import StepRecord
from pipeline.storage import Location

RECORD = "run.json"
TAG = "state"
MODEL_FOLDER = "model"


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What a restarted driver must know of the run that it continues."""

    run_id: str
    config: dict[str, Any]
    digest: str
    finished: bool = False

    def write(self, folder: str) -> None:
        """Put the record into the run's folder, whole or not at all."""
        place = Location.of(folder).child(RECORD)
        place.write_bytes(json.dumps(asdict(self), indent=2).encode())


def read_record(folder: str) -> RunRecord | None:
    """The record of a run that was started in this folder, or None."""
    place = Location.of(folder).child(RECORD)
    if not place.exists():
        return None
    try:
        return RunRecord(**json.loads(place.read_bytes()))
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError) as error:
        raise ValueError(f"{place} is damaged ({error}); choose another name") from error


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a checkpoint has come."""

    step: int = 0
    """Finished steps."""
    records: tuple[StepRecord, ...] = ()
    """The newest steps' figures: a kill may come before the driver has logged them."""
    validation: Mapping[str, Any] = field(default_factory=dict)
    """The best validation so far, as jobs.standing tells it."""


@contextmanager
def saved(
    engine: Any, *, step: int, records: Sequence[StepRecord], validation: Mapping[str, Any]
) -> Iterator[ray.train.Checkpoint]:
    """One worker's part of the checkpoint after `step` steps, in a folder that goes when done.

    Every worker calls it; Ray Train merges the parts.
    """
    told = [asdict(record) for record in records]
    client_state = {"step": step, "records": told, "validation": validation}
    with tempfile.TemporaryDirectory(prefix="farreach-checkpoint-") as folder:
        (Path(folder) / TAG).mkdir()
        engine.save_checkpoint(folder, tag=TAG, client_state=client_state, save_latest=False)
        yield ray.train.Checkpoint.from_directory(folder)


def restore(engine: Any) -> Progress:
    """Load the newest checkpoint, if there is one, into the engine; gives how far it has come."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return Progress()
    with checkpoint.as_directory() as folder:
        path, client_state = engine.load_checkpoint(folder, tag=TAG)
    if path is None:
        raise ValueError(
            f"{checkpoint.path}: this checkpoint cannot be loaded by rank "
            f"{ray.train.get_context().get_world_rank()}; remove its folder to use an older one"
        )
    return Progress(
        step=int(client_state["step"]),
        records=tuple(StepRecord.of(record) for record in client_state["records"]),
        validation=client_state["validation"],
    )
