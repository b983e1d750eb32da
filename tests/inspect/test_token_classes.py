"""Classes of tokens: examples, and an oracle that goes through a text character by character."""

from __future__ import annotations

import time
import unicodedata
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twdpo.inspect.token_classes import _NEGATED, CLASSES, FUNCTION_WORDS, classify

SPELLED = """
<s> </s> <bos> <eos> <pad> <unk> <mask> <sep> <cls> <start_of_turn> <end_of_turn> <<SYS>> <</SYS>>
[INST] [/INST] [TOOL_CALLS] [CLS] [SEP] [PAD] [MASK] [UNK]
"""
SPECIAL = set(SPELLED.split())
VISIBLE = """
the The it's don't Anna’s can't ca n't o'clock wouldn't've cat's unbelievable der naïve 4 3rd 2.5 GPT4
' ’ ` `` ``` ```` ~~~ ~~~~ . , ! _ - < > | <| |> 👍 👩‍👩‍👧 ½ 世界 हिंदी a `x` <|im_end|> </s> [INST] <</SYS>> <｜begin｜>
"""
UNSEEN = (
    " ",
    "  ",
    "\n",
    "\n\n",
    "\r",
    "\t",
    "\u0301",
    "\u200d",
    "\ufe0f",
    "\u00a0",
    "\x00",
    "\u202e",
    "\ud800",
    "\u2028",
)
PIECES = [*VISIBLE.split(), *UNSEEN, "\n```\n", "\n~~~py\n", "\n```py\n"]
texts = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=24).map("".join)


def names(text: str, *tokens: str) -> list[str]:
    """The classes of `tokens`, which follow one another in `text`."""
    spans, at = [], 0
    for token in tokens:
        start = text.index(token, at)
        at = start + len(token)
        spans.append((start, at))
    starts, ends = np.array(spans, dtype=np.int32).reshape(-1, 2).T
    return [CLASSES[code] for code in classify(text, starts, ends)]


def test_subwords_have_the_class_of_their_word() -> None:
    assert names("An unbelievable cat", "An", " unbeliev", "able", " cat") == ["function words"] + ["content words"] * 3
    assert names("Take the rest", " th", "e", " rest") == ["function words", "function words", "content words"]
    assert names("theme then", "the", "me", " then") == ["content words", "content words", "function words"]


@pytest.mark.parametrize(
    ("text", "tokens", "content"),
    [
        ("I don't", ["I", " don", "'t"], []),
        ("they’re", ["they", "’re"], []),
        ("wouldn't've", ["wouldn", "'t", "'ve"], []),
        ("Anna's", ["Anna", "'s"], ["Anna"]),
        ("o'clock", ["o", "'c", "lock"], ["o", "'c", "lock"]),
        ("Don", ["Don"], ["Don"]),
        ("the5 the_x thé", ["the", " the", " th"], ["the", " the", " th"]),
        ("the\u0301 e\u0301the", ["the", "the"], ["the", "the"]),
        ("die Katze", ["die", " Katze"], ["die", " Katze"]),
    ],
)
def test_contractions_and_words_that_only_begin_alike(text: str, tokens: list[str], content: list[str]) -> None:
    found = names(text, *tokens)
    assert set(found) <= {"content words", "function words"}
    assert [token for token, name in zip(tokens, found, strict=True) if name == "content words"] == content


def test_marks_digits_and_white_space() -> None:
    found = names("Hi, 42 👍🏽!\n\n ½ हिंदी", "Hi", ",", " 42", " 👍🏽", "!", "\n\n", " ½", " हि", "ंदी")
    assert found == [
        *("content words", "punctuation", "digits", "punctuation", "punctuation", "white space", "digits"),
        *("content words", "content words"),
    ]


def test_code_is_what_fences_and_backticks_hold() -> None:
    text = "Use `the x` or `y.\n\n```py\nfor i in the:\n```\nthe end `"
    found = names(
        text, "Use", " `", "the", " x", "`", " or", " `", "y", "\n\n", "```", "py", "for", "the", "```", "the", " `"
    )
    code = [name == "code" for name in found]
    # The backtick before y has none to close it in its paragraph.
    assert code == [
        False,
        True,
        True,
        True,
        True,
        False,
        False,
        False,
        False,
        True,
        True,
        True,
        True,
        True,
        False,
        False,
    ]
    assert names("a\n~~~\nb", "a", "~~~", "b") == ["function words", "code", "code"]
    assert names("``a`b`` c", "a`b", "c") == ["code", "content words"]


@pytest.mark.parametrize("spelled", sorted(SPECIAL | {"<|im_end|>", "<|endoftext|>", "<｜end▁of▁sentence｜>"}))
def test_special_tokens_spelled_in_a_text(spelled: str) -> None:
    assert names(f"so {spelled} it", "so", spelled[:2], spelled[2:], "it") == [
        *("function words", "special", "special", "function words")
    ]


def test_a_token_of_several_kinds_goes_by_most_of_its_characters() -> None:
    assert names('**The "(a', "**The", ' "', "(a") == ["function words", "punctuation", "function words"]
    assert names("a).\n b", ").\n") == ["punctuation"]


def test_empty_tokens_and_tokens_that_share_a_character() -> None:
    starts, ends = np.array([0, 0, 0, 1, 9], np.int32), np.array([0, 1, 1, 1, 12], np.int32)
    assert [CLASSES[code] for code in classify("世 ", starts, ends)] == [
        *("white space", "content words", "content words", "white space", "white space")
    ]
    assert classify("", starts[:0], ends[:0]).tolist() == []
    assert [CLASSES[code] for code in classify("", starts[:1], ends[:1])] == ["white space"]


