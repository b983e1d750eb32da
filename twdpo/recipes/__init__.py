"""Configurations that come with the program, one YAML file each; `twdpo train --config NAME` finds them.

A file says of every line why it is so. Not for: reading configurations (`twdpo/config.py`).
"""

from __future__ import annotations

import difflib
from pathlib import Path

from twdpo.errors import UsageError

_FOLDER = Path(__file__).parent


def names() -> list[str]:
    """The recipes that there are."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def find(text: str) -> str:
    """The file that `text` stands for: itself, or the recipe of that name where it is a bare name and no such file.

    Raises UsageError naming the recipes where there is neither.
    """
    path = Path(text)
    if path.exists() or path.suffix or path.name != text:
        return text
    if text in names():
        return str(_FOLDER / f"{text}.yaml")
    close = difflib.get_close_matches(text, names(), n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise UsageError(
        f"--config {text}: no such file, and no recipe of that name{hint} (there are {', '.join(names())})"
    )
