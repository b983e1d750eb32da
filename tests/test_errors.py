"""What errors of other libraries become."""

from __future__ import annotations

from twdpo.errors import first_line


def test_first_line_of_an_error() -> None:
    assert first_line(ValueError("\n one:\ntwo")) == "one"
    assert first_line(ValueError()) == "ValueError"
    assert first_line(ValueError("x" * 30), limit=10) == "xxxxxxx..."
