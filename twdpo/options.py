"""Command-line options out of a configuration's fields, so that flags, YAML keys and Python arguments never differ.

Not for: what the options mean; `HELP` beside each configuration says that.
"""

from __future__ import annotations

import inspect
import json
import types
import typing
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, Field, fields
from typing import Annotated, Any, TypeVar

import typer

from twdpo.config import resolve
from twdpo.errors import UsageError

Config = TypeVar("Config")

_FILE_HELP = "YAML file{recipe} with these options (dashes or underscores); flags win over it."


def configured(
    kind: type[Config],
    help_texts: Mapping[str, str],
    parse: Mapping[str, Callable[[str], Any]] | None = None,
    positional: Collection[str] = (),
    find: Callable[[str], str] | None = None,
) -> Callable[[Callable[[Config], None]], Callable[..., None]]:
    """Make a command of a function of one configuration: each field of `kind` becomes an option, and --config FILE.

    parse: field → what turns the option's text into the field's value, for fields that are no plain type. positional:
    fields that are given by their place, without a flag. find: what --config was given → the file.
    """
    parse = parse or {}

    def decorate(function: Callable[[Config], None]) -> Callable[..., None]:
        def command(config: str | None = None, **flags: Any) -> None:
            given = {name: parse[name](v) if name in parse and v is not None else v for name, v in flags.items()}
            file = find(config) if find and config else config
            function(resolve(kind, file, given, positional=positional))

        hints = typing.get_type_hints(kind)
        parameters = [
            _argument(field, help_texts[field.name])
            if field.name in positional
            else _parameter(field, str if field.name in parse else hints[field.name], help_texts[field.name])
            for field in fields(kind)  # type: ignore[arg-type]
        ]
        about = _FILE_HELP.format(recipe=", or the name of a recipe," if find else "")
        file = Annotated[str | None, typer.Option("--config", metavar="FILE", help=about)]
        parameters.append(inspect.Parameter("config", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=file))
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        command.__name__, command.__doc__ = function.__name__, function.__doc__
        return command

    return decorate


def _argument(field: Field[Any], help_text: str) -> inspect.Parameter:
    """A field that is given by its place; its default is None, as an option's."""
    shown = "" if field.default is MISSING else f"  [default: {_show(field.default)}]"
    argument = typer.Argument(metavar=field.name.upper(), help=help_text + shown, show_default=False)
    return inspect.Parameter(
        field.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[str | None, argument]
    )


def _parameter(field: Field[Any], hint: Any, help_text: str) -> inspect.Parameter:
    """One option; its default is None, so that a file's value is not overridden by a flag that was not given."""
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    kind = next(option for option in options if option is not type(None))
    name = field.name.replace("_", "-")
    # Both forms, so that a flag can undo what the file says.
    flag = f"--{name}/--no-{name}" if kind is bool else f"--{name}"
    hidden = field.default is MISSING or field.default is None or field.default is False
    shown = "" if hidden else f"  [default: {_show(field.default)}]"
    option = typer.Option(flag, help=help_text + shown, show_default=False)
    return inspect.Parameter(
        field.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
    )


def _show(default: Any) -> str:
    if default is True:
        return "on"
    return f"{default:g}" if isinstance(default, float) else str(default)


def json_object(text: str) -> dict[str, Any]:
    """An option's text as a JSON object. Raises UsageError."""
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise UsageError(f'{text!r} is no JSON object; write for example {{"enable_thinking": false}}')
    return value
