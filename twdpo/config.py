"""Configurations: a dataclass's defaults, a YAML file over them, the command's flags over both; and back to YAML.

Not for: what the fields mean; each stage's own `config.py` says that.
"""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Collection, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

from twdpo.errors import UsageError

Config = TypeVar("Config")

#: A field's type, as a person who writes YAML knows it.
_IN_WORDS: Mapping[Any, str] = {
    bool: "true or false",
    dict: "a mapping such as {name: value}",
    float: "a number",
    int: "a whole number",
    str: "text",
    tuple: "a list such as [1, 2]",
}


def resolve(
    kind: type[Config], file: str | None, flags: Mapping[str, Any], *, positional: Collection[str] = ()
) -> Config:
    """A `kind` (a dataclass) from its defaults, the YAML `file`, and the `flags` that are not None, which win.

    Keys may be written with dashes or underscores; fields in `positional` are given without a flag. Raises UsageError
    naming the file and key.
    """
    values = _read(kind, file) if file else {}
    values |= {name: value for name, value in flags.items() if value is not None}
    try:
        return kind(**values)
    except TypeError as error:
        missing = [f.name for f in fields(kind) if f.name not in values and f"'{f.name}'" in str(error)]  # type: ignore[arg-type]
        if not missing:
            raise
        names = ", ".join(name.upper() if name in positional else f"--{name.replace('_', '-')}" for name in missing)
        raise UsageError(f"{names} is missing; give it on the command line or in --config") from None


def to_yaml(config: object) -> str:
    """The configuration as YAML that `resolve` reads back."""
    import yaml

    values = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(config).items()}  # type: ignore[call-overload]
    return str(yaml.safe_dump(values, sort_keys=False, allow_unicode=True))


def _read(kind: type, file: str) -> dict[str, Any]:
    content = read_yaml(file, f"--config {file}")
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UsageError(f"--config {file}: expected lines such as `limit: 100`")
    return checked(kind, content, f"--config {file}")


def read_yaml(file: str, where: str) -> Any:
    """The content of a YAML file, None for an empty one. Raises UsageError, whose line begins with `where`."""
    import yaml

    try:
        return yaml.safe_load(Path(file).read_text("utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{where}: no such file") from None
    except OSError as error:
        raise UsageError(f"{where}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{where}: not UTF-8 text") from None
    except yaml.YAMLError as error:
        raise UsageError(f"{where}: not YAML ({' '.join(str(error).split())[:200]})") from None


def checked(kind: type, content: Mapping[Any, Any], where: str) -> dict[str, Any]:
    """The entries of a mapping as fields of `kind`, each of the field's type; keys may have dashes.

    Raises UsageError, whose line begins with `where`.
    """
    hints = typing.get_type_hints(kind)
    values = {}
    for key, value in content.items():
        name = str(key).replace("-", "_")
        if name not in hints:
            close = difflib.get_close_matches(name, list(hints), n=1)
            hint = f"; did you mean {close[0]}?" if close else f"; known: {', '.join(hints)}"
            raise UsageError(f"{where}: unknown key {key!r}{hint}")
        values[name] = _convert(value, hints[name], where, str(key))
    return values


def _convert(value: Any, hint: Any, where: str, key: str) -> Any:
    """`value` as the field's type; YAML reads 1e-6 as text and 1 as a whole number, which both are meant well."""
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    if value is None and type(None) in options:
        return None
    for option in options:
        origin = typing.get_origin(option) or option
        if option is float and isinstance(value, (int, str)) and not isinstance(value, bool):
            try:
                return float(value)
            except ValueError:
                continue
        if origin is tuple and isinstance(value, list):
            return tuple(value)
        if option is str and isinstance(value, (int, float)) and not isinstance(value, bool):
            return str(value)
        if origin is int and isinstance(value, bool):
            continue
        if isinstance(origin, type) and isinstance(value, origin):
            return value
    kinds = [typing.get_origin(option) or option for option in options if option is not type(None)]
    wanted = " or ".join(_IN_WORDS.get(kind, str(kind)) for kind in kinds)
    raise UsageError(f"{where}: {key} must be {wanted}, not {value!r}")
