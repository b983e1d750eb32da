"""A pair in a notebook: an object that shows itself as HTML, in a terminal as text, and gives a data frame.

The HTML stands by itself: no script, no style sheet, nothing from elsewhere; all text is escaped, and no text of a
data set stands in an attribute. Colours are half transparent and the text has the notebook's own, so that it can be
read on dark and light grounds. Not for: reports over many pairs (`report`).
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from rich.console import Console, ConsoleOptions, RenderResult

from twdpo.inspect.examples import Example, default_layers, find_example
from twdpo.inspect.frames import token_frame
from twdpo.inspect.segments import LINE_FEED, Segment, ranks, segments, token_name
from twdpo.inspect.views import example_view, side_weights, verdict
from twdpo.weights_cache import SideWeights, WeightsCache
from twdpo.weights_cache.picture import visible
from twdpo.weights_cache.schema import SIDES
from twdpo.weights_cache.statistics import effective_tokens
from twdpo.weights_cache.transforms import source_name

if TYPE_CHECKING:
    import pandas as pd

Floats = NDArray[np.float32]

#: The weight from which a token has the full shade, and how strong that is.
_FULL, _OPACITY = 8.0, 0.62
_LEGEND = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
_HEAVIEST = 8

_FRAME = "font-size:14px;line-height:1.6;color:inherit;max-width:76rem"
_SIDES = "display:flex;flex-wrap:wrap;gap:12px;align-items:stretch"
_PANEL = (
    "flex:1 1 20rem;min-width:0;box-sizing:border-box;border:1px solid rgba(128,128,128,.45);border-radius:6px;"
    "padding:10px 12px"
)
_TEXT = "white-space:pre-wrap;overflow-wrap:anywhere;unicode-bidi:isolate"
_QUIET = "opacity:.75;font-size:12.5px"
_PROMPT = f"{_TEXT};margin:6px 0 10px;padding-left:10px;border-left:3px solid rgba(128,128,128,.45)"
_CODE = "font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;font-size:12.5px"
_CELL = f"{_CODE};padding:0 8px 0 0;text-align:right;border:0;background:none"


class PairView:
    """A pair of a cache to look at.

    example: its row and texts. layers: those whose mean is shown. sink_fixed: whether as training sees them.
    """

    def __init__(self, example: Example, layers: tuple[int, ...], *, sink_fixed: bool = False) -> None:
        self.example, self.layers, self.sink_fixed = example, layers, sink_fixed

    def to_pandas(self) -> pd.DataFrame:
        """One row a judged token: side, token, start, end, text, weight_L a layer, weight, weight_sink_fixed and rank.

        Raises UsageError where pandas is not installed.
        """
        return token_frame(self.example, self.layers, sink_fixed=self.sink_fixed)

    def __repr__(self) -> str:
        row = self.example.row
        number = f"pair {self.example.number}, " if self.example.number >= 0 else ""
        return f"<{type(self).__name__} {number}{row.example_hash}: {self._what}; {verdict(row)}>"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        color = console.is_terminal and console.color_system is not None and not console.no_color
        yield example_view(self.example, self.layers, color=color, sink_fixed=self.sink_fixed)

    def _repr_html_(self) -> str:
        row, pair = self.example.row, self.example.pair
        number = f"pair {self.example.number} · " if self.example.number >= 0 else ""
        heading = f"{number}<span style='{_CODE}'>{row.example_hash}</span>"
        said = f"{self._what}; {verdict(row)}{'; truncated' if row.truncated else ''}"
        if pair is None:
            prompt = (
                f"<div style='{_PROMPT}'>The texts are not known: pass dataset=, or annotate with --include-text.</div>"
            )
        else:
            turns = "\n\n".join(f"{message.role}: {message.content}" for message in pair.prompt)
            prompt = f"<div dir='auto' style='{_PROMPT}'>{_escaped(turns)}</div>"
        panels = "".join(
            _panel(
                name,
                None if pair is None else getattr(pair, name),
                row.side(name),
                side_weights(row.side(name), self.layers, sink_fixed=self.sink_fixed),
            )
            for name in SIDES
        )
        return (
            f"<div style='{_FRAME}'><div style='font-weight:600'>{heading}</div>"
            f"<div style='{_QUIET}'>{escape(said)}</div>{prompt}<div style='{_SIDES}'>{panels}</div>{_legend()}</div>"
        )

    @property
    def _what(self) -> str:
        return f"{source_name(self.layers)}, {'sink-fixed' if self.sink_fixed else 'raw'} weights"


def show(
    cache: WeightsCache | Path | str,
    example: str | int = "random",
    *,
    layer: str | int | None = None,
    dataset: str | None = None,
    split: str | None = None,
    sink_fix: bool = False,
) -> PairView:
    """A pair of `cache`, to look at in a notebook.

    cache: a folder, or one that is open. example: a number in cache order, a hash or its beginning, or `random`. layer:
    a stored layer, `mean`, `mean:7,15` or `last`; by default what training takes. dataset, split: where the texts are,
    if neither in the cache nor where its manifest says. sink_fix: the weights as training sees them. Raises UsageError
    where there is no such pair or layer, and what opening a cache or reading `dataset` raises.
    """
    opening = nullcontext(cache) if isinstance(cache, WeightsCache) else WeightsCache.open(cache)
    with opening as opened:
        layers = default_layers(opened.manifest, None if layer is None else str(layer))
        found = find_example(opened, str(example), dataset=dataset, split=split)
    view = PairView(found, layers, sink_fixed=sink_fix)
    for name in SIDES:
        # An open cache may hold some layers only.
        side_weights(found.row.side(name), layers)
    return view


def _panel(name: str, text: str | None, side: SideWeights, weights: Floats) -> str:
    order = ranks(weights)
    effective = effective_tokens(weights)
    head = f"{len(weights)} tokens, {effective:.1f} effective ({effective / len(weights):.0%})"
    shaded = "" if text is None else _shaded(text, side, weights, order)
    return (
        f"<div style='{_PANEL}'><div style='display:flex;flex-wrap:wrap;justify-content:space-between;gap:0 12px'>"
        f"<span style='font-weight:600'>{name}</span><span style='{_QUIET}'>{head}</span></div>"
        f"<div dir='auto' style='{_TEXT}'>{shaded}</div>{_heaviest(text, side, weights)}</div>"
    )


def _shaded(text: str, side: SideWeights, weights: Floats, order: NDArray[np.int64]) -> str:
    parts = []
    for piece in segments(text, weights, side.starts, side.ends):
        if piece.first == piece.last:
            parts.append(f"<span style='opacity:.6'>{_escaped(piece.text)}</span>")
            continue
        shown = _escaped(piece.text).replace("\n", f"{LINE_FEED}\n") if piece.weight >= 0.75 else _escaped(piece.text)
        title = _tooltip(piece, side, weights, order)
        parts.append(f"<span title='{title}' style='{_shade(piece.weight)}'>{shown}</span>")
    return "".join(parts)


def _tooltip(piece: Segment, side: SideWeights, weights: Floats, order: NDArray[np.int64]) -> str:
    """Weight, rank and place of each token of a piece, a line each; numbers only."""
    return "&#10;".join(
        f"weight {weights[i]:.4g}, rank {order[i]} of {len(weights)}, token {i}, "
        f"characters {side.starts[i]}–{side.ends[i]}"
        for i in range(piece.first, piece.last)
    )


def _heaviest(text: str | None, side: SideWeights, weights: Floats) -> str:
    rows = []
    for rank, i in enumerate(np.argsort(-weights, kind="stable")[:_HEAVIEST].tolist(), start=1):
        start, end = int(side.starts[i]), int(side.ends[i])
        what = f"characters {start}–{end}" if text is None else escape(token_name(text[start:end]))
        cells = "".join(f"<td style='{_CELL}'>{value}</td>" for value in (f"{rank}.", f"{weights[i]:.2f}", f"#{i}"))
        rows.append(f"<tr style='background:none'>{cells}<td style='{_CELL};text-align:left;{_TEXT}'>{what}</td></tr>")
    return (
        f"<div style='{_QUIET};margin-top:8px'>heaviest tokens</div>"
        f"<table style='border-collapse:collapse;margin:0;border:0'>{''.join(rows)}</table>"
    )


def _legend() -> str:
    boxes = "".join(
        f"<span style='{_shade(weight)};padding:0 8px'>{weight:g}{'+' if weight == _FULL else ''}</span>"
        for weight in _LEGEND
    )
    label = f"<span style='{_QUIET}'>weight (mean 1):</span>"
    return f"<div style='font-size:12.5px;margin-top:8px;display:flex;gap:4px;flex-wrap:wrap'>{label}{boxes}</div>"


def _shade(weight: float) -> str:
    strength = min(1.0, math.log1p(weight) / math.log1p(_FULL)) ** 1.5 * _OPACITY
    return f"background:rgba(251,120,0,{strength:.2f});border-radius:2px"


def _escaped(text: str) -> str:
    return escape(visible(text))
