"""One logical training = one MLflow run, also after restarts; only the calling process logs."""

import base64
import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.code_version import code_tags
from jobs.errors import MachineFault, UserError
from jobs.mlflow_store import SQLITE, point_tracking, require_tracking, without_password

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METRICS_AT_ONCE, PARAMS_AT_ONCE = 1000, 100
"""MLflow's limits of a request."""
TOKEN = "farreach_token"
MAX_DIGEST_LENGTH = 36
"""MLflow's own; the whole digest stands in the dataset's tag and in the run's."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """An open MLflow run."""

    run_id: str
    uri: str

    def begin(self, *, params: Mapping[str, Any], tags: Mapping[str, Any]) -> None:
        """The run is running, with these settings and facts.

        What it already has with another value keeps the first one; the new value becomes the tag
        `resumed.NAME`.
        """
        import mlflow
        from mlflow.entities import Param

        client = mlflow.MlflowClient()
        client.update_run(self.run_id, status="RUNNING")
        known = client.get_run(self.run_id).data
        tags = code_tags() | dict(tags)
        first = {name: value for name, value in tags.items() if name not in known.tags}
        self.set_tags(first | _resumed(tags, known=known.tags))
        new = [Param(name, str(params[name])) for name in params if name not in known.params]
        for start in range(0, len(new), PARAMS_AT_ONCE):
            client.log_batch(self.run_id, params=new[start : start + PARAMS_AT_ONCE])
        self.set_tags(_resumed(params, known=known.params))

    def end(self, status: str) -> None:
        """FINISHED, FAILED or KILLED."""
        import mlflow

        mlflow.MlflowClient().set_terminated(self.run_id, status)

    def log_metrics(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Numbers of one step; names carry their units."""
        self.log_points([(metrics, step, int(1000 * time.time()))])

    def log_points(self, points: Sequence[tuple[Mapping[str, float], int, int]]) -> None:
        """Numbers of several steps, each with the step and when it was measured, ms since 1970.

        The same ones again change nothing.
        """
        import mlflow
        from mlflow.entities import Metric

        found = [
            Metric(name, float(value), time_ms, step)
            for metrics, step, time_ms in points
            for name, value in metrics.items()
        ]
        for start in range(0, len(found), METRICS_AT_ONCE):
            mlflow.MlflowClient().log_batch(
                self.run_id, metrics=found[start : start + METRICS_AT_ONCE]
            )

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

    def log_base64(self, content: str, file: str) -> None:
        """Bytes, written as JSON can hold them, as an artifact."""
        import mlflow

        folder, _, name = file.rpartition("/")
        with tempfile.TemporaryDirectory(prefix="farreach-") as here:
            path = Path(here) / name
            path.write_bytes(base64.b64decode(content))
            mlflow.MlflowClient().log_artifact(self.run_id, str(path), folder or None)

    def log_figure(self, figure: "Figure", file: str) -> None:
        """A matplotlib figure as a picture."""
        import mlflow

        mlflow.MlflowClient().log_figure(self.run_id, figure, file)

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Short facts to search runs by."""
        import mlflow

        for key, value in tags.items():
            mlflow.MlflowClient().set_tag(self.run_id, key, value)


def new_run(
    experiment: str, *, name: str | None = None, uri: str | None = None, token: str | None = None
) -> Run:
    """A run that nothing is known of yet; raises where the store does not answer.

    With a token, the run that was made with it before, if there is one.
    """
    store = require_tracking(uri)
    import mlflow
    from mlflow.tracking.context.registry import resolve_tags

    client = mlflow.MlflowClient()
    with _mlflow_faults(store):
        place = _experiment_id(experiment, uri=store)
        sought = f"tags.{TOKEN} = '{token}'"
        if token and (found := client.search_runs([place], sought, max_results=1)):
            return Run(run_id=found[0].info.run_id, uri=store)
        tags = resolve_tags() | ({TOKEN: token} if token else {})
        made = client.create_run(place, tags=tags, run_name=name)
    return Run(run_id=made.info.run_id, uri=store)


def known_run(run_id: str) -> Run:
    """A run that was begun before, also while the store does not answer."""
    store = point_tracking()
    try:
        require_tracking()
    except MachineFault:
        return Run(run_id=run_id, uri=store)
    import mlflow

    with _mlflow_faults(store):
        info = mlflow.MlflowClient().get_run(run_id).info
    if info.lifecycle_stage != "active":
        raise UserError(f"MLflow run {run_id} was deleted: restore it, or choose another name")
    return Run(run_id=run_id, uri=store)


@contextmanager
def open_run(
    experiment: str,
    *,
    name: str | None = None,
    params: Mapping[str, Any] | None = None,
    tags: Mapping[str, Any] | None = None,
    uri: str | None = None,
) -> Iterator[Run]:
    """A new run; how the block ends becomes its status."""
    run = new_run(experiment, name=name, uri=uri)
    status = "FAILED"
    try:
        with _mlflow_faults(run.uri):
            run.begin(params=params or {}, tags=tags or {})
        yield run
        status = "FINISHED"
    except (KeyboardInterrupt, SystemExit):
        status = "KILLED"
        raise
    finally:
        run.end(status)


@contextmanager
def ended_run(run_id: str) -> Iterator[Run]:
    """A run that has ended, to add to: whatever happens here, its status stays as it is."""
    store = require_tracking()
    import mlflow

    with _mlflow_faults(store):
        mlflow.MlflowClient().get_run(run_id)
        yield Run(run_id=run_id, uri=store)


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
