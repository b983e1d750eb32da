"""Answers cut into pieces: nothing lost, tokens together that cannot be shown apart."""

from __future__ import annotations

import itertools
import unicodedata

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from twdpo.inspect.segments import ranks, segments, token_name

_TEXT = st.text(
    st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from("e\u0301\u200d👩🏽\n कि")), max_size=40
)


@st.composite
def answers(draw: st.DrawFn) -> tuple[str, list[float], list[int], list[int]]:
    """A text with tokens on it: in order, maybe with gaps, empty, or several on one character."""
    text = draw(_TEXT)
    starts = sorted(draw(st.lists(st.integers(0, len(text)), min_size=1, max_size=12)))
    ends = [min(len(text), start + draw(st.integers(0, 4))) for start in starts]
    weights = [float(np.float32(draw(st.floats(0, 20)))) for _ in starts]
    return text, weights, starts, ends


def cut(text: str, weights: list[float], starts: list[int], ends: list[int]):  # type: ignore[no-untyped-def]
    return list(segments(text, np.array(weights, np.float32), np.array(starts, np.int32), np.array(ends, np.int32)))


@given(answers())
def test_the_pieces_are_the_text_and_each_token_is_in_one(
    answer: tuple[str, list[float], list[int], list[int]],
) -> None:
    text, weights, starts, ends = answer
    pieces = cut(*answer)
    assert "".join(piece.text for piece in pieces) == text
    assert all(piece.text for piece in pieces)
    at = 0
    for piece in pieces:
        inside = range(piece.first, piece.last)
        assert piece.weight == max((weights[i] for i in inside), default=0.0)
        if inside:
            assert all(at <= starts[i] <= at + len(piece.text) or starts[i] < at for i in inside)
        at += len(piece.text)
    shown = [i for piece in pieces for i in range(piece.first, piece.last)]
    assert shown == sorted(set(shown))
    # Only a token without characters of its own may be missing.
    assert all(
        starts[i] == ends[i] or ends[i] <= max(ends[:i], default=0) for i in set(range(len(starts))) - set(shown)
    )


@given(answers())
def test_no_piece_of_a_token_is_followed_by_a_mark_alone(
    answer: tuple[str, list[float], list[int], list[int]],
) -> None:
    pieces = cut(*answer)
    for before, piece in itertools.pairwise(pieces):
        if before.first < before.last and not before.text.endswith("\n"):
            assert unicodedata.category(piece.text[0]) not in {"Mn", "Me", "Mc"}


def test_a_mark_in_a_token_of_its_own_goes_with_its_letter() -> None:
    pieces = cut("cafe\u0301s", [1.0, 2.0, 5.0, 0.5], [0, 3, 4, 5], [3, 4, 5, 6])
    assert [(p.text, p.first, p.last, p.weight) for p in pieces] == [
        ("caf", 0, 1, 1.0),
        ("e\u0301", 1, 3, 5.0),
        ("s", 3, 4, 0.5),
    ]


def test_ranks_and_names() -> None:
    assert ranks(np.array([1.0, 3.0, 3.0, 0.5], np.float32)).tolist() == [3, 1, 2, 4]
    assert token_name(" a\n\x1b") == "' a↵⟨U+001B⟩'"
