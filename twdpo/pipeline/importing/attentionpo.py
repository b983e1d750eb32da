"""The layout of AttentionPO's published data sets: the judge's token ids, and weights that sum to 1, layer by layer.

`{side}_tokens` holds the ids as they stood in the judge's prompt, `{side}_weights_S` the mean of both orders without
sink fix, S being a layer or `attention_rollout`. How the ids came about decides how they are read: the answers were
stripped; a prompt of 2048 tokens or more had its answers cut to 768 tokens, which were decoded and encoded again; for
some judges up to three tokens before the end marker were dropped. Not for: other layouts (`tis.py`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from twdpo.errors import DataError, UsageError
from twdpo.pipeline.importing.aligning import Ints, align, cleaned
from twdpo.pipeline.importing.layout import Layout, PairWeights, UnusableWeights, mean_one, numbers, whole_numbers
from twdpo.pipeline.importing.spelling import Spelling
from twdpo.preferences import Pair
from twdpo.preferences.rows import Row
from twdpo.weights_cache import Recipe, SideWeights

#: Published data set → its judge, which was the policy too.
JUDGES: Mapping[str, str] = MappingProxyType(
    {
        "AttentionPO/llama-3-8b-dataset": "princeton-nlp/Llama-3-Base-8B-SFT",
        "AttentionPO/llama-3-8b-inst-dataset": "meta-llama/Meta-Llama-3-8B-Instruct",
    }
)
#: Attention multiplied through all layers, in place of a layer's number; a cache keeps it as layer 0.
ROLLOUT = "attention_rollout"

#: The published judging ran in bfloat16, where the sum that attention is divided by is off by up to 2^-8, and so is
#: each quotient; weights that sum to anything else were made in another way.
SUM_TOLERANCE = 0.01
#: The most tokens before the end marker that the published code drops; where more are missing, the answer was cut.
_DROPPED = 3
#: Characters behind the last token that are looked at to tell which of the two it is.
_TAIL = 256

_SIDES = ("chosen", "rejected")
_WEIGHTS = re.compile(rf"(chosen|rejected)_weights_(\d+|{ROLLOUT})")


def is_attentionpo(columns: Sequence[str]) -> bool:
    """Whether these columns are in this layout."""
    return {"chosen_tokens", "rejected_tokens"} <= set(columns) and any(map(_WEIGHTS.fullmatch, columns))


class AttentionPO(Layout):
    """Rows of this layout; `tokenizer` loads the judge's once the columns are known to be right.

    Raises UsageError for layers that are not there, DataError where a column is missing, and what `tokenizer` raises.
    """

    name = "attentionpo"

    def __init__(
        self, columns: Sequence[str], *, tokenizer: Callable[[], Any], judge_model: str | None, layers: str | None
    ) -> None:
        sources = _choose(columns, layers)
        rollout = sources == (ROLLOUT,)
        self._sources = {0: ROLLOUT} if rollout else {int(source): source for source in sources}
        self.columns = (
            *(f"{side}_tokens" for side in _SIDES),
            *(f"{side}_weights_{source}" for side in _SIDES for source in sources),
        )
        if missing := [name for name in self.columns if name not in columns]:
            raise DataError(
                f"there is no column `{missing[0]}`, which belongs to the others; is the data set complete?"
            )
        self._tokenizer = tokenizer()
        self._spelling = Spelling(self._tokenizer)
        self.recipe = Recipe(
            source=f"import:attentionpo:{ROLLOUT}" if rollout else "import:attentionpo",
            judge_model=judge_model or "",
            judge_revision=None,
            dtype="unknown",
            judge_template="",
            chat_template_hash=None,
            max_length=2048,
            layers=tuple(self._sources),
        )

    def weights(self, row: Row, pair: Pair) -> PairWeights:
        """The weights of `pair`, which `row` holds. Raises UnusableWeights."""
        chosen, chosen_cut = self._side(row, "chosen", pair.chosen)
        rejected, rejected_cut = self._side(row, "rejected", pair.rejected)
        return PairWeights(chosen=chosen, rejected=rejected, truncated=chosen_cut or rejected_cut)

    def _side(self, row: Row, side: str, answer: str) -> tuple[SideWeights, bool]:
        """The weights of one answer, and whether the judge saw its beginning only."""
        ids = whole_numbers(row, f"{side}_tokens")
        weights = {}
        for layer, source in self._sources.items():
            name = f"{side}_weights_{source}"
            values = numbers(row, name)
            if len(values) != len(ids):
                raise UnusableWeights(f"`{name}` has another length than `{side}_tokens`")
            if np.any(values < 0):
                raise UnusableWeights(f"`{name}` holds a negative number")
            if abs(values.sum() - 1) > SUM_TOLERANCE:
                raise UnusableWeights(f"`{name}` does not sum to 1")
            weights[layer] = mean_one(values, name)
        starts, ends, cut = self._place(ids, side, answer)
        return SideWeights(starts=starts, ends=ends, weights=weights), cut

    def _place(self, ids: list[int], side: str, answer: str) -> tuple[Ints, Ints, bool]:
        """The characters of `answer` that each token covers, and whether its end was cut off."""
        pieces = self._spelling.spell(ids)
        seen = self._spelling.seen(answer)
        try:
            starts, ends = align(pieces, seen)
        except UnusableWeights as problem:
            # What was cut to length had been decoded, and the published judges' tokenizers clean up what they decode.
            text, kept = cleaned(seen)
            try:
                starts, ends = align(pieces, text)
            except UnusableWeights:
                reason = f"`{side}_tokens` do not fit the {side} answer: {problem}"
                raise UnusableWeights(f"{reason} (are they of another tokenizer? see --tokenizer)") from None
            return kept[starts], kept[ends - 1] + 1, True
        tail = answer[int(ends[-1]) :].rstrip()[:_TAIL]
        left = self._tokenizer(tail, add_special_tokens=False)["input_ids"] if len(tail) > _DROPPED else ()
        return starts, ends, len(left) > _DROPPED


def _choose(columns: Sequence[str], layers: str | None) -> tuple[str, ...]:
    """The attention sources to take: those asked for, or every layer, or rollout where there is no layer."""
    matches = [match for name in columns if (match := _WEIGHTS.fullmatch(name))]
    found = {match[2] for match in matches}
    numbered = tuple(sorted(found - {ROLLOUT}, key=int))
    shown = ", ".join((*numbered, *sorted(found & {ROLLOUT})))
    if not found:
        raise DataError("there is no column such as `chosen_weights_31`; is --format attentionpo right?")
    if layers is None:
        return numbered or (ROLLOUT,)
    wanted = tuple(dict.fromkeys(part.strip() for part in layers.split(",")))
    if not set(wanted) <= found:
        raise UsageError(f"--layers {layers}: the data set has {shown}")
    if ROLLOUT in wanted and len(wanted) > 1:
        raise UsageError(f"--layers {layers}: {ROLLOUT} is no layer and goes into a cache of its own")
    return wanted
