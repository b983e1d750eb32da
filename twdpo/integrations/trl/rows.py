"""From a row as TRL tokenized it to the weights of its completions' tokens.

TRL's text of a row is made again, with characters: strings put together, conversations by the chat template. Its tokens
must be TRL's own. That is done here and not by `Renderer`, whose text differs: it keeps the spelling of a
special token in a message plain, fixes the date, and uses the chat template for strings, too. Needs no trl.
Not for: which rows are used (`pairs.py`).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twdpo.errors import ModelError, first_line
from twdpo.integrations.trl.pairs import ANSWERS, KEY, ProcessCache
from twdpo.integrations.trl.weighting import CHOSEN_WEIGHTS, REJECTED_WEIGHTS
from twdpo.pipeline.tokens import Tokens
from twdpo.pipeline.train.render import RenderedText, RenderError
from twdpo.pipeline.train.weights import WeightRules, training_weights, uniform_weights
from twdpo.weights_cache import SideWeights, WeightRow

Columns = dict[str, list[Any]]

_STAND_IN = "answer4d1f6b0c92e857a3"
_SIDES = (("chosen", CHOSEN_WEIGHTS), ("rejected", REJECTED_WEIGHTS))
_TOKENS = ("prompt_ids", "chosen_ids", "rejected_ids")


class RowWeights:
    """Gives tokenized rows their weights; `skipped` counts the others by reason. Can be pickled."""

    def __init__(self, tokenizer: Any, cache: ProcessCache, rules: WeightRules) -> None:
        self.skipped: Counter[str] = Counter()
        self._cache, self._rules = cache, rules
        self._texts = TrlTexts(tokenizer)

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> Columns:
        """TRL's token columns of some rows, and the weights. A row that cannot have any is left out and counted."""
        keys = list(batch[KEY])
        cache = self._cache.here
        without = set(cache.missing(keys))
        found = [key for key in keys if key not in without]
        stored = dict(zip(found, cache.fetch(found), strict=True))
        result: Columns = {name: [] for name in (*_TOKENS, *(column for _, column in _SIDES))}
        for number, key in enumerate(keys):
            row = {name: values[number] for name, values in batch.items()}
            try:
                weights = self._both(row, stored.get(key))
            except RenderError as error:
                self.skipped[str(error)] += 1
                continue
            for name, value in ({name: row[name] for name in _TOKENS} | weights).items():
                result[name].append(value)
        return result

    def _both(self, row: Mapping[str, Any], stored: WeightRow | None) -> dict[str, list[float]]:
        sides = (None, None) if stored is None else (stored.chosen, stored.rejected)
        return {column: self._side(row, side, weights) for (side, column), weights in zip(_SIDES, sides, strict=True)}

    def _side(self, row: Mapping[str, Any], side: str, stored: SideWeights | None) -> list[float]:
        text, tokens = self._texts.of(row, side)
        rendered = text.side(tokens, len(row["prompt_ids"]))
        weights = (
            uniform_weights(rendered, self._rules)
            if stored is None
            else training_weights(stored, rendered, self._rules)
        )
        return [float(weight) for weight in weights]


class TrlTexts:
    """The text that TRL tokenizes, with the characters of each token."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._backend = _without_post_processor(tokenizer)

    def of(self, row: Mapping[str, Any], side: str) -> tuple[RenderedText, Tokens]:
        """One response of a tokenized row. Raises RenderError, or ModelError where the tokens are not those of TRL."""
        text = self._plain(row, side) if isinstance(row["prompt"], str) else self._chat(row, side)
        encoding = self._backend.encode(text.text, add_special_tokens=False)
        ids = np.asarray([*row["prompt_ids"], *row[f"{side}_ids"]], np.int32)
        return text, _within(ids, np.asarray(encoding.ids, np.int32), np.asarray(encoding.offsets, np.int32))

    def _plain(self, row: Mapping[str, Any], side: str) -> RenderedText:
        """TRL puts strings together, and an end-of-sequence token behind them unless there is one."""
        text, answer = row["prompt"] + row[side], row[ANSWERS[side]]
        whole = text if text.endswith(answer) else text.removesuffix(self._tokenizer.eos_token or "")
        if not whole.endswith(answer):
            raise RenderError("the answer does not end the text that trl trains on")
        return RenderedText(text=text, answer_at=len(whole) - len(answer), answer_length=len(answer), cut_before=0)

    def _chat(self, row: Mapping[str, Any], side: str) -> RenderedText:
        *context, last = row["prompt"] + row[side]
        stand_in = [{"type": "text", "text": _STAND_IN}] if isinstance(last["content"], list) else _STAND_IN
        before, found, after = self._apply(row, [*context, last | {"content": stand_in}]).partition(_STAND_IN)
        if not found or _STAND_IN in after:
            raise RenderError("the chat template does not show the answer once, as it is")
        return RenderedText.find(self._apply(row, [*context, last]), before, after, row[ANSWERS[side]])

    def _apply(self, row: Mapping[str, Any], messages: list[Any]) -> str:
        """With the arguments that TRL takes from a row."""
        tools = row.get("tools")
        arguments = {"tools": json.loads(tools) if isinstance(tools, str) else tools}
        arguments |= row.get("chat_template_kwargs") or {}
        try:
            return str(self._tokenizer.apply_chat_template(messages, tokenize=False, **arguments))
        except Exception as error:  # templates are programs and raise what they like
            raise RenderError(f"the chat template refuses this conversation: {first_line(error)}") from None


def _within(ids: NDArray[np.int32], own: NDArray[np.int32], offsets: NDArray[np.int32]) -> Tokens:
    """All of `ids`, with the offsets of the text's `own`; what the tokenizer puts around those covers nothing."""
    added = len(ids) - len(own)
    lead = next((n for n in range(added + 1) if np.array_equal(ids[n : n + len(own)], own)), None)
    if lead is None:
        raise ModelError(
            "the tokens that trl made of a row are not those of its text, so weights cannot be placed; "
            "pass the rows' text to the trainer, not tokens of another tokenizer or chat template"
        )
    places = np.full((len(ids), 2), -1, np.int32)
    places[lead : lead + len(own)] = offsets.reshape(-1, 2)
    return Tokens(ids=ids, starts=places[:, 0].copy(), ends=places[:, 1].copy())


def _without_post_processor(tokenizer: Any) -> Any:
    """The tokenizer without what it adds around a text, which may also trim the white space off its offsets."""
    from tokenizers import Tokenizer

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not getattr(tokenizer, "is_fast", False) or backend is None:
        raise ModelError(
            f"the tokenizer {type(tokenizer).__name__} gives no character offsets; "
            "pass a fast tokenizer (tokenizer.json) as processing_class"
        )
    state = json.loads(backend.to_str())
    state.update(post_processor=None, truncation=None, padding=None)
    return Tokenizer.from_str(json.dumps(state))
