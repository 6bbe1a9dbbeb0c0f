"""One logical training = one MLflow run, also after restarts; only the calling process logs.

Where: MLFLOW_TRACKING_URI, else `sqlite:///mlflow.db` in the working folder, its artifacts in
`mlruns` beside it. Look at it with `mlflow ui --backend-store-uri sqlite:///mlflow.db`.
"""

import json
import logging
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import requests

from jobs.cluster import SUBMITTED
from jobs.errors import MachineFault, UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REACH_TIMEOUT_S = 5.0
SQLITE = "sqlite:///"
MAX_DIGEST_LENGTH = 36
"""MLflow's own; the whole digest stands in the dataset's tag and in the run's."""


def tracking_uri() -> str:
    """Where runs and models are kept, independent of the working folder: hand it to workers."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}mlflow.db"
    if uri.startswith(SQLITE):
        return SQLITE + str(Path(uri.removeprefix(SQLITE)).absolute())
    return uri


def require_tracking(uri: str | None = None) -> str:
    """Make sure within seconds that the store answers, and point MLflow at it.

    MLflow itself would retry for minutes.
    """
    if uri is None and SUBMITTED in os.environ and not os.environ.get("MLFLOW_TRACKING_URI"):
        raise UserError(
            "MLFLOW_TRACKING_URI is not set on the cluster, and a submitted job's folder is thrown "
            "away: start the cluster with a server's address, or sqlite:////absolute/path.db"
        )
    uri = uri or tracking_uri()
    if uri.startswith(("http://", "https://")):
        _require_server(uri)
    if uri.startswith(SQLITE):
        folder = Path(uri.removeprefix(SQLITE)).parent
        if not os.access(folder, os.W_OK):
            raise UserError(
                f"{uri}: no folder {folder} that can be written: set MLFLOW_TRACKING_URI"
            )
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    for name in ("alembic", "mlflow.store", "mlflow.store.db.utils", "mlflow.system_metrics"):
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


@dataclass(frozen=True, kw_only=True)
class Run:
    """An open MLflow run."""

    run_id: str
    experiment_id: str
    uri: str

    def log_metrics(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Numbers of one step; names carry their units."""
        import mlflow

        values = {name: float(value) for name, value in metrics.items()}
        mlflow.log_metrics(values, step=step, run_id=self.run_id)

    def last_step(self, metric: str) -> int:
        """The newest step that the run has of a metric, 0 without one."""
        import mlflow

        history = mlflow.MlflowClient().get_metric_history(self.run_id, metric)
        return max((each.step for each in history), default=0)

    def log_dataset(
        self, uri: str, *, name: str, digest: str, context: str, counts: Mapping[str, int]
    ) -> None:
        """The entry under "Datasets used": `context` says for what, as "training"."""
        import mlflow
        from mlflow.data.http_dataset_source import HTTPDatasetSource
        from mlflow.data.meta_dataset import MetaDataset
        from mlflow.entities import DatasetInput, InputTag

        # the source type that holds any URI; it is never fetched
        dataset = MetaDataset(
            source=HTTPDatasetSource(uri), name=name, digest=digest[:MAX_DIGEST_LENGTH]
        )
        tags = {"mlflow.data.context": context, "digest": digest}
        tags |= {key: str(value) for key, value in counts.items()}
        used = DatasetInput(
            dataset._to_mlflow_entity(),
            tags=[InputTag(key, value) for key, value in tags.items()],
        )
        # log_input of MLflow's fluent interface takes the active run instead of this one
        mlflow.MlflowClient().log_inputs(self.run_id, datasets=[used])
        mlflow.MlflowClient().set_tag(self.run_id, f"dataset_digest.{context}", digest)

    def log_json(self, value: Any, file: str) -> None:
        """Any JSON-able value as an artifact."""
        import mlflow

        mlflow.MlflowClient().log_text(self.run_id, json.dumps(value, indent=2) + "\n", file)

    def log_file(self, path: Path, folder: str | None = None) -> None:
        """A file as an artifact of its name, in a folder of artifacts if one is named."""
        import mlflow

        mlflow.MlflowClient().log_artifact(self.run_id, str(path), folder)

    def log_figure(self, figure: "Figure", file: str) -> None:
        """A matplotlib figure as a picture."""
        import mlflow

        mlflow.MlflowClient().log_figure(self.run_id, figure, file)

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Short facts to search runs by."""
        import mlflow

        for key, value in tags.items():
            mlflow.MlflowClient().set_tag(self.run_id, key, value)


@contextmanager
def open_run(
    experiment: str,
    *,
    name: str | None = None,
    run_id: str | None = None,
    params: Mapping[str, Any] | None = None,
    tags: Mapping[str, Any] | None = None,
    uri: str | None = None,
    system_metrics: bool = True,
) -> Iterator[Run]:
    """A new run, or the run `run_id` again; how the block ends becomes the run's status.

    A parameter or tag that a resumed run already has with another value keeps the first one; the
    new value becomes the tag `resumed.NAME`.
    """
    store = require_tracking(uri)
    import mlflow

    with _mlflow_faults(store):
        active = mlflow.start_run(
            run_id=run_id,
            experiment_id=None if run_id else _experiment_id(experiment, uri=store),
            run_name=None if run_id else name,
            log_system_metrics=system_metrics,
        )
    run = Run(run_id=active.info.run_id, experiment_id=active.info.experiment_id, uri=store)
    status = "FAILED"
    try:
        with _mlflow_faults(store):
            _set_first_tags(run, code_tags() | dict(tags or {}), known=active.data.tags)
            _log_params(run, params or {}, known=active.data.params)
        yield run
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        mlflow.end_run(status)


@contextmanager
def ended_run(run_id: str) -> Iterator[Run]:
    """A run that has ended, to add to: whatever happens here, its status stays as it is."""
    store = require_tracking()
    import mlflow

    with _mlflow_faults(store):
        info = mlflow.MlflowClient().get_run(run_id).info
        yield Run(run_id=run_id, experiment_id=info.experiment_id, uri=store)


def _log_params(run: Run, params: Mapping[str, Any], *, known: Mapping[str, str]) -> None:
    import mlflow

    mlflow.log_params({key: value for key, value in params.items() if key not in known})
    run.set_tags(_resumed(params, known=known))


def _set_first_tags(run: Run, tags: Mapping[str, Any], *, known: Mapping[str, str]) -> None:
    first = {key: value for key, value in tags.items() if key not in known}
    run.set_tags(first | _resumed(tags, known=known))


def _resumed(values: Mapping[str, Any], *, known: Mapping[str, str]) -> dict[str, Any]:
    return {
        f"resumed.{key}": value
        for key, value in values.items()
        if key in known and known[key] != str(value)
    }


def _experiment_id(name: str, *, uri: str) -> str:
    import mlflow

    client = mlflow.MlflowClient()
    with _mlflow_faults(uri):
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            # MLflow would put the artifacts beside the caller instead of beside the database
            place = (
                (Path(uri.removeprefix(SQLITE)).parent / "mlruns" / name).as_uri()
                if uri.startswith(SQLITE)
                else None
            )
            return client.create_experiment(name, artifact_location=place)
    if experiment.lifecycle_stage != "active":
        raise UserError(f"experiment '{name}' was deleted: restore it or choose another name")
    return experiment.experiment_id


@contextmanager
def _mlflow_faults(uri: str) -> Iterator[None]:
    """MLflow's exceptions as one line that says which store."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        kind = UserError if error.error_code == "RESOURCE_DOES_NOT_EXIST" else MachineFault
        reason = str(error).splitlines()[0].replace(uri, without_password(uri))
        raise kind(f"MLflow at {without_password(uri)}: {reason}") from error


def code_version() -> str:
    """The installed version of this package."""
    try:
        return version("farreach")
    except PackageNotFoundError:
        return "not installed"


def code_tags() -> dict[str, str]:
    """Which code ran: the version, and the commit where it runs from a checkout."""
    tags = {"farreach_version": code_version()}
    checkout = Path(__file__).resolve().parent.parent
    if (checkout / ".git").exists():
        try:
            done = subprocess.run(  # noqa: S603 - a fixed command
                ["git", "-C", str(checkout), "rev-parse", "HEAD"],  # noqa: S607
                capture_output=True,
                text=True,
                timeout=REACH_TIMEOUT_S,
                check=True,
            )
        except (OSError, subprocess.SubprocessError):
            return tags
        tags["git_commit"] = done.stdout.strip()
    return tags
