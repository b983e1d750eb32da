"""The command pages of the documentation, made from the program at every build, so that they cannot fall behind it.

MkDocs loads this file (`hooks` in mkdocs.yml). `command_pages` needs no MkDocs, so that the tests can call it.
Not for: what a command does; its docstring and its options' help say that.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

FOLDER = "commands"
_INDEX = f"{FOLDER}/index.md"

_DEFAULT = re.compile(r"\s*\[default: (?P<value>[^\]]*)\]\s*$")
_INTRODUCTION = """\
# Commands

These pages are made from the program; `twdpo COMMAND --help` shows the same. Results go to stdout, progress and
messages to stderr.

| command | what it does |
|---|---|
{rows}

| exit code | when |
|---|---|
| 0 | all went well |
| 1 | something failed; one line on stderr says what, and what to do |
| 2 | an option, or a combination of options, is wrong |
| 130 | stopped by Ctrl-C or SIGTERM; what was finished is kept |
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A command of the program: its words after `twdpo`, and typer's own object for it."""

    words: tuple[str, ...]
    command: Any

    @property
    def title(self) -> str:
        """As it is typed."""
        return " ".join(("twdpo", *self.words))

    @property
    def page(self) -> str:
        """Its page, below docs/."""
        return f"{FOLDER}/{'-'.join(self.words)}.md"

    @property
    def options(self) -> list[Any]:
        """Its options that are not hidden."""
        return [p for p in self.command.params if p.param_type_name == "option" and not p.hidden]

    @property
    def arguments(self) -> list[Any]:
        """Its arguments, in their order."""
        return [p for p in self.command.params if p.param_type_name == "argument"]


def commands() -> list[Command]:
    """Every command of the program that can be called, in the order of `twdpo --help`."""
    import typer

    from twdpo.cli import app

    # Typer carries its own copy of click, in a place that depends on its version: used by its attributes alone.
    return list(_leaves((), typer.main.get_command(app)))


def _leaves(words: tuple[str, ...], command: Any) -> Iterator[Command]:
    inner: dict[str, Any] = getattr(command, "commands", {})
    if not inner:
        yield Command(words=words, command=command)
    for name, child in inner.items():
        if not child.hidden:
            yield from _leaves((*words, name), child)


def command_pages() -> dict[str, str]:
    """Markdown of every command's page, and of the page that lists them, by path below docs/."""
    found = commands()
    rows = "\n".join(f"| [`{c.title}`]({c.page.removeprefix(f'{FOLDER}/')}) | {_cell(_summary(c))} |" for c in found)
    return {_INDEX: _INTRODUCTION.format(rows=rows)} | {c.page: _page(c) for c in found}


def _page(command: Command) -> str:
    usage = [
        command.title,
        "[OPTIONS]" if command.options else "",
        *(a.metavar or a.name.upper() for a in command.arguments),
    ]
    parts = [
        f"# {command.title}",
        f"```console\n$ {' '.join(filter(None, usage))}\n```",
        _paragraphs(command.command.help),
    ]
    if command.arguments:
        rows = [f"| `{a.metavar or a.name.upper()}` | {_cell(a.help)} |" for a in command.arguments]
        parts += ["## Arguments", "| argument | meaning |\n|---|---|\n" + "\n".join(rows)]
    if command.options:
        rows = [_option_row(option) for option in command.options]
        parts += ["## Options", "| option | meaning | default |\n|---|---|---|\n" + "\n".join(rows)]
    return "\n\n".join(parts) + "\n"


def _option_row(option: Any) -> str:
    metavar = f" {option.metavar}" if option.metavar else ""
    spelt = ", ".join(f"`{name}{metavar}`" for name in (*option.opts, *option.secondary_opts))
    text, default = (option.help or "").strip(), option.default
    # Where a default comes from a configuration, the option's own is None and its help says what holds.
    if said := _DEFAULT.search(text):
        text, default = text[: said.start()], said["value"]
    shown = "" if default is None or default is False else f"`{default}`"
    return f"| {spelt} | {_cell(text)} | {_cell(shown)} |"


def _summary(command: Command) -> str:
    return _paragraphs(command.command.help).split("\n\n")[0]


def _paragraphs(text: str | None) -> str:
    """Help text with its lines joined; paragraphs are kept."""
    return "\n\n".join(" ".join(part.split()) for part in re.split(r"\n\s*\n", (text or "").strip()))


def _cell(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|").replace("<", "&lt;")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the commands' pages into the menu, below the page that lists them."""
    for entry in config.nav or []:
        for name, target in entry.items():
            if target == _INDEX:
                entry[name] = [_INDEX, *({c.title: c.page} for c in commands())]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the commands' pages to those that are files."""
    from mkdocs.structure.files import File

    for path, text in command_pages().items():
        files.append(File.generated(config, path, content=text))
    return files
