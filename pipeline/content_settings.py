"""The settings that decide, beside the sources, what the groups of a dataset hold."""

import json
from dataclasses import asdict
from typing import Any

from pipeline.config import PreprocessConfig
from pipeline.schema import SCHEMA_VERSION

NO_CONTENT = ("grouping.patch_px", "background.masks")
"""What is only checked, and the folder of masks: each mask is part of its image's tag."""


def settings_of(config: PreprocessConfig) -> dict[str, Any]:
    """Those of a job: plain values under dotted names."""
    return _flat({"grouping": asdict(config.grouping), "background": asdict(config.background)})


def settings_in(settings: dict[str, Any]) -> dict[str, Any]:
    """Those of a dataset, from `settings` in its dataset.json."""
    return _flat({name: settings[name] for name in ("grouping", "background")})


def difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    """The settings that differ, as "name 1, was 2"; "" when none does."""
    names = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
    return ", ".join(f"{name} {now.get(name)}, was {before.get(name)}" for name in names)


def _flat(settings: dict[str, dict[str, Any]]) -> dict[str, Any]:
    plain = json.loads(json.dumps(settings))  # as they come back from a file
    named = {f"{of}.{name}": value for of in plain for name, value in plain[of].items()}
    for name in NO_CONTENT:
        del named[name]
    return {"schema_version": SCHEMA_VERSION, **named}