@pytest.mark.parametrize(
    "text", ["x" * 300_000, "`" * 99_999, "'a" * 99_999, "<|" * 99_999, "\n```" * 50_000, " `\n" * 50_000]
)
def test_long_and_hostile_texts_take_no_time(text: str) -> None:
    starts = np.arange(0, len(text), 3, dtype=np.int32)
    began = time.perf_counter()
    assert len(classify(text, starts, starts + 3)) == len(starts)
    # Steps that grow with the square of the length would take minutes.
    assert time.perf_counter() - began < 10


@settings(max_examples=300, deadline=None)
@given(text=texts, data=st.data())
def test_every_token_has_the_class_that_reading_by_character_gives(text: str, data: st.DataObject) -> None:
    places = st.integers(0, len(text))
    spans = sorted(tuple(sorted(span)) for span in data.draw(st.lists(st.tuples(places, places), max_size=12)))
    spans += [(i, i + 1) for i in range(len(text))]
    starts, ends = np.array(spans, dtype=np.int32).reshape(-1, 2).T
    codes = classify(text, starts, ends)
    assert codes.dtype == np.uint8
    kinds = characters(text)
    assert [CLASSES[code] for code in codes] == [token_class(kinds[start:end]) for start, end in spans]


def token_class(kinds: list[str]) -> str:
    counts = Counter(kind for kind in kinds if kind != "white space")
    return min(counts, key=lambda kind: (-counts[kind], CLASSES.index(kind)), default="white space")


def characters(text: str) -> list[str]:
    kinds: list[str] = []
    marks: list[bool] = []
    for character in text:
        category = unicodedata.category(character)
        marks.append(category in ("Mn", "Mc", "Me", "Cf"))
        if marks[-1]:
            kinds.append(kinds[-1] if kinds and kinds[-1] != "white space" else "punctuation")
        elif character.isspace() or category.startswith("Z"):
            kinds.append("white space")
        elif category.startswith("L"):
            kinds.append("content words")
        else:
            kinds.append("digits" if category.startswith("N") else "punctuation")
    spaces = [kind == "white space" for kind in kinds]
    for i in range(1, len(text) - 1):
        if text[i] in "'’" and kinds[i - 1] == kinds[i + 1] == "content words":
            kinds[i] = "content words"
    for start, end in words(text):
        beside = marks[max(0, start - 1) : end + 1]
        if not any(beside):
            for i in range(start + content_length(text[start:end].lower().replace("’", "'")), end):
                kinds[i] = "function words"
    for i in code(text):
        kinds[i] = "code" if not spaces[i] else kinds[i]
    at = 0
    while at < len(text):
        end = next((end for end in range(at + 1, at + 70) if is_special(text[at:end])), None)
        if end:
            kinds[at:end] = ["special"] * (end - at)
        at = end or at + 1
    return kinds


def words(text: str) -> list[tuple[int, int]]:
    """Runs of word characters, with single apostrophes within, that are letters from A to Z alone."""
    found, at = [], 0
    while at < len(text):
        end = at
        while end < len(text) and (
            is_word(text[end])
            or (
                text[end] in "'’"
                and end > at
                and is_word(text[end - 1])
                and end + 1 < len(text)
                and is_word(text[end + 1])
            )
        ):
            end += 1
        if end > at and all(c in "'’" or (c.isascii() and c.isalpha()) for c in text[at:end]):
            found.append((at, end))
        at = max(end, at + 1)
    return found


def is_word(character: str) -> bool:
    return character.isalnum() or character == "_"


def content_length(word: str) -> int:
    if word in FUNCTION_WORDS or (word.endswith("n't") and word[:-2] in _NEGATED):
        return 0
    for suffix in ("'s", "'re", "'ve", "'ll", "'d", "'m"):
        if word.endswith(suffix):
            return content_length(word[: -len(suffix)])
    return len(word)


def is_special(text: str) -> bool:
    inner = text[2:-2]
    bars = text[:2] in ("<|", "<｜") and text[-2:] in ("|>", "｜>") and 1 <= len(inner) <= 64
    return text in SPECIAL or (bars and not any(c.isspace() or c in "|｜<>" for c in inner))


def code(text: str) -> list[int]:
    """The characters that are code, by Markdown's rules, line by line and then run by run."""
    covered: list[int] = []
    fence, opened, outside, at = "", 0, 0, 0
    for line in text.split("\n"):
        body = line.lstrip(" \t")
        run = body[: len(body) - len(body.lstrip(body[:1]))] if body[:1] in ("`", "~") else ""
        rest = body[len(run) :]
        if not fence and len(run) >= 3 and not (run[0] == "`" and "`" in rest):
            fence, opened = run, at
            covered += inline(text, outside, at)
        elif fence and run[:1] == fence[0] and len(run) >= len(fence) and not rest.strip():
            fence, outside = "", at + len(line)
            covered += range(opened, outside)
        at += len(line) + 1
    return covered + (list(range(opened, len(text))) if fence else inline(text, outside, len(text)))


def inline(text: str, start: int, end: int) -> list[int]:
    runs, paragraph, at = [], 0, start
    while at < end:
        if text[at] == "`":
            stop = at
            while stop < end and text[stop] == "`":
                stop += 1
            runs.append((at, stop, paragraph))
            at = stop
        else:
            if text[at] == "\n":
                line = text[at + 1 : end].split("\n")
                paragraph += len(line) > 1 and not line[0].strip(" \t\r")
            at += 1
    covered: list[int] = []
    while runs:
        first, stop, where = runs.pop(0)
        for i, (other, other_stop, other_where) in enumerate(runs):
            if other_where == where and other_stop - other == stop - first:
                covered += range(first, other_stop)
                runs = runs[i + 1 :]
                break
    return covered
