"""One row of the cache: the weights of one pair, its checks, and its way into and out of Arrow tables.

Not for: files. Shards are written by `shards.py` and found by `index.py`.
"""

from __future__ import annotations

import gc
import math
import re
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import repeat
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from twdpo.preferences.pair import Message, example_hash
from twdpo.weights_cache.mantissa import round_mantissa
from twdpo.weights_cache.schema import FLOATS, KEY, SIDES, offset_columns, weights_column
from twdpo.weights_cache.shards import Block

#: How far a side's mean weight may be from 1: float32 arithmetic needs far less; rounding may add as much again.
MEAN_TOLERANCE = 2.0**-12

_HASH = re.compile(r"[0-9a-f]{32}")
_NAN = math.nan

_Kind = TypeVar("_Kind")

Ints = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SideWeights:
    """The weights of one response side over its n judged tokens.

    `starts`, `ends`: int32 [n], the characters (Python code points) of the unstripped answer that each token covers,
    `ends` one past the last. `weights`: float32 [n] for each stored layer, mean 1.
    """

    starts: Ints
    ends: Ints
    weights: Mapping[int, Floats]

    def __len__(self) -> int:
        return len(self.starts)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WeightRow:
    """The weights of one pair, and what else the judge's passes gave for free.

    `judge_prob_cr`, `judge_prob_rc`: probability of the chosen answer in each order. `attention_share_*`: the part of
    the default layer's attention row that lies on that side, mean of the orders. `order_agreement_*`: in [-1, 1].
    NaN where the weight source has no such figure. The three texts are there together or not at all; `prompt` holds
    (role, content) of each message.
    """

    example_hash: str
    chosen: SideWeights
    rejected: SideWeights
    judge_prob_cr: float = _NAN
    judge_prob_rc: float = _NAN
    attention_share_chosen: float = _NAN
    attention_share_rejected: float = _NAN
    order_agreement_chosen: float = _NAN
    order_agreement_rejected: float = _NAN
    truncated: bool = False
    prompt: tuple[tuple[str, str], ...] | None = None
    chosen_text: str | None = None
    rejected_text: str | None = None

    def side(self, name: str) -> SideWeights:
        """The response side called `name`."""
        return self.chosen if name == "chosen" else self.rejected


def is_hash(text: str) -> bool:
    """Whether `text` has the shape of an example hash."""
    return _HASH.fullmatch(text) is not None


def check_row(row: WeightRow, layers: Sequence[int], *, include_text: bool) -> None:
    """Raise ValueError where `row` breaks an invariant of the format; such a row is a bug of whoever made it."""
    problem = _row_problem(row, layers, include_text=include_text)
    if problem:
        raise ValueError(f"row {row.example_hash!r}: {problem}")


def _row_problem(row: WeightRow, layers: Sequence[int], *, include_text: bool) -> str | None:
    if not is_hash(row.example_hash):
        return "example_hash is not 32 lower-case hex digits"
    for name in SIDES:
        problem = _side_problem(row.side(name), layers)
        if problem:
            return f"{name}: {problem}"
    for name in FLOATS:
        least = -1.0 if name.startswith("order_agreement") else 0.0
        # Written so that NaN passes.
        if getattr(row, name) < least - 1e-5 or getattr(row, name) > 1 + 1e-5:
            return f"{name} is {getattr(row, name)}, outside [{least:g}, 1]"
    if include_text:
        return _text_problem(row)
    return None


def _side_problem(side: SideWeights, layers: Sequence[int]) -> str | None:
    count = len(side.starts)
    if count == 0:
        return "no token"
    if len(side.ends) != count:
        return f"{count} starts, {len(side.ends)} ends"
    if side.starts[0] < 0 or np.any(np.diff(side.starts) < 0) or np.any(side.ends < side.starts):
        return "offsets are not in order"
    if set(side.weights) != set(layers):
        return f"weights of layers {sorted(side.weights)}, the recipe has {sorted(layers)}"
    for layer, weights in side.weights.items():
        if np.shape(weights) != (count,):
            return f"layer {layer}: {np.shape(weights)} weights for {count} tokens"
        if not np.all(np.isfinite(weights)) or np.any(np.asarray(weights) < 0):
            return f"layer {layer}: a weight is negative or not finite"
        mean = float(np.mean(weights, dtype=np.float64))
        if abs(mean - 1) > MEAN_TOLERANCE:
            return f"layer {layer}: the mean weight is {mean}, not 1"
    return None


