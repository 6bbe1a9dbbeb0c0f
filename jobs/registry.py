"""Registered models: a name, its versions, and aliases (`champion`, `challenger`) on them.

A version carries the folder that fit_model.weights wrote (safetensors and config.json), the code
that runs it, its signature, the run it came from, the dataset's digest, its metrics and its card.
"""

import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version as installed
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.code_version import code_tags
from jobs.errors import MachineFault, UserError
from jobs.mlflow_store import require_tracking, without_password

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CARD = "MODEL_CARD.md"
REQUIRED = ("torch", "numpy", "safetensors", "jaxtyping", "pandas")
REFUSALS = {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "RESOURCE_ALREADY_EXISTS"}


@dataclass(frozen=True, kw_only=True)
class Registered:
    """A version and the aliases that point at it."""

    name: str
    version: int
    aliases: tuple[str, ...]
    run_id: str
    created_ms: int
    description: str
    tags: dict[str, str]
    metrics: dict[str, float]

    @property
    def address(self) -> str:
        """What to type to mean this version."""
        return f"{self.name}@{self.aliases[0]}" if self.aliases else f"{self.name}/{self.version}"


def register(
    run_id: str,
    model_folder: Path,
    name: str,
    *,
    pixel_dtype: str,
    alias: str | None,
    metrics: Mapping[str, float],
    dataset_digest: str,
    card: str,
) -> int:
    """Make the next version of `name` from a folder of fit_model.weights; its number.

    The alias moves to the new version once that is whole. A run has one version of a name: asked
    again, as after a kill, the version it has is the answer.
    """
    from fit_model import weights

    check_name(name)
    with _registry() as client:
        model_folder = Path(model_folder)
        config = weights.load(model_folder).config
        for made in _versions(client, name):
            if made.run_id == run_id:
                if alias:
                    client.set_registered_model_alias(name, alias, made.version)
                return int(made.version)
        lineage = code_tags() | {"dataset_digest": dataset_digest}
        # MLflow's log_model would put it into the active experiment instead of the run's
        model_id = client.create_logged_model(
            client.get_run(run_id).info.experiment_id, "model", source_run_id=run_id, tags=lineage
        ).model_id
        uri = _log_model(model_id, model_folder, config=config, pixel_dtype=pixel_dtype, card=card)
        _log_metrics(metrics, run_id=run_id, model_id=model_id)
        _ensure_name(client, name)
        made = client.create_model_version(
            name, uri, run_id=run_id, tags=lineage, description=card, model_id=model_id
        )
        if alias:
            client.set_registered_model_alias(name, alias, made.version)
        return int(made.version)


def pull(address: str, folder: Path) -> Registered:
    """Fetch a version as a folder that fit_model.weights loads; it appears whole or not at all."""
    from fit_model import weights

    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is not empty: choose another folder")
    with _registry() as client:
        found = _find(client, address)
        import mlflow

        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".pull-") as draft:
            mlflow.artifacts.download_artifacts(
                artifact_uri=f"models:/{found.name}/{found.version}", dst_path=draft
            )
            model = Path(draft) / "artifacts"
            weights.load(model)
            # mkdtemp made the folder above for this user only; the model is the user's to share
            if folder.exists():
                folder.rmdir()
            os.replace(shutil.copytree(model, Path(draft) / "whole"), folder)
        return _registered(client, found)


def promote(address: str, alias: str) -> Registered:
    """Point an alias at a version; it leaves the version it pointed at."""
    with _registry() as client:
        found = _find(client, address)
        client.set_registered_model_alias(found.name, alias, found.version)
        return _registered(client, client.get_model_version(found.name, found.version))


def show(address: str) -> Registered:
    """One version; a bare name means its newest one."""
    with _registry() as client:
        return _registered(client, _find(client, address))


def record_metrics(registered: Registered, metrics: Mapping[str, float]) -> None:
    """Add figures, as of an evaluation, to a version and to the run that made it."""
    with _registry() as client:
        found = client.get_model_version(registered.name, str(registered.version))
        _log_metrics(metrics, run_id=registered.run_id, model_id=_model_id(found))


def list_versions(name: str | None = None) -> list[Registered]:
    """All versions of one name or of all, the newest of each name first."""
    with _registry() as client:
        wanted = f"name = '{check_name(name)}'" if name else None
        names = _names(client, wanted)
        if name and not names:
            raise UserError(_no_model(client, name))
        return [_registered(client, each) for known in names for each in _versions(client, known)]


