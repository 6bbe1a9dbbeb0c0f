"""YAML and dotted overrides -> a frozen dataclass, or one line that says why not.

    load(TrainConfig, Path("train.yaml"), ["optimizer.lr=3e-4"])

The annotations decide. A mapping becomes the dataclass annotated there; a union of dataclasses is
decided by its `kind`; everything else is checked strictly by pydantic, after two repairs that
YAML makes necessary: `3e-4` is a number, and a list fills a tuple. `yes` and `8` are no strings.
"""

import dataclasses
import difflib
import json
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from jobs.errors import UserError
from jobs.yaml_source import parse_value, read_mapping

Config = TypeVar("Config")

# What YAML 1.1 leaves a string although everybody means a number.
NUMBER = re.compile(r"[-+]?(\d[\d_]*)?\.?\d+[eE][-+]?\d+")


def load(config_class: type[Config], path: Path | None, overrides: Sequence[str] = ()) -> Config:
    """The settings of one job: the file's, with the overrides laid over them.

    A key that does not exist, a missing or ill-typed value and whatever the config classes refuse
    is a UserError of one line, opened by the name of the file.
    """
    source = path.name if path else "command line"
    tree = read_mapping(path) if path else {}
    for override in overrides:
        _lay_over(tree, override)
    try:
        return _Builder(root=config_class).build(config_class, tree, ())
    except ValueError as error:
        raise UserError(f"{source}: {error}") from error


def to_dict(config: Any) -> dict[str, Any]:
    """The config as nested JSON-able values, for files and artifacts; `load` reads it back."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def to_flat_dict(config: Any) -> dict[str, Any]:
    """The config with dotted keys and scalar values, for MLflow params; lists become JSON."""
    return dict(_flatten(to_dict(config), ()))


def flat_defaults(config: Any) -> dict[str, Any]:
    """The defaults below a config, of the kinds it is made of, with the keys of to_flat_dict."""
    return dict(_flatten(_defaults(config), ()))


def _defaults(config: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            below = _defaults(value)
            found |= {field.name: below} if below else {}
        elif not _needed(field):
            found[field.name] = json.loads(_default(field))
    return found


def _flatten(value: Any, place: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _flatten(item, (*place, key))
    else:
        yield ".".join(place), json.dumps(value) if isinstance(value, list | dict) else value


def _lay_over(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    place = key.strip().split(".")
    if not equals or not all(place):
        raise UserError(f"override '{override}' is not of the form key=value")
    for name in place[:-1]:
        if not isinstance(tree.get(name), dict):
            tree[name] = {}
        tree = tree[name]
    tree[place[-1]] = parse_value(text, name=override)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Builder:
    """Walks the annotations and the values together; `place` is the dotted key so far."""

    root: Any

    def build(self, annotation: Any, value: Any, place: tuple[str, ...]) -> Any:
        if dataclasses.is_dataclass(annotation):
            return self._dataclass(annotation, value, place)
        kinds = _dataclasses_of(annotation)
        if kinds and isinstance(value, dict):
            return self._dataclass(_kind(kinds, value, place), value, place)
        item = _item_dataclasses(annotation)
        if item is not None and isinstance(value, list):
            items = [self.build(item, each, (*place, str(n))) for n, each in enumerate(value)]
            return tuple(items) if typing.get_origin(annotation) is tuple else items
        item = _value_dataclasses(annotation)
        if item is not None and isinstance(value, dict):
            return {key: self.build(item, each, (*place, key)) for key, each in value.items()}
        if kinds and value is not None:
            raise ValueError(f"{_quoted(place)} = {value!r} must be a mapping of settings")
        return _leaf(annotation, value, place)

    def _dataclass(self, config_class: Any, value: Any, place: tuple[str, ...]) -> Any:
        if not isinstance(value, dict):
            raise ValueError(f"{_quoted(place)} = {value!r} must be a mapping of settings")
        hints = typing.get_type_hints(config_class)
        fields = {field.name: field for field in dataclasses.fields(config_class) if field.init}
        for key in value:
            if key not in fields:
                raise ValueError(self._no_setting((*place, str(key)), fields))
        missing = [name for name, field in fields.items() if name not in value and _needed(field)]
        if missing:
            wanted = [each for name in missing for each in _wanted(hints[name], (*place, name))]
            names = ", ".join(map(_quoted, wanted))
            raise ValueError(
                f"setting {names} is missing"
                if len(wanted) == 1
                else f"settings {names} are missing"
            )
        values = {key: self.build(hints[key], each, (*place, key)) for key, each in value.items()}
        return config_class(**values)

    def _no_setting(self, place: tuple[str, ...], fields: Iterable[str]) -> str:
        wanted = ".".join(place)
        known = sorted({*_names(self.root, ())} - {wanted})
        near = difflib.get_close_matches(place[-1], list(fields), n=1, cutoff=0.6)
        close = [name for name in known if name.rpartition(".")[2] == place[-1]] or [
            ".".join((*place[:-1], name)) for name in near
        ]
        close = close or difflib.get_close_matches(wanted, known, n=1, cutoff=0.8)
        if close:
            return f"no setting '{wanted}'; did you mean '{close[0]}'?"
        return f"no setting '{wanted}'; there are: {', '.join(fields)}"


def _quoted(place: tuple[str, ...]) -> str:
    return f"'{'.'.join(place)}'"


def _needed(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _wanted(annotation: Any, place: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """What must be given for a missing setting: itself, or the keys below it without a default."""
    if not dataclasses.is_dataclass(annotation):
        yield place
        return
    hints = typing.get_type_hints(annotation)
    for field in filter(_needed, dataclasses.fields(annotation)):
        yield from _wanted(hints[field.name], (*place, field.name))


def describe(config_class: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    """Every setting below a config class and its default, or "required", in order."""
    hints = typing.get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        below = (*place, field.name)
        kinds = _dataclasses_of(hints[field.name])
        if kinds and type(None) in typing.get_args(hints[field.name]):
            yield ".".join(below), "null"
        for each in kinds:
            yield from describe(each, below)
        if not kinds:
            yield ".".join(below), "required" if _needed(field) else _default(field)


def _default(field: dataclasses.Field) -> str:
    made = field.default_factory
    value = field.default if made is dataclasses.MISSING else made()
    return json.dumps(value, default=str)


def _dataclasses_of(annotation: Any) -> list[Any]:
    """The dataclasses an annotation names, alone or in a union; empty for any other."""
    if dataclasses.is_dataclass(annotation):
        return [annotation]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [each for each in typing.get_args(annotation) if dataclasses.is_dataclass(each)]
    return []


def _item_dataclasses(annotation: Any) -> Any:
    """The item's annotation of a list or tuple of dataclasses, else None."""
    arguments = typing.get_args(annotation)
    is_sequence = typing.get_origin(annotation) in (list, tuple)
    return arguments[0] if is_sequence and arguments and _dataclasses_of(arguments[0]) else None


