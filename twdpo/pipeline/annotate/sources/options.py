"""`--source-options`: text such as `gamma=0.98,seed=1` as an instance of a source's own dataclass of options."""

from __future__ import annotations

import difflib
import math
import re
import typing
from dataclasses import fields
from typing import Any

from twdpo.errors import UsageError, first_line

#: A comma ends a value only before the next name, so that texts may hold commas.
_COMMA = re.compile(r",(?=\s*\w+\s*=)")
_YES_NO = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def parse_options(text: str | None, kind: type, source: str) -> Any:
    """The options of `source`, a `kind`, that `text` gives; what it does not name keeps its default.

    Raises UsageError where an option is unknown, given twice, of another type or out of range.
    """
    hints = typing.get_type_hints(kind)
    values: dict[str, Any] = {}
    for part in _COMMA.split(text) if text and text.strip() else ():
        name, equals, value = (each.strip() for each in part.partition("="))
        if not equals or not name:
            raise UsageError(f"--source-options {part.strip()!r} is not understood; write for example name=1,other=2")
        if name not in hints:
            raise UsageError(f"--source-options: --source {source} has no option {name!r}{_hint(name, kind)}")
        if name in values:
            raise UsageError(f"--source-options: {name} is given twice")
        values[name] = _convert(name, value, hints[name])
    try:
        return kind(**values)
    except ValueError as error:
        raise UsageError(f"--source-options: {first_line(error)}") from None


def _hint(name: str, kind: type) -> str:
    known = [field.name for field in fields(kind)]
    if not known:
        return "; it has none"
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; it has {', '.join(known)}"


def _convert(name: str, text: str, kind: Any) -> Any:
    if kind is str:
        return text
    if kind is bool:
        if text.lower() in _YES_NO:
            return _YES_NO[text.lower()]
        raise UsageError(f"--source-options: {name} must be true or false, not {text!r}")
    try:
        value = kind(text)
        if not math.isfinite(value):
            raise ValueError
    except (ValueError, OverflowError):
        what = "a whole number" if kind is int else "a number"
        raise UsageError(f"--source-options: {name} must be {what}, not {text!r}") from None
    return value
