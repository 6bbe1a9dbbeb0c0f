"""The model with the best validation figure, beside the checkpoints of its run.

    storage_path/NAME/best/
      best.json                       which step, and its figures; written last, deleted first
      step-0000050/                   fit_model.weights layout

best.json names a folder that is whole; a folder that it does not name may be half written.
"""

import json
import shutil
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor

from fit_model import weights
from fit_model.model import ModelConfig
from jobs.standing import Standing
from pipeline.storage import Location

FOLDER, RECORD = "best", "best.json"


@dataclass(frozen=True, kw_only=True)
class Best:
    """What best.json tells."""

    step: int
    figure: str
    figures: Mapping[str, float]
    """All of the validation after that step, by name."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """Which model a training hands out."""

    folder: str
    """As fit_model.weights reads it, local or s3://."""
    measured: str
    """When the figures were taken."""
    figures: Mapping[str, float]
    prefix: str
    """Of the figures' names in the registry."""

    @classmethod
    def last(cls, folder: str, *, figures: Mapping[str, float]) -> "Exported":
        """The model after the last step, with what that step measured."""
        return cls(folder=folder, measured="last step of training", figures=figures, prefix="final")

    @classmethod
    def best(cls, run: str) -> "Exported | None":
        """The model with the best validation figure; None when none was a number."""
        found = read_best(run)
        if found is None:
            return None
        return cls(
            folder=str(model_folder(run, found.step)),
            measured=f"best validation/{found.figure}, {found.figures[found.figure]:.6g} after "
            f"step {found.step}",
            figures=found.figures,
            prefix="best",
        )


def model_folder(run: str, step: int) -> Location:
    """Where the model after `step` steps lies, if it was the best."""
    return Location.of(run).child(FOLDER).child(f"step-{step:07d}")


def write_best(
    run: str, standing: Standing, *, tensors: Mapping[str, Tensor], config: ModelConfig
) -> None:
    """Keep the model of the standing's best step; what nobody may still ask for is deleted."""
    folder = model_folder(run, standing.best_step)
    with tempfile.TemporaryDirectory(prefix="farreach-best-") as draft:
        weights.save_tensors(tensors, config, draft)
        for name in (weights.WEIGHTS, weights.CONFIG):
            with folder.child(name).writer() as target:
                shutil.move(Path(draft) / name, target)
    name_best(run, standing)
    forget(run, besides={standing.best_step, *standing.kept})


def name_best(run: str, standing: Standing) -> None:
    """Let best.json say what the standing says; a standing without a best has none."""
    place = Location.of(run).child(FOLDER).child(RECORD)
    if standing.best is None:
        place.delete()
        return
    best = Best(step=standing.best_step, figure=standing.figure, figures=standing.figures)
    place.write_bytes((json.dumps(asdict(best), indent=2) + "\n").encode())


def read_best(run: str) -> Best | None:
    """The best model's record; None when no validation gave a number."""
    place = Location.of(run).child(FOLDER).child(RECORD)
    if not place.exists():
        return None
    try:
        found = Best(**json.loads(place.read_bytes()))
        float(found.figures[found.figure])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(
            f"{place} is damaged ({error}): delete it, and the model of the last step is taken"
        ) from error
    return found


def has_model(run: str, step: int) -> bool:
    """Whether the model of a best step is still there; its configuration is written last."""
    return model_folder(run, step).child(weights.CONFIG).exists()


def forget(run: str, *, besides: Collection[int]) -> None:
    """Delete the models of all other steps."""
    place = Location.of(run).child(FOLDER)
    kept = {model_folder(run, step).path.rpartition("/")[2] for step in besides}
    gone = [name for name in place.files() if "/" in name and name.split("/")[0] not in kept]
    # a configuration goes first: without it a folder is no model
    place.delete_below(sorted(gone, key=lambda name: not name.endswith(weights.CONFIG)))