def _log_model(model_id: str, folder: Path, *, config: Any, pixel_dtype: str, card: str) -> str:
    """Store the folder, its code, signature and card as MLflow's model; where they lie."""
    import mlflow
    from mlflow.models import Model

    import fit_model
    from jobs.model_signature import signature_of

    with tempfile.TemporaryDirectory() as draft, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow warns about its own type hints
        card_path = Path(draft) / CARD
        card_path.write_text(card, encoding="utf-8")
        logged = Model.log(
            artifact_path=None,
            flavor=mlflow.pyfunc,
            model_id=model_id,
            python_model=str(Path(__file__).with_name("served_model.py")),
            artifacts={
                "weights": str(folder / "model.safetensors"),
                "config": str(folder / "config.json"),
                "card": str(card_path),
            },
            code_paths=[str(Path(fit_model.__file__).parent)],
            signature=signature_of(config, pixel_dtype=pixel_dtype),
            # told, because MLflow would find out by running the model in a fresh process
            pip_requirements=[f"{each}=={installed(each).split('+')[0]}" for each in REQUIRED]
            + [f"mlflow=={installed('mlflow')}"],
        )
    return logged.model_uri


def _log_metrics(metrics: Mapping[str, float], *, run_id: str, model_id: str) -> None:
    import mlflow

    values = {key: float(value) for key, value in metrics.items()}
    if values:
        mlflow.log_metrics(values, run_id=run_id, model_id=model_id)


def _ensure_name(client: "MlflowClient", name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _find(client: "MlflowClient", address: str) -> "ModelVersion":
    """NAME@alias, NAME/version or NAME (its newest version)."""
    from mlflow.exceptions import MlflowException

    address = address.removeprefix("models:/")
    name, at, alias = address.partition("@")
    name, slash, number = (name, "", "") if at else address.partition("/")
    check_name(name)
    if (at and not alias) or (slash and not number.isdigit()):
        raise UserError(f"'{address}' is no model: write NAME@alias, NAME/version or NAME")
    versions = _versions(client, name)
    if not versions:
        raise UserError(_no_model(client, name))
    try:
        if at:
            return client.get_model_version_by_alias(name, alias)
        return client.get_model_version(name, number or versions[0].version)
    except MlflowException as error:
        aliases = sorted(client.get_registered_model(name).aliases)
        numbers = ", ".join(str(each.version) for each in reversed(versions))
        raise UserError(
            f"no model '{address}'; {name} has versions {numbers} "
            f"and aliases {', '.join(aliases) or '(none)'}"
        ) from error


def _versions(client: "MlflowClient", name: str) -> list["ModelVersion"]:
    found = client.search_model_versions(f"name = '{name}'")
    return sorted(found, key=lambda each: -int(each.version))


def _registered(client: "MlflowClient", found: "ModelVersion") -> Registered:
    aliases = client.get_registered_model(found.name).aliases
    metrics = client.get_logged_model(_model_id(found)).metrics or []
    return Registered(
        name=found.name,
        version=int(found.version),
        aliases=tuple(sorted(a for a, v in aliases.items() if int(v) == int(found.version))),
        run_id=found.run_id or "",
        created_ms=found.creation_timestamp,
        description=found.description or "",
        tags=dict(found.tags),
        metrics={metric.key: metric.value for metric in metrics},
    )


def _model_id(found: "ModelVersion") -> str:
    """MLflow's model behind a version; `found.model_id` is empty in some stores."""
    return found.source.removeprefix("models:/")


def _names(client: "MlflowClient", wanted: str | None = None) -> list[str]:
    names: list[str] = []
    page: str | None = None
    while True:
        found = client.search_registered_models(wanted, page_token=page)
        names += [model.name for model in found]
        page = found.token
        if not page:
            return sorted(names)


def check_name(name: str) -> str:
    """The name of a registered model; refuses what an address could not hold."""
    if not name or set(name) & set("/:@'\"") or name != name.strip():
        raise UserError(f"'{name}' is no model name: use letters, digits, '-', '_' and '.'")
    return name


def _no_model(client: "MlflowClient", name: str) -> str:
    names = _names(client)
    return f"no model '{name}'; there are: {', '.join(names) or '(none yet)'}"


@contextmanager
def _registry() -> Iterator["MlflowClient"]:
    """A client of a store that answers; MLflow's exceptions become one line."""
    uri = require_tracking()
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        yield MlflowClient()
    except MlflowException as error:
        kind = UserError if error.error_code in REFUSALS else MachineFault
        reason = str(error).splitlines()[0].replace(uri, without_password(uri))
        raise kind(f"MLflow at {without_password(uri)}: {reason}") from error
