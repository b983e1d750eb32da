"""TIS-DPO's layout: `chosen_weight` and `rejected_weight`, one number for each token of an answer tokenized alone.

There are no token ids; the tokenizer must be known, and only the number of tokens can be checked. Files differ by one:
some have a weight more, for the end of turn, which is dropped, some lack that of the last token, which then counts as
not judged. Not for: other layouts (`attentionpo.py`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twdpo.errors import DataError, ModelError
from twdpo.pipeline.importing.layout import Layout, PairWeights, UnusableWeights, mean_one, numbers
from twdpo.preferences import Pair
from twdpo.preferences.rows import Row
from twdpo.weights_cache import Recipe, SideWeights

#: The published transform of raw log-ratios: clamped to ±1.5, then 1 + 0.2 · ratio, which is 0.7 to 1.3.
_CLAMP, _SLOPE = 1.5, 0.2

Floats = NDArray[np.float64]
Offsets = NDArray[np.int32]


def is_tis(columns: Sequence[str]) -> bool:
    """Whether these columns are in this layout."""
    return {"chosen_weight", "rejected_weight"} <= set(columns)


def from_log_ratios(ratios: Floats, side: str) -> Floats:
    """TIS-DPO's weights of one side, float64[n], 0.7 to 1.3, from its raw log-ratios, float64[n].

    A ratio is log π⁻ − log π⁺ of a model that was trained on the swapped pairs and one on the pairs, so that it is
    negated for chosen answers.
    """
    towards = -ratios if side == "chosen" else ratios
    return 1.0 + _SLOPE * np.clip(towards, -_CLAMP, _CLAMP)


class TisDpo(Layout):
    """Rows of this layout; `tokenizer` loads the one whose tokens were weighted.

    Raises DataError where a column is missing, ModelError where the tokenizer gives no offsets, and what `tokenizer`
    raises.
    """

    name = "tis"
    columns = ("chosen_weight", "rejected_weight")
    has_sink = False

    def __init__(
        self, columns: Sequence[str], *, tokenizer: Callable[[], Any], judge_model: str | None, log_ratios: bool
    ) -> None:
        if missing := [name for name in self.columns if name not in columns]:
            raise DataError(f"there is no column `{missing[0]}`; is --format tis right?")
        self._log_ratios = log_ratios
        self._backend = _plain(tokenizer())
        self.recipe = Recipe(
            source="import:tis:log_ratios" if log_ratios else "import:tis",
            judge_model=judge_model or "",
            judge_revision=None,
            dtype="unknown",
            judge_template="",
            chat_template_hash=None,
            max_length=0,
            answer_tokens=0,
            template_tokens=0,
            orders=(),
            layers=(0,),
        )

    def weights(self, row: Row, pair: Pair) -> PairWeights:
        """The weights of `pair`, which `row` holds. Raises UnusableWeights."""
        values = {side: numbers(row, f"{side}_weight") for side in ("chosen", "rejected")}
        tokens = {"chosen": self._offsets(pair.chosen), "rejected": self._offsets(pair.rejected)}
        # A file counts in one way; other differences come from another tokenizer, or from answers that were cut.
        surplus = {len(values[side]) - len(tokens[side]) for side in values}
        if len(surplus) > 1 or not surplus <= {-1, 0, 1}:
            raise UnusableWeights(
                "there are not as many weights as tokens: the tokenizer is another (see --tokenizer), "
                "or the answers were cut"
            )
        return PairWeights(
            chosen=self._side("chosen", values["chosen"], tokens["chosen"]),
            rejected=self._side("rejected", values["rejected"], tokens["rejected"]),
        )

    def _side(self, side: str, values: Floats, tokens: Offsets) -> SideWeights:
        """The weights of one answer's tokens, int32[n, 2], as far as there are both."""
        n = min(len(values), len(tokens))
        name, values, tokens = f"{side}_weight", values[:n], tokens[:n]
        if self._log_ratios:
            values = from_log_ratios(values, side)
        elif np.any(values < 0):
            raise UnusableWeights(f"`{name}` holds a negative number: are they raw log-ratios? see --log-ratios")
        return SideWeights(starts=tokens[:, 0].copy(), ends=tokens[:, 1].copy(), weights={0: mean_one(values, name)})

    def _offsets(self, answer: str) -> Offsets:
        """The characters of `answer` that each of its tokens covers, int32[n, 2], at least one token."""
        offsets = self._backend.encode(answer, add_special_tokens=False).offsets
        if not offsets:
            raise UnusableWeights("an answer has no tokens")
        return np.asarray(offsets, np.int32)


def _plain(tokenizer: Any) -> Any:
    """A copy of a fast tokenizer's backend that adds nothing, cuts nothing, and leaves white space in its offsets."""
    from tokenizers import Tokenizer

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ModelError(
            f"the tokenizer {type(tokenizer).__name__} gives no character offsets; "
            "use one with a tokenizer.json (a fast tokenizer)"
        )
    state = json.loads(backend.to_str()) | {"post_processor": None, "truncation": None, "padding": None}
    return Tokenizer.from_str(json.dumps(state))
