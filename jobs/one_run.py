"""One training, one driver, one MLflow run: however often it is killed and begun again."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from uuid import uuid4

from jobs.mlflow_store import require_tracking
from jobs.resuming import unfinished_record
from jobs.run_record import RunRecord, read_record
from jobs.tracking import Run, known_run, new_run
from jobs.train_config import TrainConfig
from pipeline.lease import Lease, hold
from pipeline.storage import Location


@dataclass(frozen=True, kw_only=True)
class Held:
    """A run, and the right to be its driver."""

    run: Run
    record: RunRecord
    lease: Lease


@contextmanager
def held_run(
    config: TrainConfig, folder: str, *, blank: RunRecord, tell: Callable[[str], None]
) -> Iterator[Held]:
    """The run of this driver and of no other one inside the block; finished when it ends well.

    Args:
        config: of the training.
        folder: of the run.
        blank: the record of a run that is only beginning.
        tell: hears of a wait.

    Raises:
        ValueError: another driver is at it, or has taken it over.
    """
    known = read_record(folder)
    if not (known and known.run_id):
        # before the lease makes a folder
        require_tracking()
    with hold(Location.of(folder), tell=tell) as lease:
        before = unfinished_record(config, folder, digest=blank.digest)
        run, record = begun(config, before or blank, now=blank, folder=folder)
        yield Held(run=run, record=record, lease=lease)
        lease.check()
        replace(record, finished=True).write(folder)


def begun(
    config: TrainConfig, before: RunRecord, *, now: RunRecord, folder: str
) -> tuple[Run, RunRecord]:
    """The one MLflow run of a training, however early an earlier driver was killed."""
    if before.run_id:
        run, token = known_run(before.run_id), before.token
    else:
        # noted first, so that a run that is made and not noted is found again
        token = before.token or uuid4().hex
        replace(now, token=token).write(folder)
        run = new_run(config.experiment, name=config.name, token=token)
    record = replace(now, run_id=run.run_id, token=token)
    record.write(folder)
    return run, record
