"""The folders that hold a training's checkpoints: which are there, which may go.

    FOLDER/step-0000050/part-00000-of-00002-1a2b3c4d.safetensors, ..., manifest.json

A folder without a manifest is no checkpoint: what a kill or a full disk has left of one.
"""

import contextlib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs.manifests import MANIFEST, read_manifest
from pipeline.storage import Location

FOLDER = "checkpoints"
STEP = re.compile(r"step-(\d{7,})")


def folder_of(checkpoints: Location, step: int) -> Location:
    """Where the checkpoint after so many steps lies."""
    return checkpoints.child(f"step-{step:07d}")


def files_by_step(checkpoints: Location) -> dict[int, list[str]]:
    """The names of all files of every step, whether its checkpoint was finished or not."""
    found: dict[int, list[str]] = {}
    for path in checkpoints.files():
        folder, _, name = path.partition("/")
        if match := STEP.fullmatch(folder):
            found.setdefault(int(match[1]), []).append(name)
    return found


def finished(files: Mapping[int, Sequence[str]]) -> list[int]:
    """The steps that have a checkpoint, newest first."""
    return sorted((step for step, names in files.items() if MANIFEST in names), reverse=True)


def delete(folder: Location, names: Iterable[str]) -> None:
    """Delete files of a checkpoint, its manifest before all others, and the folder if it is empty.

    Killed in between, it leaves no checkpoint that lacks a part.
    """
    names = list(names)
    if MANIFEST in names:
        folder.child(MANIFEST).delete()
    folder.delete_below(name for name in names if name != MANIFEST)
    if folder.is_local:
        with contextlib.suppress(OSError):
            Path(folder.path).rmdir()


def clear_leftovers(checkpoints: Location) -> None:
    """Delete what was begun before the newest checkpoint and never finished."""
    files = files_by_step(checkpoints)
    newest = max(finished(files), default=0)
    for step, names in files.items():
        if MANIFEST not in names and step < newest:
            delete(folder_of(checkpoints, step), names)


def prune(
    checkpoints: Location, *, keep_last: int, keep_best: int, spared: Iterable[int] = ()
) -> None:
    """Delete checkpoints that are neither among the newest nor among the best, nor to be spared."""
    files = files_by_step(checkpoints)
    steps = [step for step in finished(files) if step not in set(spared)]
    kept = set(steps[:keep_last]) | set(best(checkpoints, steps)[:keep_best] if keep_best else ())
    for step in set(steps) - kept:
        delete(folder_of(checkpoints, step), files[step])


def best(checkpoints: Location, steps: Iterable[int]) -> list[int]:
    """Those of the steps whose model was validated just then, best first."""
    scores: dict[int, float] = {}
    for step in steps:
        with contextlib.suppress(ValueError, OSError):
            progress = read_manifest(folder_of(checkpoints, step)).progress
            score = score_of(progress.validation, step=step)
            scores |= {} if score is None else {step: score}
    return sorted(scores, key=lambda step: (-scores[step], step))


def score_of(validation: Mapping[str, Any], *, step: int) -> float | None:
    """How good the model of this step is by what jobs.standing told, more is better; None where
    nobody looked just then.
    """
    figure = validation.get("newest")
    if not isinstance(figure, int | float) or validation.get("newest_step") != step:
        return None
    return float(figure) if validation.get("goal") == "higher" else -float(figure)
