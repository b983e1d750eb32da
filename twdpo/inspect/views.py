"""What the terminal shows of one pair: its weights, or those of both orders beside each other.

Not for: how tokens are shaded (`terminal.py`), or finding the pair (`examples.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from twdpo.errors import UsageError
from twdpo.inspect.examples import Example
from twdpo.inspect.segments import token_name
from twdpo.inspect.terminal import SideBySide, answer_panel, legend, pair_view, shaded_text
from twdpo.weights_cache import SideWeights, WeightRow
from twdpo.weights_cache.picture import visible
from twdpo.weights_cache.schema import SIDES
from twdpo.weights_cache.statistics import effective_tokens
from twdpo.weights_cache.transforms import select, sink_fix, source_name

#: Heaviest tokens listed under an answer.
HEAVIEST = 8

Floats = NDArray[np.float32]
#: One side's weights in the orders "cr" and "rc".
Orders = tuple[SideWeights, SideWeights]


def example_view(
    example: Example, layers: int | Sequence[int], *, color: bool = True, sink_fixed: bool = False
) -> RenderableType:
    """The pair side by side, shaded by the weights of one layer or the mean of several, and the judge's verdicts.

    `sink_fixed`: the weights as training sees them. Without texts, the heaviest tokens by their places. Raises
    UsageError where a layer is not in the row.
    """
    wanted = (layers,) if isinstance(layers, int) else tuple(layers)
    row = example.row
    title = _title(example, f"{source_name(wanted)}, {'sink-fixed' if sink_fixed else 'raw'} weights", color=color)
    weights = [side_weights(row.side(name), wanted, sink_fixed=sink_fixed) for name in SIDES]
    texts = [None, None] if example.pair is None else [example.pair.chosen, example.pair.rejected]
    notes, shown = [], []
    for name, text, values in zip(SIDES, texts, weights, strict=True):
        side = row.side(name)
        notes.append(_note(text, side, values))
        shown.append(
            Text("(no text)") if text is None else shaded_text(text, values, side.starts, side.ends, color=color)
        )
    view = pair_view(title, _question(example), *shown, notes=(notes[0], notes[1]), color=color)
    return Group(view, legend(color=color))


def orders_view(
    example: Example,
    again: WeightRow,
    orders: tuple[Orders, Orders],
    layers: Sequence[int],
    *,
    color: bool = True,
    sink_fixed: bool = False,
) -> RenderableType:
    """Each answer's weights in both orders side by side, how well they agree, and how far their mean is from the cache.

    `again`: the row that judging again gave; `orders`: those of the chosen and of the rejected answer.
    """
    kind = "sink-fixed" if sink_fixed else "raw"
    title = _title(example, f"{source_name(layers)}, {kind} weights of each order, judged again", color=color)
    parts: list[RenderableType] = [title, Text(visible(_question(example)), overflow="fold")]
    for name, both in zip(SIDES, orders, strict=True):
        text = "" if example.pair is None else getattr(example.pair, name)
        places = ("first", "second") if name == "chosen" else ("second", "first")
        panels = []
        for side, place in zip(both, places, strict=True):
            values = side_weights(side, layers, sink_fixed=sink_fixed)
            shown = shaded_text(text, values, side.starts, side.ends, color=color)
            panels.append(answer_panel(f"{name}, read {place}", shown, _note(text, side, values), color=color))
        parts += [SideBySide(panels), Text(_agreement(example.row.side(name), again.side(name), both, layers))]
    return Group(*parts, legend(color=color))


def side_weights(side: SideWeights, layers: Sequence[int], *, sink_fixed: bool = False) -> Floats:
    """One answer's weights float32[n] from the chosen layers; raises UsageError where one is not there."""
    missing = [layer for layer in layers if layer not in side.weights]
    if missing:
        stored = ", ".join(map(str, side.weights))
        raise UsageError(f"--layer {', '.join(map(str, missing))} is not in the cache, which holds {stored}")
    weights = select(side.weights, layers)
    return sink_fix(weights) if sink_fixed else weights


def verdict(row: WeightRow) -> str:
    """What the judge thought of the pair in each order."""
    cr, rc = row.judge_prob_cr, row.judge_prob_rc
    if math.isnan(cr + rc):
        return "no judge"
    told = {2: "right in both orders", 0: "wrong in both orders", 1: "the verdict flips"}
    return f"P(chosen) {cr:.2f} when first, {rc:.2f} when second: {told[(cr > 0.5) + (rc > 0.5)]}"


def _title(example: Example, what: str, *, color: bool) -> Text:
    row = example.row
    place = f"pair {example.number}  " if example.number >= 0 else ""
    text = Text()
    text.append(f"{place}{row.example_hash}\n", style="bold" if color else "")
    text.append(f"{what}; {verdict(row)}")
    if row.truncated:
        text.append("; truncated")
    return text


def _question(example: Example) -> str:
    if example.pair is None:
        return (
            "The texts are not in the cache and were not found where it names them: "
            "pass --dataset (and --split), or annotate with --include-text."
        )
    return "\n\n".join(f"{message.role}: {message.content}" for message in example.pair.prompt)


def _note(text: str | None, side: SideWeights, weights: Floats) -> RenderableType:
    """How many tokens count, and the heaviest ones: rank, weight, number, and text or characters."""
    effective = effective_tokens(weights)
    head = Text(f"{len(weights)} tokens, {effective:.1f} effective ({effective / len(weights):.0%}); heaviest:")
    grid = Table.grid(padding=(0, 1, 0, 0))
    for _ in range(3):
        grid.add_column(justify="right", no_wrap=True)
    grid.add_column(overflow="ellipsis", no_wrap=True)
    for rank, i in enumerate(np.argsort(-weights, kind="stable")[:HEAVIEST].tolist(), start=1):
        start, end = int(side.starts[i]), int(side.ends[i])
        what = f"characters {start}–{end}" if text is None else token_name(text[start:end])
        grid.add_row(f"{rank}.", f"{weights[i]:.2f}", f"#{i}", Text(what))
    return Group(head, grid)


def _agreement(stored: SideWeights, again: SideWeights, both: Orders, layers: Sequence[int]) -> str:
    n = len(stored)
    first, second = (select(side.weights, layers).astype(np.float64) / n for side in both)
    shared = 1 - np.abs(first - second).sum() / 2
    difference = np.abs(select(stored.weights, layers) - select(again.weights, layers))
    i = int(np.argmax(difference))
    return (
        f"the orders share {shared:.1%} of the weight; their mean differs from the cache by at most "
        f"{difference[i]:.2g} (token #{i}, weight {select(stored.weights, layers)[i]:.2f})\n"
    )
