"""YAML as text -> plain values; a key that stands twice is refused, and errors are one line."""

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from jobs.errors import UserError


class _Loader(yaml.SafeLoader):
    """YAML's safe types only; a mapping that repeats a key is an error, not its last value."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.MarkedYAMLError(
                    problem=f"key '{key}' stands twice", problem_mark=node.start_mark
                )
        return super().construct_mapping(node, deep=deep)


def read_mapping(path: Path) -> dict[str, Any]:
    """The settings in a YAML file; an empty file holds none."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a text file") from error
    value = parse_value(text, name=path.name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UserError(f"{path.name}: must hold settings as 'key: value' lines")
    return value


def parse_value(text: str, *, name: str) -> Any:
    """One YAML value; `name` opens the message when the text is no YAML."""
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a subclass of the safe loader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise UserError(f"{name}: {place}{error.problem}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{name}: {str(error).splitlines()[0]}") from error
