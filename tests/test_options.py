"""Options out of a configuration's fields."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
from typer.testing import CliRunner

from twdpo.errors import UsageError
from twdpo.options import configured


@dataclass(frozen=True, kw_only=True)
class Settings:
    name: str
    many: int = 3
    share: float = 0.0
    fast: bool = True
    loud: bool = False
    extra: dict[str, Any] | None = None


HELP = {name: f"About {name}." for name in ("name", "many", "share", "fast", "loud", "extra")}
seen: list[Settings] = []
app = typer.Typer(rich_markup_mode=None)


@app.command()
@configured(Settings, HELP, {"extra": lambda text: {"text": text}})
def command(config: Settings) -> None:
    """What the command does."""
    seen.append(config)


def run(*arguments: str) -> Settings:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    return seen.pop()


def test_defaults_types_and_parsers() -> None:
    assert run("--name", "a") == Settings(name="a")
    assert run("--name", "a", "--many", "4", "--share", "1e-3", "--no-fast", "--loud", "--extra", "x") == Settings(
        name="a", many=4, share=0.001, fast=False, loud=True, extra={"text": "x"}
    )


def test_fields_given_by_their_place(tmp_path: Path) -> None:
    placed = typer.Typer(rich_markup_mode=None)

    @placed.command()
    @configured(Settings, HELP, {"extra": lambda text: {"text": text}}, positional=("name",))
    def place(config: Settings) -> None:
        """Takes a name by its place."""
        seen.append(config)

    assert CliRunner().invoke(placed, ["a", "--many", "2"]).exit_code == 0
    assert seen.pop() == Settings(name="a", many=2)
    (tmp_path / "c.yaml").write_text("name: file\n")
    assert CliRunner().invoke(placed, ["--config", str(tmp_path / "c.yaml")]).exit_code == 0
    assert seen.pop() == Settings(name="file")
    error = CliRunner().invoke(placed, []).exception
    assert isinstance(error, UsageError)
    assert str(error).startswith("NAME is missing; ")


def test_flags_can_undo_what_the_file_says(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("name: file\nloud: true\nfast: false\nmany: 9\n")
    assert run("--config", str(tmp_path / "c.yaml")) == Settings(name="file", loud=True, fast=False, many=9)
    undone = run("--config", str(tmp_path / "c.yaml"), "--no-loud", "--fast", "--many", "1")
    assert undone == Settings(name="file", many=1)


def test_help_names_defaults() -> None:
    shown = " ".join(CliRunner().invoke(app, ["--help"]).output.split())
    assert "What the command does." in shown
    for text in ("About many.", "[default: 3]", "[default: 0]", "[default: on]", "--no-loud"):
        assert text in shown
