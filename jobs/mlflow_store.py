"""Where runs and models are recorded, and whether it answers.

MLFLOW_TRACKING_URI, else `sqlite:///mlflow.db` in the working folder, its artifacts in `mlruns`
beside it. Look at it with `mlflow ui --backend-store-uri sqlite:///mlflow.db`.
"""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import requests

from jobs.cluster import SUBMITTED
from jobs.errors import MachineFault, UserError

REACH_TIMEOUT_S = 5.0
SQLITE = "sqlite:///"
QUICK = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
"""MLflow itself would try for minutes, and whoever asks it with it."""


def tracking_uri() -> str:
    """Where runs and models are kept, independent of the working folder: hand it to workers."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}mlflow.db"
    if uri.startswith(SQLITE):
        return SQLITE + str(Path(uri.removeprefix(SQLITE)).absolute())
    return uri


def require_tracking(uri: str | None = None) -> str:
    """Point MLflow at the store, and make sure within seconds that it answers.

    MLflow itself would retry for minutes.
    """
    uri = point_tracking(uri)
    if uri.startswith(("http://", "https://")):
        _require_server(uri)
    return uri


def point_tracking(uri: str | None = None) -> str:
    """Point MLflow at the store, which may be away."""
    if uri is None and SUBMITTED in os.environ and not os.environ.get("MLFLOW_TRACKING_URI"):
        raise UserError(
            "MLFLOW_TRACKING_URI is not set on the cluster, and a submitted job's folder is thrown "
            "away: start the cluster with a server's address, or sqlite:////absolute/path.db"
        )
    uri = uri or tracking_uri()
    if uri.startswith(SQLITE):
        folder = Path(uri.removeprefix(SQLITE)).parent
        if not os.access(folder, os.W_OK):
            raise UserError(
                f"{uri}: no folder {folder} that can be written: set MLFLOW_TRACKING_URI"
            )
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    for name in ("alembic", "mlflow.store", "mlflow.store.db.utils"):
        logging.getLogger(name).setLevel(logging.WARNING)
    import mlflow  # two seconds, and it reads the environment

    mlflow.set_tracking_uri(uri)
    return uri


def _require_server(uri: str) -> None:
    place = without_password(uri)
    try:
        status = requests.get(f"{uri.rstrip('/')}/health", timeout=REACH_TIMEOUT_S).status_code
    except requests.RequestException as error:
        raise MachineFault(
            f"no MLflow server answers at {place} ({type(error).__name__}): "
            "start it, or unset MLFLOW_TRACKING_URI to use a local file"
        ) from error
    if status in (401, 403):
        raise UserError(
            f"the MLflow server at {place} refuses ({status}): set MLFLOW_TRACKING_USERNAME "
            "and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
        )
    if status >= 500:
        raise MachineFault(f"the MLflow server at {place} answers {status}")


def without_password(uri: str) -> str:
    """A store's address as it may be shown: user and password are the user's own."""
    scheme, mark, rest = uri.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}{mark}{host.rpartition('@')[2]}{slash}{path}"


@contextmanager
def quick_to_give_up() -> Iterator[Mapping[str, str]]:
    """Within the block MLflow tries a request once, unless the user has said otherwise.

    Gives what was added to the environment for it.
    """
    added = {name: value for name, value in QUICK.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield added
    finally:
        for name in added:
            os.environ.pop(name, None)
