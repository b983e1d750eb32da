"""Shaded text: every token shown once, nothing steers the terminal."""

from __future__ import annotations

import io
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from twdpo.inspect.terminal import SHADES, legend, pair_view, shade, shaded_text
from twdpo.weights_cache.picture import visible


def arrays(*spans: tuple[int, int, float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # type: ignore[type-arg]
    return (
        np.asarray([w for _, _, w in spans], np.float32),
        np.asarray([s for s, _, _ in spans], np.int32),
        np.asarray([e for _, e, _ in spans], np.int32),
    )


def test_tokens_are_marked_by_weight_without_colour() -> None:
    text = shaded_text(
        "Two and two is five", *arrays((0, 3, 0.1), (3, 7, 2.0), (7, 11, 4.0), (11, 19, 7.0)), color=False
    )
    assert text.plain == "Two ‹and› «two» ⟪is five⟫"


def test_tokens_are_styled_by_weight_in_colour() -> None:
    text = shaded_text("abcd", *arrays((0, 2, 0.0), (2, 4, 9.0)))
    assert text.plain == "abcd"
    assert [(span.start, span.end, span.style) for span in text.spans if span.style] == [(2, 4, SHADES[-1][1])]


def test_tokens_on_one_character_are_shown_once_with_the_heaviest() -> None:
    text = shaded_text("a🙂b", *arrays((0, 1, 0.0), (1, 2, 0.1), (1, 2, 8.0), (2, 3, 0.0)), color=False)
    assert text.plain == "a⟪🙂⟫b"


def test_text_beyond_the_tokens_is_still_shown() -> None:
    assert shaded_text("  ab tail", *arrays((2, 4, 1.0)), color=False).plain == "  ab tail"


@given(st.text())
def test_nothing_passes_that_steers_a_terminal(text: str) -> None:
    shown = visible(text)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufeff]", shown)


@pytest.mark.parametrize("text", ["\x1b[31mred", "a\u202eb", "\x07", "\r", "[bold]markup[/bold]"])
def test_hostile_text_through_a_console(text: str) -> None:
    out = io.StringIO()
    side = shaded_text(text, *arrays((0, len(text), 2.0)), color=False)
    Console(file=out, width=60).print(pair_view("t", text, side, side))
    shown = out.getvalue()
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    if text.startswith("[bold]"):
        assert "[bold]markup[/bold]" in shown


def test_shades_and_legend() -> None:
    assert [shade(w) for w in (0.0, 0.75, 1.5, 3.0, 60.0)] == [0, 1, 2, 3, 4]
    assert "⟪6+⟫" in legend(color=False).plain
