"""Which failures of an attempt are worth another one: lost workers and stores, never mistakes."""

from collections.abc import Iterator
from dataclasses import dataclass

from ray.exceptions import (
    NodeDiedError,
    OutOfMemoryError,
    OwnerDiedError,
    RayActorError,
    WorkerCrashedError,
)

from jobs.runner import USER_MISTAKES, root_cause

DEATHS = (RayActorError, WorkerCrashedError, NodeDiedError, OutOfMemoryError, OwnerDiedError)
SILENCES = (ConnectionError, TimeoutError)
"""Of the other workers, or of the store that holds the data or the checkpoints."""
UNANSWERING = {
    "WorkerGroupStartupFailedError",
    "WorkerGroupStartupTimeoutError",
    "WorkerHealthCheckTimeoutError",
    "NCCLHangError",
}
OUT_OF_MEMORY = ("NODE_OUT_OF_MEMORY", "running low on memory")
"""Words of Ray's memory monitor."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why an attempt ended that another one may get over."""

    cause: str
    """What happened: to the worker of that rank, or a whole sentence."""
    rank: int | None = None
    kind: str = "worker lost"


def failure_of(error: BaseException) -> Failure | None:
    """What another attempt may get over; None for what it would only meet again."""
    if isinstance(root_cause(error), USER_MISTAKES):
        return None
    if type(error).__name__ == "PreemptionError":
        return Failure(kind="preempted", cause="the cluster took a node away")
    leaves = list(_leaves(error, rank=None))
    for rank, leaf in leaves:
        if isinstance(leaf, DEATHS):
            whose = "one of Ray's own processes " if rank is None else ""
            return Failure(cause=whose + _of_death(leaf), rank=rank)
    for rank, leaf in leaves:
        if type(leaf).__name__ in UNANSWERING:
            cause = _line(leaf) if rank is None else "does not answer Ray"
            return Failure(cause=cause, rank=rank)
    root = root_cause(error)
    return Failure(cause=_line(root)) if isinstance(root, SILENCES) else None


def pause_s(num_failures: int) -> float:
    """How long to wait after so many failures in a row: what is away may come back."""
    return min(FIRST_PAUSE_S * 4.0 ** (num_failures - 1), LONGEST_PAUSE_S)


def _leaves(
    error: BaseException, *, rank: int | None
) -> Iterator[tuple[int | None, BaseException]]:
    """What lies inside Ray's wrappers, with the worker it comes from."""
    failures = getattr(error, "worker_failures", None)
    if isinstance(failures, dict) and failures:
        for worker, each in sorted(failures.items()):
            yield from _leaves(each, rank=worker)
        return
    for name in ("health_check_failure", "controller_failure"):
        inner = getattr(error, name, None)
        if isinstance(inner, BaseException):
            yield from _leaves(inner, rank=rank)
            return
    if isinstance(error, DEATHS):
        yield rank, error
        return
    yield rank, root_cause(error)


def _of_death(death: BaseException) -> str:
    said = str(death)
    if isinstance(death, OutOfMemoryError) or any(each in said for each in OUT_OF_MEMORY):
        return "was killed, for its node ran out of memory"
    if isinstance(death, NodeDiedError) or getattr(death, "preempted", False):
        return "is gone with its node"
    if "node has died" in said or "node is dead" in said or "node was terminated" in said:
        return "is gone with its node"
    return "was killed or crashed, perhaps for want of memory"


def _line(error: BaseException) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
