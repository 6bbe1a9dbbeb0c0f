"""One training, one driver, one MLflow run: however often it is killed and begun again."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from uuid import uuid4

from jobs.mlflow_store import require_tracking
from jobs.resuming import unfinished_record
from jobs.run_record import RunRecord, read_record
from jobs.tracking import Run, known_run, new_run
from jobs.train_config import TrainConfig
from pipeline.lease import hold
from pipeline.storage import Location


@contextmanager
def alone(config: TrainConfig, folder: str, *, blank: RunRecord) -> Iterator[tuple[Run, RunRecord]]:
    """The run of this driver and of no other one inside the block; finished when it ends well.

    ValueError where another driver is at it.
    """
    known = read_record(folder)
    if not (known and known.run_id):
        require_tracking()
    with hold(Location.of(folder)):
        before = unfinished_record(config, folder, digest=blank.digest)
        run, record = begun(config, before or blank, now=blank, folder=folder)
        yield run, record
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