def _value_dataclasses(annotation: Any) -> Any:
    """The values' annotation of a mapping from names to dataclasses, else None."""
    arguments = typing.get_args(annotation)
    is_mapping = typing.get_origin(annotation) is Mapping
    return arguments[1] if is_mapping and _dataclasses_of(arguments[1]) else None


def _kind(kinds: list[Any], value: Mapping[str, Any], place: tuple[str, ...]) -> Any:
    if len(kinds) == 1:
        return kinds[0]
    names = {name: each for each in kinds for name in _kind_names(each)}
    if "kind" not in value:
        raise ValueError(
            f"setting {_quoted((*place, 'kind'))} is missing; choose one of: {', '.join(names)}"
        )
    if value["kind"] not in names:
        raise ValueError(
            f"{_quoted((*place, 'kind'))} = {value['kind']!r}; choose one of: {', '.join(names)}"
        )
    return names[value["kind"]]


def _kind_names(config_class: Any) -> tuple[str, ...]:
    return typing.get_args(typing.get_type_hints(config_class).get("kind"))


def _names(annotation: Any, place: tuple[str, ...]) -> Iterator[str]:
    """Every dotted key that exists below an annotation, of all kinds of every union."""
    for config_class in _dataclasses_of(annotation):
        hints = typing.get_type_hints(config_class)
        for field in dataclasses.fields(config_class):
            yield ".".join((*place, field.name))
            yield from _names(hints[field.name], (*place, field.name))


def _leaf(annotation: Any, value: Any, place: tuple[str, ...]) -> Any:
    adapter = TypeAdapter(annotation)
    try:
        return adapter.validate_json(_as_json(value), strict=True)
    except ValidationError as error:
        first = error
    try:
        return adapter.validate_json(_as_json(_numbers(value)), strict=True)
    except ValidationError:
        cause = first.errors()[0]
    message = cause["msg"].removeprefix("Value error, ").replace("Input should", "it should")
    # in a list it is an item that is no text, and of `str | list[str]` only one branch says so
    texts_wanted = any(
        each["type"] == "string_type" and isinstance(each["input"], bool | int | float)
        for each in first.errors()
    )
    remedy = ""
    if texts_wanted:
        written = json.dumps(_texts(value), ensure_ascii=False)
        remedy = f"; write it in quotes, on the command line as {'.'.join(place)}='{written}'"
    raise ValueError(f"{_quoted(place)} = {value!r}: {message}{remedy}")


def _texts(value: Any) -> Any:
    """What should have been written where YAML read numbers; `on` and `off` are forgotten."""
    if isinstance(value, list):
        return [_texts(each) for each in value]
    if isinstance(value, bool):
        return "..."
    return str(value) if isinstance(value, int | float) else value


def _as_json(value: Any) -> str:
    return json.dumps(value, default=str)


def _numbers(value: Any) -> Any:
    if isinstance(value, list):
        return [_numbers(each) for each in value]
    if isinstance(value, dict):
        return {key: _numbers(each) for key, each in value.items()}
    if isinstance(value, str) and NUMBER.fullmatch(value):
        return float(value)
    return value
