"""How much may be put aside before the job itself fails."""

from typing import Any

from pipeline.assemble import Assembly
from pipeline.config import PreprocessConfig


def check_damage(assembly: Assembly, *, config: PreprocessConfig) -> None:
    """ValueError where damage may not be passed over, is too much, or leaves nothing."""
    bad = assembly.quarantine
    if not bad:
        return
    if config.on_error == "fail":
        raise ValueError(f"{_reason(bad[-1])} (on_error=quarantine would go on without it)")
    if not assembly.images and assembly.num_done == assembly.num_groups:
        raise ValueError(f"none of {len(bad)} image(s) can be read; the first: {_reason(bad[0])}")
    _check_limit(assembly.num_bad_images, "images", bad=bad, config=config)
    _check_limit(assembly.num_bad_groups, "groups", bad=bad, config=config)


def _check_limit(
    count: int, what: str, *, bad: list[dict[str, Any]], config: PreprocessConfig
) -> None:
    limit = getattr(config, f"max_bad_{what}")
    if limit is None or count <= limit:
        return
    first = next(each for each in bad if (each["group"] is None) == (what == "images"))
    raise ValueError(
        f"{count} {what} cannot be read, more than max_bad_{what} {limit}; "
        f"the first: {_reason(first)}"
    )


def _reason(bad: dict[str, Any]) -> str:
    where = f" at {bad['window']}" if bad["window"] else ""
    return f"{bad['uri']}{where}: {bad['cause']}"
