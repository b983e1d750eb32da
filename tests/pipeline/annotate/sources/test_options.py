"""Options of sources as text: types, defaults, and one line for what is wrong."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from twdpo.errors import UsageError
from twdpo.pipeline.annotate.sources.base import NoOptions
from twdpo.pipeline.annotate.sources.options import parse_options


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    gamma: float = 0.5
    seed: int = 3
    words: str = "none"
    loud: bool = False

    def __post_init__(self) -> None:
        if self.gamma > 1:
            raise ValueError(f"gamma must be at most 1, and is {self.gamma:g}")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, Options()),
        (" ", Options()),
        ("gamma=0.25", Options(gamma=0.25)),
        ("gamma = 1 , seed=7", Options(gamma=1.0, seed=7)),
        ("words=Be kind, be brief, and lie.,loud=yes", Options(words="Be kind, be brief, and lie.", loud=True)),
        ("words=a=b,seed=-1", Options(words="a=b", seed=-1)),
    ],
)
def test_text_becomes_options(text: str | None, expected: Options) -> None:
    assert parse_options(text, Options, "mine") == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gama=1", "--source mine has no option 'gama'; did you mean gamma?"),
        ("x=1", "has no option 'x'; it has gamma, seed, words, loud"),
        ("gamma", "'gamma' is not understood; write for example name=1,other=2"),
        ("=3", "'=3' is not understood"),
        ("gamma=much", "gamma must be a number, not 'much'"),
        ("gamma=nan", "gamma must be a number, not 'nan'"),
        ("seed=1.5", "seed must be a whole number, not '1.5'"),
        ("loud=perhaps", "loud must be true or false, not 'perhaps'"),
        ("seed=1,seed=2", "seed is given twice"),
        ("gamma=2", "gamma must be at most 1, and is 2"),
    ],
)
def test_a_mistake_is_one_line(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_options(text, Options, "mine")
    assert message in str(caught.value)
    assert str(caught.value).startswith("--source-options")
    assert "\n" not in str(caught.value)


def test_a_source_without_options_says_so() -> None:
    with pytest.raises(UsageError, match="--source mine has no option 'seed'; it has none"):
        parse_options("seed=1", NoOptions, "mine")
