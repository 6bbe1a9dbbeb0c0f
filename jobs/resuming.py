"""Which broken-off run a training continues, and with what changed."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from jobs.errors import UserError
from jobs.run_record import RunRecord, read_record
from jobs.settings import flat_defaults, to_flat_dict
from pipeline.storage import Location

MAY_DIFFER = (
    "workers", "parallel", "engine.zero_stage", "bounded", "batch.accumulation",
    "model.trunk.checkpointing", "memory_limit_gb", "record", "resume", "reading", "register_as",
    "alias", "dataset", "storage_path", "batch.max_damaged_share", "validation", "profile",
)  # fmt: skip
"""Settings that change nothing about what is learned; the dataset is compared by its digest."""
DATASET = "dataset"
OLD_RECORD = "checkpoint_manager_snapshot.json"
"""Of Ray Train, which kept the checkpoints of former versions."""


@dataclass(frozen=True, kw_only=True)
class ResumeConfig:
    """How a run that was broken off may be continued."""

    allow: tuple[str, ...] = ()
    """Settings that may differ from those it was begun with, as `optimizer.lr`, or `optimizer` for
    all of them; `dataset` for its content."""


def unfinished_record(config: Any, folder: str, *, digest: str) -> RunRecord | None:
    """The record of the same training, broken off; refuses one that finished or is another."""
    before = read_record(folder)
    if before is None:
        return None
    if before.finished:
        raise UserError(f"{folder}: this run has finished; choose another name")
    if Location.of(folder).child(OLD_RECORD).exists():
        raise UserError(
            f"{folder}: this run was begun by an older version, whose checkpoints this one does "
            "not read; continue it with that version, or choose another name"
        )
    # a setting that did not exist yet when the run began was in effect at its default
    now, then = to_flat_dict(config), flat_defaults(config) | before.config
    allowed: tuple[str, ...] = config.resume.allow
    _require_known(allowed, {DATASET, *now, *then})
    if before.digest != digest and not _covers(allowed, DATASET):
        raise UserError(
            f"{folder}: this run was started on another dataset (digest {before.digest[:12]}, "
            f"now {digest[:12]}); choose another name, or continue it on this one with "
            f"{_remedy(allowed, DATASET)}"
        )
    _require_same(now, then, allowed, folder)
    return before


def _require_same(
    now: Mapping[str, Any], then: Mapping[str, Any], allowed: tuple[str, ...], folder: str
) -> None:
    for key in sorted(now.keys() | then.keys()):
        if now.get(key) != then.get(key) and not _covers((*MAY_DIFFER, *allowed), key):
            raise UserError(
                f"{folder}: this run was started with {key}={then.get(key)}, not {now.get(key)}; "
                "give the same setting to continue it, choose another name, or continue it so "
                f"with {_remedy(allowed, key)}"
            )


def _require_known(allowed: Iterable[str], keys: Iterable[str]) -> None:
    for name in allowed:
        if not any(_covers((name,), key) for key in keys):
            raise UserError(f"resume.allow names {name!r}, and there is no such setting")


def _covers(names: Iterable[str], key: str) -> bool:
    """Whether one of the names is the setting, or what the setting is a part of."""
    return any(key == name or key.startswith(f"{name}.") for name in names)


def _remedy(allowed: Iterable[str], key: str) -> str:
    return f"resume.allow='[{', '.join((*allowed, key))}]'"