def _text_problem(row: WeightRow) -> str | None:
    if row.prompt is None or row.chosen_text is None or row.rejected_text is None:
        return "the text is missing, and the cache was opened with include_text"
    prompt = tuple(Message(role=role, content=content) for role, content in row.prompt)
    try:
        "".join([row.chosen_text, row.rejected_text, *(part for turn in row.prompt for part in turn)]).encode()
    except UnicodeEncodeError:
        return "the text holds half a surrogate pair, which no UTF-8 file can hold"
    if example_hash(prompt, row.chosen_text, row.rejected_text) != row.example_hash:
        return "the text has another hash"
    for name, text in zip(SIDES, (row.chosen_text, row.rejected_text), strict=True):
        if int(row.side(name).ends.max()) > len(text):
            return f"{name}: an offset lies beyond the text"
    return None


def rows_to_table(rows: Sequence[WeightRow], schema: pa.Schema, *, stored: bool = False) -> pa.Table:
    """The rows as a table of `schema`, weights rounded for storage; as they are where they were `stored` before."""
    columns: dict[str, object] = {KEY: [row.example_hash for row in rows], "truncated": [row.truncated for row in rows]}
    columns |= {name: np.array([getattr(row, name) for row in rows], dtype=np.float32) for name in FLOATS}
    # Rows of an older schema were rounded to more bits, and must not be rounded again.
    rounded = np.asarray if stored else round_mantissa
    for name in SIDES:
        sides = [row.side(name) for row in rows]
        starts, ends = offset_columns(name)
        columns[starts] = list_array(schema.field(starts), [side.starts for side in sides])
        columns[ends] = list_array(schema.field(ends), [side.ends for side in sides])
        for layer in sides[0].weights:
            column = weights_column(name, layer)
            columns[column] = list_array(schema.field(column), [rounded(side.weights[layer]) for side in sides])
    if "prompt" in schema.names:
        columns["prompt"] = [_messages(row.prompt or ()) for row in rows]
        columns["chosen"] = [row.chosen_text for row in rows]
        columns["rejected"] = [row.rejected_text for row in rows]
    return pa.Table.from_pydict({name: columns[name] for name in schema.names}, schema=schema)


def list_array(field: pa.Field, arrays: Sequence[npt.ArrayLike]) -> pa.ListArray:
    """A list column of `field`'s type with one entry for each of `arrays` (1-D)."""
    values = [np.asarray(array) for array in arrays]
    offsets = np.zeros(len(values) + 1, dtype=np.int32)
    np.cumsum([len(value) for value in values], out=offsets[1:])
    dtype = field.type.value_type.to_pandas_dtype()
    flat = np.concatenate(values).astype(dtype, copy=False) if values else np.empty(0, dtype)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat), type=field.type)


def _messages(prompt: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in prompt]


def rows_of(block: Block, positions: npt.NDArray[np.int64], layers: Sequence[int], *, copy: bool) -> list[WeightRow]:
    """The rows at `positions` of a decoded unit; with `copy` their arrays do not keep the unit alive."""

    def column(name: str) -> list[Any]:
        return block.entries(name, positions, copy=copy)

    texts: list[Iterable[Any]] = [repeat(None)] * 3
    if block.has("prompt"):
        prompts = [tuple((turn["role"], turn["content"]) for turn in turns) for turns in column("prompt")]
        texts = [prompts, *(column(name) for name in SIDES)]
    sides = (_sides_of(name, layers, column) for name in SIDES)
    collecting = gc.isenabled()
    # So many new objects set the collector off many times over, and there is nothing among them for it to collect.
    gc.disable()
    try:
        # In the order of the fields of WeightRow.
        return _make(WeightRow, [column(KEY), *sides, *(column(name) for name in (*FLOATS, "truncated")), *texts])
    finally:
        if collecting:
            gc.enable()


def _sides_of(name: str, layers: Sequence[int], column: Callable[[str], list[Any]]) -> list[SideWeights]:
    starts, ends = (column(each) for each in offset_columns(name))
    weights = [{layers[0]: each} for each in column(weights_column(name, layers[0]))]
    for layer in layers[1:]:
        deque(map(dict.__setitem__, weights, repeat(layer), column(weights_column(name, layer))), maxlen=0)
    return _make(SideWeights, [starts, ends, weights])


def _make(kind: type[_Kind], columns: Sequence[Iterable[Any]]) -> list[_Kind]:
    """Objects of a frozen dataclass with slots, from a column for each of its fields; the first has a length.

    Slots are filled a column at a time: one by one, through the class's own `__init__`, it takes three times as long,
    and as long as decoding.
    """
    objects = [object.__new__(kind) for _ in columns[0]]
    for field, column in zip(fields(kind), columns, strict=True):  # type: ignore[arg-type]
        deque(map(getattr(kind, field.name).__set__, objects, column), maxlen=0)
    return objects
