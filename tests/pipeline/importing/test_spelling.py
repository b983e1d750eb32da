"""Token ids as bytes: byte-level, sentencepiece, and vocabularies that say nothing of bytes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fixtures.tiny_models import tiny_tokenizer
from tests.pipeline.importing.published import ANSWERS, letters_tokenizer, sentencepiece_tokenizer
from twdpo.pipeline.importing.aligning import align
from twdpo.pipeline.importing.layout import UnusableWeights
from twdpo.pipeline.importing.spelling import Spelling

BYTE_LEVEL, SENTENCEPIECE = tiny_tokenizer(), sentencepiece_tokenizer()
SPELLINGS = {"bytes": Spelling(BYTE_LEVEL), "sentencepiece": Spelling(SENTENCEPIECE)}


def encode(tokenizer: Any, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    found = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
    return found.ids, found.offsets


@given(st.text() | st.sampled_from(ANSWERS))
@settings(deadline=None)
def test_bytes_of_a_byte_level_vocabulary(text: str) -> None:
    ids, expected = encode(BYTE_LEVEL, text)
    spelling = SPELLINGS["bytes"]
    assert b"".join(spelling.spell(ids)) == text.encode()
    if ids and text == text.strip():
        starts, ends = align(spelling.spell(ids), spelling.seen(text))
        assert list(zip(starts.tolist(), ends.tolist(), strict=True)) == expected


@given(st.text() | st.sampled_from(ANSWERS))
@settings(deadline=None)
def test_bytes_of_a_sentencepiece_vocabulary(text: str) -> None:
    ids, _ = encode(SENTENCEPIECE, text)
    spelling = SPELLINGS["sentencepiece"]
    pieces = spelling.spell(ids)
    # What is put before the text is all that stands there more.
    assert b"".join(pieces) == (b" " if text else b"") + spelling.seen(text).encode()
    assert all(
        len(piece) == 1
        for piece, token in zip(pieces, SENTENCEPIECE.convert_ids_to_tokens(ids), strict=True)
        if token.startswith("<0x")
    )


def test_added_tokens_are_text_as_they_stand() -> None:
    for tokenizer, special in ((BYTE_LEVEL, "<|im_end|>"), (SENTENCEPIECE, "<s>")):
        number = tokenizer.convert_tokens_to_ids(special)
        assert Spelling(tokenizer).spell([number]) == [special.encode()]


@pytest.mark.parametrize("number", [-1, 399_999, 1 << 32, 1 << 70])
@pytest.mark.parametrize("kind", SPELLINGS)
def test_a_number_that_is_no_token(kind: str, number: int) -> None:
    with pytest.raises(UnusableWeights, match=r"not in the tokenizer's vocabulary \(see --tokenizer\)"):
        SPELLINGS[kind].spell([5, number])


def test_tokens_that_are_decoded_one_by_one_count_where_they_make_up_the_whole() -> None:
    from tokenizers import decoders

    text = "é is 四, no?"
    joined, spaced = letters_tokenizer(decoders.Fuse()), letters_tokenizer(decoders.WordPiece())
    ids, _ = encode(joined, text)
    assert Spelling(joined).spell(ids) == [letter.encode() for letter in text]
    with pytest.raises(UnusableWeights, match="does not tell which text its tokens stand for"):
        Spelling(spaced).spell(ids)


def test_a_tokenizer_without_a_backend() -> None:
    """As slow tokenizers are."""
    words = ["no", "yes", " so"]

    class Slow(SimpleNamespace):
        def __len__(self) -> int:
            return len(words)

    def decode(ids: list[int], **_: object) -> str:
        return "".join(words[i] for i in ids)

    slow = Slow(decode=decode, convert_ids_to_tokens=words.__getitem__)
    assert Spelling(slow).spell([1, 2]) == [b"yes", b" so"]
    with pytest.raises(UnusableWeights, match="vocabulary"):
        Spelling(slow).spell([3])
