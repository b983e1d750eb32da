"""A pair in the terminal: both answers side by side, every token shaded by its weight.

Text comes from data sets, so nothing in it may steer the terminal: control and direction characters are shown by
name. Not for: which pair is shown (`examples.py`), or what is said about it (`views.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from twdpo.inspect.segments import LINE_FEED, segments
from twdpo.weights_cache.picture import visible

#: Weight from which each shade starts, its style, and the marks that stand for it where there is no colour.
#: Dark text on grounds of about one brightness that grow in colour: they read alike on dark and light terminals.
SHADES = (
    (0.0, "", ("", "")),
    (0.75, "black on #d8cdb4", ("", "")),
    (1.5, "black on #e8c170", ("‹", "›")),
    (3.0, "black on #f2a044", ("«", "»")),
    (6.0, "bold black on #ff6f2e", ("⟪", "⟫")),
)
#: Below so many columns two answers do not fit beside each other.
NARROW = 70


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
    one, with their heaviest weight; characters that no token covers stand dimmed. A line feed that has weight is
    shown by a sign.
    """
    text = Text(overflow="fold")
    for piece in segments(answer, weights, starts, ends):
        if piece.first == piece.last:
            text.append(visible(piece.text), style="dim" if color else "")
            continue
        level = shade(piece.weight)
        _, style, (before, after) = SHADES[level]
        shown = visible(piece.text)
        if level:
            shown = shown.replace("\n", f"{LINE_FEED}\n")
        if not color and after:
            # The marks stay with what they enclose where a line is broken.
            inner = shown.strip(" ").removesuffix("\n") or shown.removesuffix("\n")
            shown = shown.replace(inner, f"{before}{inner}{after}", 1)
        text.append(shown, style=style if color else "")
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


class SideBySide:
    """Panels beside each other, or one below the other where the terminal is too narrow for that."""

    def __init__(self, panels: Sequence[RenderableType], *, narrow: int = NARROW) -> None:
        self._panels, self._narrow = panels, narrow

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if options.max_width < self._narrow:
            yield from self._panels
            return
        table = Table(show_header=False, expand=True, box=None, padding=(0, 1))
        for _ in self._panels:
            table.add_column(ratio=1, overflow="fold")
        table.add_row(*self._panels)
        yield table


def pair_view(
    title: str | Text,
    question: str,
    chosen: RenderableType,
    rejected: RenderableType,
    *,
    notes: tuple[RenderableType, RenderableType] = ("", ""),
    color: bool = True,
) -> RenderableType:
    """Prompt above, both shaded answers side by side, a note under each."""
    panels = [
        answer_panel(name, text, note, color=color)
        for name, text, note in (("chosen", chosen, notes[0]), ("rejected", rejected, notes[1]))
    ]
    heading = Text(title, style="bold" if color else "") if isinstance(title, str) else title
    return Group(heading, Text(visible(question), overflow="fold"), SideBySide(panels))


def answer_panel(name: str, text: RenderableType, note: RenderableType = "", *, color: bool = True) -> Panel:
    """One answer in a frame, with what there is to say about it below."""
    if isinstance(note, str):
        note = Text(note, style="dim italic" if color else "")
    content = Group(text, Text(), note) if note else text
    return Panel(content, title=Text(name), title_align="left")
