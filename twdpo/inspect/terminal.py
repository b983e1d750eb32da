"""A pair in the terminal: both answers side by side, every token shaded by its weight.

Text comes from data sets, so nothing in it may steer the terminal: control and direction characters are shown by
name. Not for: figures over a whole cache (`twdpo.weights_cache.statistics`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from twdpo.weights_cache.picture import visible

#: Weight from which each shade starts, its style, and the marks that stand for it where there is no colour.
#: Dark text on a light ground in each, so that they read alike on dark and light terminals.
SHADES = (
    (0.0, "", ("", "")),
    (0.75, "black on #fff1c9", ("", "")),
    (1.5, "black on #ffd97a", ("‹", "›")),
    (3.0, "black on #ffb347", ("«", "»")),
    (6.0, "bold black on #ff7f3f", ("⟪", "⟫")),
)


def shade(weight: float) -> int:
    """The index into `SHADES` of a weight."""
    return max(i for i, (least, _, _) in enumerate(SHADES) if weight >= least)


def shaded_text(
    answer: str,
    weights: NDArray[np.float32],
    starts: NDArray[np.int32],
    ends: NDArray[np.int32],
    *,
    color: bool = True,
) -> Text:
    """An answer with every token shaded by its weight.

    weights: float32[n]; starts, ends: int32[n], characters of `answer`. Tokens that share a character are shown as
    one, with their heaviest weight; characters that no token covers stand dimmed.
    """
    text = Text()
    at, i = 0, 0
    while i < len(weights):
        start, end, weight = int(starts[i]), int(ends[i]), float(weights[i])
        i += 1
        while i < len(weights) and int(starts[i]) < end:
            end, weight = max(end, int(ends[i])), max(weight, float(weights[i]))
            i += 1
        if start > at:
            text.append(visible(answer[at:start]), style="dim" if color else "")
        _, style, (before, after) = SHADES[shade(weight)]
        piece = visible(answer[max(start, at) : end])
        text.append(piece if color else f"{before}{piece}{after}", style=style if color else "")
        at = max(at, end)
    text.append(visible(answer[at:]), style="dim" if color else "")
    return text


def legend(*, color: bool = True) -> Text:
    """What the shades mean."""
    text = Text()
    text.append("weight (mean 1): ", style="dim" if color else "")
    for i, (least, style, (before, after)) in enumerate(SHADES):
        upper = f"–{SHADES[i + 1][0]:g}" if i + 1 < len(SHADES) else "+"
        label = f"{least:g}{upper}"
        text.append(f" {label} " if color else f" {before}{label}{after} ", style=style if color else "")
        text.append(" ")
    return text


def pair_view(
    title: str, question: str, chosen: Text, rejected: Text, *, notes: tuple[str, str] = ("", "")
) -> RenderableType:
    """Prompt above, both shaded answers side by side, a note under each."""
    table = Table(show_header=False, expand=True, box=None, padding=(0, 1))
    table.add_column(ratio=1)
    table.add_column(ratio=1)
    panels = [
        Panel(Group(text, Text(), Text(note, style="dim italic")) if note else text, title=name, title_align="left")
        for name, text, note in (("chosen", chosen, notes[0]), ("rejected", rejected, notes[1]))
    ]
    table.add_row(*panels)
    return Group(Text(title, style="bold"), Text(visible(question)), table)
