"""An answer cut into pieces that are shaded alike: its tokens, put together where one cannot be shown without another.

Not for: how a piece is shaded (`terminal.py`, `notebook.py`).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twdpo.weights_cache.picture import visible

_JOINERS = {"\u200c", "\u200d"}
#: What stands for a line feed where a token is one, so that its weight can be seen.
LINE_FEED = "↵"


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """Some characters of an answer as they are, the tokens `[first, last)` on them, and the heaviest one's weight.

    Where no token covers the characters `first` is `last` and the weight 0.
    """

    text: str
    first: int
    last: int
    weight: float


def segments(
    answer: str, weights: NDArray[np.float32], starts: NDArray[np.int32], ends: NDArray[np.int32]
) -> Iterator[Segment]:
    """The pieces of `answer`, which together are all of it, with weights float32[n] at the characters int32[n].

    Tokens that share a character are one piece, and so are those between a character and the marks that stand on it.
    """
    at, i, n = 0, 0, len(weights)
    places, stops, values = starts.tolist(), ends.tolist(), weights.tolist()
    while i < n:
        first, start, end, weight = i, max(places[i], at), stops[i], values[i]
        i += 1
        while True:
            end = _cluster_end(answer, end)
            if i == n or places[i] >= end:
                break
            end, weight = max(end, stops[i]), max(weight, values[i])
            i += 1
        if start > at:
            yield Segment(text=answer[at:start], first=first, last=first, weight=0.0)
        if end > start:
            yield Segment(text=answer[start:end], first=first, last=i, weight=weight)
        at = max(at, end)
    if at < len(answer):
        yield Segment(text=answer[at:], first=n, last=n, weight=0.0)


def ranks(weights: NDArray[np.float32]) -> NDArray[np.int64]:
    """The rank of each of weights float32[n]: 1 for the heaviest, of equal ones the first first."""
    found = np.empty(len(weights), dtype=np.int64)
    found[np.argsort(-weights, kind="stable")] = np.arange(1, len(weights) + 1)
    return found


def token_name(text: str) -> str:
    """A token as it is listed: in quotes, on one line, and harmless."""
    return f"'{visible(text).replace(chr(10), LINE_FEED)}'"


def _cluster_end(answer: str, end: int) -> int:
    """`end`, or where the marks end that stand on the character before it."""
    while 0 < end < len(answer) and _joins(answer[end - 1], answer[end]):
        end += 1
    return end


def _joins(before: str, character: str) -> bool:
    if before == "\n":
        return False
    is_mark = unicodedata.category(character) in {"Mn", "Me", "Mc"} or character in _JOINERS
    is_skin_tone = "\U0001f3fb" <= character <= "\U0001f3ff"
    return is_mark or is_skin_tone or before == "\u200d"
