"""Pairs with synthetic weights, in caches with and without their texts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tests.weights_cache.samples import RECIPE
from twdpo.inspect.examples import Example
from twdpo.preferences import Message, Pair
from twdpo.weights_cache import CacheWriter, SideWeights, WeightRow

#: Text that would do harm where it is not taken as text.
HOSTILE = (
    "<script>alert(1)</script> <img src=x onerror=alert(1)> ' onmouseover='x \" &lt;b&gt; &amp; {{7*7}} ${x}\n"
    "\x1b[31mred\x1b]0;title\x07 \u202eright to left\u202c \u2066iso\u2069 \x00 \u200b \x9b31m [bold]markup[/bold] "
    "</div>\r\n"
    "tail \ufeff \U000e0041"
)


def tokens_of(text: str, seed: int = 0, layers: Sequence[int] = RECIPE.layers) -> SideWeights:
    """Tokens of 1 to 4 characters over all of `text`, with random weights of mean 1."""
    rng = np.random.default_rng(seed)
    ends = np.cumsum(rng.integers(1, 5, len(text) + 1))
    ends = np.append(ends[ends < len(text)], max(len(text), 1)).astype(np.int32)
    starts = np.concatenate([[0], ends[:-1]]).astype(np.int32)
    raw = {layer: rng.lognormal(0, 1.5, len(ends)) for layer in layers}
    return SideWeights(
        starts=starts, ends=ends, weights={layer: (w / w.mean()).astype(np.float32) for layer, w in raw.items()}
    )


def make_pair(chosen: str, rejected: str, question: str = "Which?") -> Pair:
    return Pair(prompt=(Message(role="user", content=question),), chosen=chosen, rejected=rejected)


def make_example(pair: Pair, *, cr: float = 0.8, rc: float = 0.3, with_text: bool = True) -> Example:
    row = WeightRow(
        example_hash=pair.example_hash,
        chosen=tokens_of(pair.chosen, 1),
        rejected=tokens_of(pair.rejected, 2),
        judge_prob_cr=cr,
        judge_prob_rc=rc,
        order_agreement_chosen=0.7,
        order_agreement_rejected=0.9,
    )
    return Example(row=row, pair=pair if with_text else None, number=4)


def write_cache(
    folder: Path, pairs: Sequence[Pair], *, text: bool = True, source: dict[str, str] | None = None
) -> Path:
    with CacheWriter.open(folder, RECIPE, dataset=source, include_text=text) as writer:
        for number, pair in enumerate(pairs):
            writer.add(
                WeightRow(
                    example_hash=pair.example_hash,
                    chosen=tokens_of(pair.chosen, number),
                    rejected=tokens_of(pair.rejected, number + 1),
                    judge_prob_cr=0.8,
                    judge_prob_rc=0.3,
                    order_agreement_chosen=0.5,
                    order_agreement_rejected=0.6,
                    truncated=number % 2 == 1,
                    prompt=tuple((m.role, m.content) for m in pair.prompt) if text else None,
                    chosen_text=pair.chosen if text else None,
                    rejected_text=pair.rejected if text else None,
                )
            )
    return folder
