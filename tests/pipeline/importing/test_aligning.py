"""Bytes of tokens laid along a text: the characters that each touches, or a refusal."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from twdpo.pipeline.importing.aligning import align, cleaned
from twdpo.pipeline.importing.layout import UnusableWeights

ANY = st.text() | st.text(alphabet="aé四👩\u200d \n")


def offsets(pieces: list[bytes], text: str) -> list[tuple[int, int]]:
    starts, ends = align(pieces, text)
    assert starts.dtype == ends.dtype == np.int32
    return [(int(start), int(end)) for start, end in zip(starts, ends, strict=True)]


@st.composite
def cut_texts(draw: st.DrawFn) -> tuple[list[bytes], str, list[tuple[int, int]]]:
    """A text, the bytes of its beginning cut anywhere, and the characters that each piece touches, one by one."""
    text = draw(ANY)
    first = next((i for i, character in enumerate(text) if not character.isspace()), None)
    assume(first is not None)
    assert first is not None
    owners = [i for i, character in enumerate(text) if first <= i < len(text.rstrip()) for _ in character.encode()]
    content = text.strip().encode()
    places = draw(st.sets(st.integers(1, len(content))))
    bounds = [0, *sorted(places | {draw(st.integers(1, len(content)))})]
    pieces = [content[a:b] for a, b in pairwise(bounds)]
    touched = [owners[a:b] for a, b in pairwise(bounds)]
    return pieces, text, [(min(some), max(some) + 1) for some in touched]


@given(cut_texts())
def test_each_token_gets_the_characters_that_its_bytes_touch(
    case: tuple[list[bytes], str, list[tuple[int, int]]],
) -> None:
    pieces, text, expected = case
    assert offsets(pieces, text) == expected


@given(cut_texts(), st.text(" \t\n\r", max_size=3), st.text(" \n", max_size=3))
def test_white_space_of_a_template_changes_nothing(
    case: tuple[list[bytes], str, list[tuple[int, int]]], before: str, behind: str
) -> None:
    pieces, text, expected = case
    assert offsets([before.encode() + pieces[0], *pieces[1:]], text) == expected
    if expected[-1][1] == len(text.rstrip()) and b"".join(pieces) == text.strip().encode():
        assert offsets([*pieces[:-1], pieces[-1] + behind.encode()], text) == expected


@given(cut_texts(), st.data())
def test_one_other_byte_is_refused(case: tuple[list[bytes], str, list[tuple[int, int]]], data: st.DataObject) -> None:
    pieces, text, _ = case
    which = data.draw(st.integers(0, len(pieces) - 1))
    place = data.draw(st.integers(0, len(pieces[which]) - 1))
    changed = bytearray(pieces[which])
    changed[place] ^= data.draw(st.integers(1, 255))
    # White space before the answer may be the template's: what is left after it is what must fit.
    assume(which or place or not bytes(changed[:1]).isspace())
    with pytest.raises(UnusableWeights, match="another text|nothing of the answer"):
        align([*pieces[:which], bytes(changed), *pieces[which + 1 :]], text)


@pytest.mark.parametrize(
    ("pieces", "reason"),
    [
        ([b"Four", b"\n"], "go on behind the answer's end"),
        ([b"Four", b".\n", b"<"], "go on behind the answer's end"),
        ([b"Fou", b"rth"], "go on behind the answer's end"),
        ([b"Four."], "go on behind the answer's end"),
        ([b"\n", b"Four"], "a token holds nothing of the answer"),
        ([b"Fo", b"", b"ur"], "a token holds nothing of the answer"),
        ([b"our"], "another text"),
        ([b"four"], "another text"),
        ([b"  "], "a token holds nothing of the answer"),
    ],
)
def test_what_does_not_fit(pieces: list[bytes], reason: str) -> None:
    with pytest.raises(UnusableWeights, match=reason):
        align(pieces, " Four ")


def test_an_answer_of_white_space_has_no_tokens() -> None:
    with pytest.raises(UnusableWeights):
        align([b" "], "  ")


@given(ANY | st.text(alphabet=" .?!,'ntmsver"))
def test_cleaned_text_is_what_transformers_makes_of_it(text: str) -> None:
    expected = text
    for pattern in (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're"):
        expected = expected.replace(pattern, pattern.strip())
    found, kept = cleaned(text)
    assert found == expected
    assert "".join(text[i] for i in kept) == expected
    assert np.all(np.diff(kept) > 0)
