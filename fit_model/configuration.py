"""Frozen dataclasses to plain JSON values and back; nothing unknown is swallowed."""

import difflib
import types
import typing
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import MISSING, asdict, fields, is_dataclass
from typing import Any, Literal, TypeVar, Union

Config = TypeVar("Config")


def to_dict(config: Any) -> dict[str, Any]:
    """Nested dataclasses as dicts, tuples as lists."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: plain(inner) for name, inner in value.items()}
        return [plain(inner) for inner in value] if isinstance(value, (list, tuple)) else value

    return plain(asdict(config))


def from_dict(kind: type[Config], values: Any, *, where: str = "") -> Config:
    """The inverse of to_dict: a ValueError names the setting that is unknown, missing or wrong."""
    if not isinstance(values, Mapping):
        raise ValueError(f"{where.rstrip('.') or 'the configuration'} is no table of settings")
    hints = typing.get_type_hints(kind)
    known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]  # a dataclass
    for name in values:
        if name not in known:
            close = difflib.get_close_matches(str(name), known, n=1)
            hint = (
                f"; did you mean '{where}{close[0]}'?" if close else f"; known: {', '.join(known)}"
            )
            raise ValueError(f"no setting '{where}{name}'{hint}")
    for name, field in known.items():
        if name not in values and field.default is MISSING:
            raise ValueError(f"the setting '{where}{name}' is missing")
    return kind(
        **{name: _value(hints[name], value, f"{where}{name}") for name, value in values.items()}
    )


def _value(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return _choice(arguments, value, where)
    if is_dataclass(hint):
        return from_dict(typing.cast(type, hint), value, where=f"{where}.")
    if origin is tuple and isinstance(value, (list, tuple)):
        return tuple(_value(arguments[0], inner, where) for inner in value)
    if origin is Literal and value in arguments:
        return value
    if hint is float and type(value) in (int, float):
        with suppress(OverflowError):  # a whole number of hundreds of digits
            return float(value)
    if hint in (bool, int, str) and type(value) is hint:
        return value
    raise ValueError(f"{where} is {value!r}: {_wanted(hint)} is wanted")


def _choice(options: tuple[Any, ...], value: Any, where: str) -> Any:
    """A value of one of several types: None, one or many, or the dataclass of the named kind."""
    if value is None and type(None) in options:
        return None
    left = [option for option in options if option is not type(None)]
    if len(left) == 1:
        return _value(left[0], value, where)
    plain = [option for option in left if not is_dataclass(option)]
    for option in plain:
        with suppress(ValueError):
            return _value(option, value, where)
    if plain:
        wanted = " or ".join(map(_wanted, plain))
        raise ValueError(f"{where} is {value!r}: {wanted} is wanted")
    kinds = {option.kind: option for option in left}
    name = value.get("kind") if isinstance(value, Mapping) else None
    if name not in kinds:
        raise ValueError(f"{where}.kind is {name!r}: choose one of {', '.join(kinds)}")
    return from_dict(kinds[name], value, where=f"{where}.")


def _wanted(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(repr(option) for option in typing.get_args(hint))
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    return names.get(hint, "a list")
