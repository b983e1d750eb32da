"""What kind of text each judged token is: word, number, mark, code, from the answer's text and offsets alone.

Not for: what the weights of each kind are (`figures.py`).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import numpy.typing as npt

#: The classes, in the order of their codes. The first wins where a token has as many characters of two of them.
CLASSES = ("content words", "function words", "digits", "punctuation", "code", "special", "white space")
_CONTENT, _FUNCTION, _DIGITS, _PUNCTUATION, _CODE, _SPECIAL, _SPACE = range(len(CLASSES))
#: A character that belongs to the one before it: accents, joiners, variation selectors.
_EXTENDS = 255

_ENGLISH = """
a an the this that these those
i me my mine myself we us our ours ourselves you your yours yourself yourselves he him his himself she her hers
herself it its itself they them their theirs themselves one oneself who whom whose which what whoever whatever
whichever someone somebody something anyone anybody anything everyone everybody everything nobody nothing none
each every either neither both all any some no such other another much many more most few less least several
about above across after against along alongside amid among amongst around as at before behind below beneath
beside besides between beyond by despite down during except for from in inside into like near of off on onto out
outside over past per since than through throughout till to toward towards under underneath unlike until up upon
via with within without
and but or nor so yet if because although though unless while whereas whether when whenever where wherever why how
then there here not
am is are was were be been being have has had having do does did doing will would shall should can could may might
must ought cannot twas
"""
#: English words that build sentences rather than name things.
FUNCTION_WORDS = frozenset(_ENGLISH.split())
#: What comes after the apostrophe of a contraction, and what stands before that of "n't".
_SUFFIXES = frozenset(["s", "re", "ve", "ll", "d", "m"])
_BEFORE_NT = """
don doesn didn isn aren wasn weren hasn haven hadn won wouldn shan shouldn can couldn mayn mightn mustn needn oughtn
daren ain
"""
_NEGATED = frozenset(_BEFORE_NT.split())

#: A word that may be one of these: letters from A to Z with apostrophes between them, and no other word character
#: next to them. Possessive, so that a long word costs one pass.
_WORD = re.compile(r"(?<!\w)(?<!\w['’])[A-Za-z]++(?:['’][A-Za-z]++)*+(?!['’]?\w)")
_SPECIALS = re.compile(
    r"<[|｜][^\s|｜<>]{1,64}[|｜]>|</?s>|<(?:bos|eos|pad|unk|mask|sep|cls)>|<(?:start|end)_of_turn>|<</?SYS>>"
    r"|\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_RESULTS)\]|\[(?:TOOL_CALLS|CLS|SEP|PAD|MASK|UNK)\]"
)
_FENCE = re.compile(r"^[ \t]*(`{3,}|~{3,})([^\n]*)", re.MULTILINE)
#: A run of backticks, or the end of a paragraph, over which inline code does not reach.
_TICKS_OR_BREAK = re.compile(r"`+|\n[ \t\r]*+\n")

Codes = npt.NDArray[np.uint8]
Span = tuple[int, int]


def classify(text: str, starts: npt.NDArray[np.int32], ends: npt.NDArray[np.int32]) -> Codes:
    """The class of every token of an answer, uint8[n]: an index into `CLASSES`.

    text: the answer. starts, ends: int32[n], the characters of `text` that each token covers; `ends` one past the last.

    Every character has a class first. What spells a special token is special. What lies in a fenced block or between
    backticks is code, fences and backticks included; a block that is never closed goes on to the end. Of the rest,
    letters are words, all number characters digits, and what remains punctuation: also symbols, emoji and control
    characters. Accents and joiners go with the character before them, an apostrophe between letters with its word.
    Function words are English (articles, pronouns, prepositions, conjunctions, auxiliaries, contractions: both parts
    of "don't", the "'s" of "Anna's"); words of every other language count as content words, all of them.

    A token has the class of most of its characters that are no white space, which is that of the word that it is
    part of; where two have as many, the one that comes first in `CLASSES`. A token that is nothing but white space,
    wherever it lies, or that covers no character is white space.
    """
    counts = np.zeros((_SPACE, len(text) + 1), dtype=np.int32)
    np.cumsum(_characters(text) == np.arange(_SPACE, dtype=np.uint8)[:, None], axis=1, out=counts[:, 1:])
    held = counts[:, np.clip(ends, 0, len(text))] - counts[:, np.clip(starts, 0, len(text))]
    return np.where(held.any(axis=0), held.argmax(axis=0), _SPACE).astype(np.uint8)


def _characters(text: str) -> Codes:
    """The class of every character."""
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    different, places = np.unique(points, return_inverse=True)
    kinds = np.array([_kind(point) for point in different.tolist()], dtype=np.uint8)[places]
    extends = kinds == _EXTENDS
    if extends.any():
        before = np.maximum.accumulate(np.where(extends, 0, np.arange(len(kinds))))
        # At the beginning of a text or after a space there is nothing to go with.
        kinds = np.where(extends & np.isin(kinds[before], (_EXTENDS, _SPACE)), _PUNCTUATION, kinds[before])
    apostrophes = np.flatnonzero((points[1:-1] == 0x27) | (points[1:-1] == 0x2019)) + 1
    inside = apostrophes[(kinds[apostrophes - 1] == _CONTENT) & (kinds[apostrophes + 1] == _CONTENT)]
    kinds[inside] = _CONTENT
    for start, part, end in _function_words(text):
        # Next to an accent or a joiner it is a piece of another word.
        if not extends[max(0, start - 1) : end + 1].any():
            kinds[part:end] = _FUNCTION
    solid = kinds != _SPACE
    for code, spans in ((_CODE, _code(text)), (_SPECIAL, (match.span() for match in _SPECIALS.finditer(text)))):
        for start, end in spans:
            kinds[start:end][solid[start:end]] = code
    return kinds


@lru_cache(maxsize=1 << 14)
def _kind(point: int) -> int:
    """The class of a character by itself, where letters are content words; or `_EXTENDS`."""
    character = chr(point)
    category = unicodedata.category(character)
    if character.isspace() or category[0] == "Z":
        return _SPACE
    if category[0] == "M" or category == "Cf":
        return _EXTENDS
    return {"L": _CONTENT, "N": _DIGITS}.get(category[0], _PUNCTUATION)


def _function_words(text: str) -> Iterator[tuple[int, int, int]]:
    """Where each word begins that is one or ends in a contraction, where that part of it begins, and where it ends."""
    for match in _WORD.finditer(text):
        start, end = match.span()
        word = match[0].lower()
        if word in FUNCTION_WORDS:
            yield start, start, end
        elif "'" in word or "’" in word:
            yield start, start + _content_part(word.replace("’", "'")), end


@lru_cache(maxsize=1 << 12)
def _content_part(word: str) -> int:
    """How many characters of a word with apostrophes are a content word; the rest is a contraction."""
    head, apostrophe, tail = word.rpartition("'")
    if not apostrophe:
        return 0 if word in FUNCTION_WORDS else len(word)
    if tail == "t":
        return 0 if head in _NEGATED else len(word)
    return _content_part(head) if tail in _SUFFIXES else len(word)


def _code(text: str) -> Iterator[Span]:
    """The spans of code, in order: fenced blocks and what is between backticks."""
    if "`" not in text and "~~~" not in text:
        return
    at, opened, fence = 0, 0, ""
    for match in _FENCE.finditer(text):
        marks, rest = match[1], match[2]
        if not fence:
            # Backticks in the same line make it inline code.
            if marks[0] != "`" or "`" not in rest:
                opened, fence = match.start(), marks
                yield from _inline_code(text, at, opened)
        elif marks.startswith(fence) and not rest.strip():
            at, fence = match.end(), ""
            yield opened, at
    if fence:
        yield opened, len(text)
    else:
        yield from _inline_code(text, at, len(text))


def _inline_code(text: str, start: int, end: int) -> Iterator[Span]:
    """What is between two runs of as many backticks in one paragraph of text[start:end]."""
    runs: list[Span] = []
    for match in _TICKS_OR_BREAK.finditer(text, start, end):
        if match[0][0] == "`":
            runs.append(match.span())
        else:
            yield from _closed(runs)
            runs = []
    yield from _closed(runs)


def _closed(runs: list[Span]) -> Iterator[Span]:
    closing: list[int] = []
    later: dict[int, int] = {}
    for index in range(len(runs) - 1, -1, -1):
        length = runs[index][1] - runs[index][0]
        closing.append(later.get(length, -1))
        later[length] = index
    closing.reverse()
    index = 0
    while index < len(runs):
        if closing[index] > 0:
            yield runs[index][0], runs[closing[index]][1]
            index = closing[index]
        index += 1
