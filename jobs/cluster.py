"""The Ray this process works on: the one at RAY_ADDRESS, else a local one that it starts and stops.

A local Ray listens on loopback and asks for a token, as a cluster should: whoever reaches a Ray
can run code on it. The token is Ray's own (RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token).
"""

import gc
import logging
import os
import secrets
import socket
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from jobs.errors import MachineFault, UserError

REACH_TIMEOUT_S = 5.0
SUBMITTED = "FARREACH_SUBMITTED"
"""Set in the environment of a job that `farreach submit` sent."""

SLOW_START = "timed out during startup"
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",  # no telemetry, and no question about it
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # Ray's coming default; the old one warns
}


@contextmanager
def connect(*, num_cpus: int | None = None) -> Iterator[None]:
    """Hold a Ray for as long as the block runs; what was started here is stopped here.

    A Ray that this process already holds is shared, and left running. `num_cpus` sizes a local
    Ray; a cluster at RAY_ADDRESS, also the one a submitted job runs in, has its own size.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    import ray  # reads the environment at import

    if ray.is_initialized():
        yield
        return
    ensure_token()
    try:
        _start(os.environ.get("RAY_ADDRESS"), num_cpus=num_cpus)
        # what is imported by now stays; to look through it for garbage takes 0.15 s each time
        gc.freeze()
        yield
    finally:
        gc.unfreeze()
        ray.shutdown()


def _start(address: str | None, *, num_cpus: int | None) -> None:
    """Join the cluster at an address, or start a local one."""
    import ray

    options: dict[str, Any] = {
        "logging_level": logging.WARNING,
        # workers' chatter drowns what the job says; their errors come back as exceptions
        "log_to_driver": os.environ.get("RAY_LOG_TO_DRIVER", "0") == "1",
    }
    if address and address != "local":
        require_reachable(address)
        options["address"] = address
        reach: AbstractContextManager[None] = nullcontext()
    else:
        options |= {"address": "local", "num_cpus": num_cpus, "include_dashboard": False}
        reach = _loopback()
    # Ray tells at every start that tokens are on: they always are here
    logger = logging.getLogger("ray._private.authentication.authentication_token_setup")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), reach:
            warnings.simplefilter("ignore")
            ray.init(**options)
    except Exception as error:
        # Ray raises an Exception without a class of its own where a node does not come up
        where = f"the Ray cluster at RAY_ADDRESS={address}" if address else "a local Ray"
        reason = str(error).strip().splitlines() or [type(error).__name__]
        busy = "; the machine may be busy: try again" if SLOW_START in reason[0] else ""
        raise MachineFault(f"could not use {where}: {reason[0].rstrip('.')}{busy}") from error
    finally:
        logger.setLevel(level)


@contextmanager
def _loopback() -> Iterator[None]:
    """Ray's own switch for single machines; without it a local Ray listens on every interface."""
    from ray._private import ray_constants

    name = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR
    if name in os.environ:
        yield
        return
    before = ray_constants.ENABLE_RAY_CLUSTER  # read when Ray was imported
    os.environ[name], ray_constants.ENABLE_RAY_CLUSTER = "0", False
    try:
        yield
    finally:
        del os.environ[name]
        ray_constants.ENABLE_RAY_CLUSTER = before


def require_reachable(address: str) -> None:
    """Ask within seconds whether anyone listens, where Ray would try for minutes."""
    if address.startswith(("http://", "https://")):
        raise UserError(
            f"RAY_ADDRESS={address} is a job server: use `farreach submit`, or unset RAY_ADDRESS"
        )
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        return  # "auto" and other names that Ray resolves itself
    try:
        socket.create_connection((host, int(port)), timeout=REACH_TIMEOUT_S).close()
    except OSError as error:
        raise MachineFault(
            f"no Ray cluster answers at RAY_ADDRESS={address} ({error.strerror or error}); "
            "unset it to start a local Ray"
        ) from error


def ensure_token() -> None:
    """Make a token for a user who has none, readable by that user only.

    Ray would make one too, but with the permissions of any other file.
    """
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return
    path = token_path()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return
    with os.fdopen(handle, "w") as file:
        file.write(secrets.token_hex(32))


def token_path() -> Path:
    """Where Ray looks for a token by default."""
    return Path.home() / ".ray" / "auth_token"


def require_cpus(num_workers: int, *, cpus_per_worker: float = 1.0) -> None:
    """Refuse more workers than the connected cluster can ever hold; Ray would wait for them."""
    import ray

    nodes = [node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]]
    fit = sum(int(cpus // cpus_per_worker) for cpus in nodes)
    if num_workers <= fit:
        return
    available, largest = sum(nodes), max(nodes, default=0.0)
    remedy = (
        f"set workers.num_workers={fit}"
        if fit
        else f"set workers.cpus_per_worker to at most {largest:g}, what one node has,"
    )
    raise UserError(
        f"{num_workers} workers of {cpus_per_worker:g} CPU were asked for, "
        f"but the cluster has {available:g} CPUs: {remedy} or join a larger cluster"
    )


def require_gpus(num_workers: int) -> None:
    """Refuse more GPU workers than the connected cluster has GPUs."""
    import ray

    available = int(ray.cluster_resources().get("GPU", 0.0))
    if num_workers > available:
        remedy = f"set workers.num_workers={available}" if available else "set workers.device=cpu"
        raise UserError(
            f"{num_workers} workers of 1 GPU were asked for, "
            f"but the cluster has {available} GPUs: {remedy} or join a larger cluster"
        )


def require_lasting(**places: str) -> None:
    """Refuse relative places in a submitted job, whose working folder is thrown away."""
    if SUBMITTED not in os.environ:
        return
    for name, place in places.items():
        if "://" not in place and not os.path.isabs(place):
            raise UserError(
                f"{name} {place!r} is relative, and a submitted job's folder is thrown away: "
                "write an absolute path that every node has, or s3://bucket/prefix"
            )
