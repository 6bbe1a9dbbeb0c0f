"""Choices of one line in a configuration: a name, and settings of its own where wanted.

linformer                      with the settings of its paper
linformer@rank=16              with one of them changed
aft_local@window=8,rank=none   with several
"""

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, get_args, get_type_hints

from fit_model import configuration


def read_choice(
    text: str, kinds: Mapping[str, type], *, setting: str, others: Sequence[str] = ()
) -> Any:
    """The configuration that `text` stands for, of the class that `kinds` has for its name.

    Raises ValueError that names `setting` and what is meant. `others` are names that may be chosen
    too, and that the caller has dealt with.
    """
    name, at, rest = text.partition("@")
    if name not in kinds:
        known = [*others, *kinds]
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(f"{setting} is {text!r}: {hint}choose one of {', '.join(known)}")
    try:
        hints = get_type_hints(kinds[name])
        given = _settings(rest, hints) if at else {}
        return configuration.from_dict(kinds[name], given)
    except ValueError as error:
        names = ", ".join(field.name for field in fields(kinds[name]) if field.name != "kind")
        remedy = f"write {name}@NAME=VALUE,NAME=VALUE with names of: {names}"
        raise ValueError(
            f"{setting} is {text!r}: {error}; {remedy if names else f'write {name}'}"
        ) from error


def _settings(text: str, hints: Mapping[str, Any]) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for part in text.split(","):
        name, value = _setting(part, hints)
        if name in given:
            raise ValueError(f"{name} stands twice")
        given[name] = value
    return given


def _setting(part: str, hints: Mapping[str, Any]) -> tuple[str, Any]:
    name, equals, text = part.partition("=")
    if not equals or name.strip() in ("", "kind"):
        raise ValueError(f"{part!r} is not of the form NAME=VALUE")
    value = _value(text.strip(), hints.get(name.strip()))
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name.strip()} is {value}: a finite number is wanted")
    return name.strip(), value


def _value(text: str, hint: Any) -> Any:
    if text in get_args(hint):  # "none" is a word where it is one of the words to choose from
        return text
    words = {"none": None, "true": True, "false": False}
    if text.lower() in words:
        return words[text.lower()]
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text
