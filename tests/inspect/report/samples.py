"""Pairs for report files; what a pair holds depends on its number alone."""

from __future__ import annotations

import hashlib
import re

import numpy as np

from tests.inspect.report.encode import Item, Side
from twdpo.weights_cache import round_mantissa

LAYERS = (0, 3, 29)
OTHER_LAYERS = (4, 12)
WORDS = [
    "the",
    "quick",
    "brown",
    "fox,",
    "jumps",
    "over",
    "世界",
    "a",
    "lazy",
    "👩\u200d👩\u200d👧",
    "dog",
    "and",
    "مرحبا",
    "then",
    "café…",
    "runs",
    "home",
    "again",
]


def rounded(weights: np.ndarray) -> list[float]:
    """Mean 1, and as few bits as a cache stores."""
    values: list[float] = round_mantissa(weights / weights.mean()).tolist()
    return values


def make_side(rng: np.random.Generator, text: str, *, other: bool = False, same: bool = False) -> Side:
    """Random weights on tokens of a few characters each; the other cache's tokens are whole words, or the same ones."""
    ends = np.unique(np.append(rng.integers(1, len(text) + 1, max(1, len(text) // 4)), len(text))).tolist()
    starts = [0, *ends[:-1]]
    theirs = None
    if other:
        words = [match.span() for match in re.finditer(r"\s*\S+", text)]
        spans = list(zip(starts, ends, strict=True)) if same else words
        weights = {layer: rounded(rng.lognormal(0, 1, len(spans))) for layer in OTHER_LAYERS}
        theirs = Side(text=text, starts=[a for a, _ in spans], ends=[b for _, b in spans], weights=weights)
    weights = {layer: rounded(rng.lognormal(0, 1.5, len(starts))) for layer in LAYERS}
    return Side(text=text, starts=starts, ends=ends, weights=weights, other=theirs)


def make_item(number: int, *, words: int = 40, other: bool = False) -> Item:
    """Pair `number`; every fifth lacks the other cache's weights, every seventh has the same tokens in both."""
    rng = np.random.default_rng(number)
    question = f"Question {number}: {' '.join(rng.choice(WORDS, 6))}?"
    sides = [
        make_side(
            rng,
            f"{name} answer {number}.\n{' '.join(rng.choice(WORDS, words))}",
            other=other and number % 5 != 4,
            same=number % 7 == 0,
        )
        for name in ("First", "Second")
    ]
    p = tuple(np.round(rng.random(2), 3).tolist())
    return Item(
        prompt=[("system", "Answer."), ("user", question)],
        chosen=sides[0],
        rejected=sides[1],
        hash=hashlib.md5(str(number).encode()).hexdigest(),
        number=number,
        title=question,
        p=(None, None) if number % 11 == 10 else (p[0], p[1]),
        agreement=(None, None) if number % 11 == 10 else (float(rng.random()), float(rng.random())),
        effective=(float(rng.random()), float(rng.random())),
        truncated=number % 6 == 2,
        overlap=float(rng.random()) if other and number % 5 != 4 else None,
    )


def make_items(count: int, *, words: int = 40, other: bool = False) -> list[Item]:
    """Pairs 0 to `count` − 1."""
    return [make_item(number, words=words, other=other) for number in range(count)]
