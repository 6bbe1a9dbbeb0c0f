"""Which broken-off run a training continues."""

from typing import Any

from jobs.checkpoints import RunRecord, read_record
from jobs.errors import UserError
from jobs.settings import flat_defaults, to_flat_dict

MAY_DIFFER = (
    "workers.max_failures", "parallel.timeout_s", "record.", "register_as", "alias", "dataset",
    "storage_path", "memory_limit_gb", "reading.", "batch.max_damaged_share", "validation",
    "profile", "parent_run",
)  # fmt: skip
"""Settings that change nothing about what is learned; the dataset is compared by its digest."""


def unfinished_record(config: Any, folder: str, *, digest: str) -> RunRecord | None:
    """The record of the same training, broken off; refuses one that finished or is another."""
    before = read_record(folder)
    if before is None:
        return None
    if before.finished:
        raise UserError(f"{folder}: this run has finished; choose another name")
    if before.digest != digest:
        raise UserError(
            f"{folder}: this run was started on another dataset (digest {before.digest[:12]}, "
            f"now {digest[:12]}); choose another name"
        )
    # a setting that did not exist yet when the run began was in effect at its default
    now, then = to_flat_dict(config), flat_defaults(config) | before.config
    for key in sorted(now.keys() | then.keys()):
        if now.get(key) != then.get(key) and not key.startswith(MAY_DIFFER):
            raise UserError(
                f"{folder}: this run was started with {key}={then.get(key)}, not {now.get(key)}; "
                "give the same setting to continue it, or choose another name"
            )
    return before
