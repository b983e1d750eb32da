"""What a report says of a cache and its pairs, as the JSON that its page reads.

Not for: how it is packed (`encoding.py`), or the page (`page.py`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from twdpo import __version__
from twdpo.inspect.examples import Example
from twdpo.inspect.report.encoding import encode_offsets, encode_weights, exponent_bias, in_utf16, pack_block
from twdpo.weights_cache import SideWeights, WeightRow, WeightsCache
from twdpo.weights_cache.alignment import align_weights
from twdpo.weights_cache.schema import SIDES
from twdpo.weights_cache.statistics import effective_tokens
from twdpo.weights_cache.transforms import SINK_FIX_MIN_TOKENS

#: Raised when a page of the old format would misread the new one.
_VERSION = 1
_TITLE = 160
#: Pairs packed together: enough to pack well, few enough to unpack at once.
_BLOCK = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """The pairs of a report. others: the rows of the cache that is compared with, None where it lacks the pair."""

    cache: WeightsCache
    default_layer: int
    numbers: Sequence[int]
    examples: Sequence[Example]
    other: WeightsCache | None = None
    other_default: int = 0
    others: Sequence[WeightRow | None] = ()

    def rows_of(self, place: int) -> tuple[WeightRow, WeightRow | None]:
        """The rows of the pair at `place` in both caches."""
        return self.examples[place].row, self.others[place] if self.other is not None else None


def default_layer(cache: WeightsCache) -> int:
    """The layer that stage two trains with by default, where it is one and stored; else the deepest."""
    said = str(cache.manifest.defaults.get("attn_source", ""))
    return int(said) if said.isdecimal() and int(said) in cache.layers else cache.layers[-1]


def report_json(shown: Shown, bias: int) -> dict[str, Any]:
    """What the page reads first: the caches, and of each pair all that can be listed, sorted and filtered."""
    return {
        "version": _VERSION,
        "made_by": f"twdpo {__version__}",
        "cache": _cache_json(shown.cache, shown.default_layer)
        | {
            "pairs": len(shown.cache),
            "shown": len(shown.examples),
            "sources": [{key: _text(value) for key, value in s.items()} for s in shown.cache.manifest.sources],
            "sink_fix_min_tokens": SINK_FIX_MIN_TOKENS,
        },
        "other": None
        if shown.other is None
        else _cache_json(shown.other, shown.other_default) | {"shared": sum(row is not None for row in shown.others)},
        "exponent_bias": bias,
        "examples": _columns(shown),
        "blocks": [
            {"first": first, "count": min(_BLOCK, len(shown.examples) - first)}
            for first in range(0, len(shown.examples), _BLOCK)
        ],
    }


def blocks(shown: Shown, bias: int) -> Iterator[str]:
    """The packed blocks, in order."""
    for first in range(0, len(shown.examples), _BLOCK):
        places = range(first, min(first + _BLOCK, len(shown.examples)))
        codes = [
            encode_weights(side.weights[layer], bias)
            for place in places
            for row, cache in zip(shown.rows_of(place), (shown.cache, shown.other), strict=True)
            if row is not None and cache is not None
            for side in (row.chosen, row.rejected)
            for layer in cache.layers
        ]
        yield pack_block([_example_json(shown, place) for place in places], codes)


def bias_of(shown: Shown) -> int:
    """The exponent bias that fits all weights of the report."""
    largest = 1.0
    for place in range(len(shown.examples)):
        for row in shown.rows_of(place):
            if row is not None:
                sides = (row.chosen, row.rejected)
                largest = max(largest, *(float(w.max(initial=0)) for side in sides for w in side.weights.values()))
    return exponent_bias(largest)


def _cache_json(cache: WeightsCache, layer: int) -> dict[str, Any]:
    recipe = cache.recipe
    return {
        "name": cache.folder.absolute().name,
        "layers": list(cache.layers),
        "default_layer": layer,
        "judge": recipe.judge_model,
        "source": recipe.source,
        "dtype": recipe.dtype,
        "max_length": recipe.max_length,
        "recipe": {field.name: _text(getattr(recipe, field.name)) for field in fields(recipe)},
    }


def _text(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, (Mapping, list, tuple)):
        return json.dumps(value if not isinstance(value, Mapping) else dict(value), ensure_ascii=False)
    return str(value)


def _columns(shown: Shown) -> dict[str, list[Any] | None]:
    rows = [example.row for example in shown.examples]
    layer = shown.default_layer
    columns: dict[str, list[Any] | None] = {
        "hash": [row.example_hash for row in rows],
        "number": [int(number) for number in shown.numbers],
        "title": [_title(example) for example in shown.examples],
        "p_cr": [_number(row.judge_prob_cr) for row in rows],
        "p_rc": [_number(row.judge_prob_rc) for row in rows],
        "truncated": [bool(row.truncated) for row in rows],
        "has_text": [example.pair is not None for example in shown.examples],
        "overlap": None,
    }
    for side in SIDES:
        columns[f"tokens_{side}"] = [len(row.side(side)) for row in rows]
        columns[f"agreement_{side}"] = [_number(getattr(row, f"order_agreement_{side}")) for row in rows]
        columns[f"effective_{side}"] = [
            _number(effective_tokens(row.side(side).weights[layer]) / len(row.side(side))) for row in rows
        ]
    if shown.other is not None:
        columns["overlap"] = [_overlap(shown, place) for place in range(len(rows))]
    return columns


def _title(example: Example) -> str:
    if example.pair is None or not example.pair.prompt:
        return ""
    return " ".join(example.pair.prompt[-1].content[: 4 * _TITLE].split())[:_TITLE]


def _number(value: float) -> float | None:
    """Six significant digits, which is more than the eye needs and half of what a float takes."""
    return None if math.isnan(value) else float(f"{value:.6g}")


def _overlap(shown: Shown, place: int) -> float | None:
    row, other = shown.rows_of(place)
    if other is None:
        return None
    shared = [shared_mass(row.side(side), shown.default_layer, other.side(side), shown.other_default) for side in SIDES]
    return _number(float(np.mean(shared)))


def shared_mass(mine: SideWeights, layer: int, theirs: SideWeights, their_layer: int) -> float:
    """The part of the weight, 0 to 1, that two caches put on the same tokens of an answer, in the tokens of the first.

    The other's weights are moved to them by characters.
    """
    moved, _ = align_weights(theirs.weights[their_layer], theirs.starts, theirs.ends, mine.starts, mine.ends)
    one, two = mine.weights[layer].astype(np.float64), moved.astype(np.float64)
    if one.sum() <= 0 or two.sum() <= 0:
        return 0.0
    return float(np.minimum(one / one.sum(), two / two.sum()).sum())


def _example_json(shown: Shown, place: int) -> dict[str, Any]:
    pair, (row, other) = shown.examples[place].pair, shown.rows_of(place)
    texts = {"chosen": pair.chosen, "rejected": pair.rejected} if pair else dict.fromkeys(SIDES, None)
    content: dict[str, Any] = {
        "prompt": [[message.role, message.content] for message in pair.prompt] if pair else None,
        "other": None,
    }
    for side in SIDES:
        content[side] = {"text": texts[side]} | _offsets(row.side(side), texts[side])
    if other is not None:
        content["other"] = {side: _other_offsets(row.side(side), other.side(side), texts[side]) for side in SIDES}
    return content


def _offsets(side: SideWeights, text: str | None) -> dict[str, list[int]]:
    if text is None:
        return encode_offsets(side.starts, side.ends)
    return encode_offsets(in_utf16(text, side.starts), in_utf16(text, side.ends))


def _other_offsets(mine: SideWeights, theirs: SideWeights, text: str | None) -> dict[str, Any]:
    if np.array_equal(mine.starts, theirs.starts) and np.array_equal(mine.ends, theirs.ends):
        return {"same": True}
    return _offsets(theirs, text)
