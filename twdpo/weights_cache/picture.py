"""A picture of one pair for a data-set card: both answers side by side, every token shaded by its weight, as SVG.

The file stands by itself: no script, link or font from elsewhere, and colours for light and dark readers. Text comes
from data sets, so all of it is escaped, and what would hide or turn it is shown by name. Not for: the terminal
(`twdpo.inspect`), or choosing the pair (`card.py`).
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from xml.sax.saxutils import escape

from twdpo.preferences.pair import Pair
from twdpo.weights_cache.rows import SideWeights, WeightRow

#: Pixels of the picture's own grid. A character of a monospaced font is 0.6 as wide as the font is high.
_WIDTH, _MARGIN, _PADDING = 800, 14, 12
_FONT, _LINE = 13, 20
_CHARACTER = 0.6 * _FONT
_PANEL = (_WIDTH - 3 * _MARGIN) / 2
_COLUMNS = int((_PANEL - 2 * _PADDING) / _CHARACTER)
_WIDE_COLUMNS = int((_WIDTH - 2 * _MARGIN) / _CHARACTER)
_PROMPT_LINES, _ANSWER_LINES = 4, 24

#: The weight from which a token gets the full shade, and the weights that the legend shows.
_FULL = 8.0
_LEGEND = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)

_STYLE = f"""\
text{{font:{_FONT}px ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;fill:#1f2328}}
.ground{{fill:#fff}}.panel{{fill:none;stroke:#d0d7de}}.heat{{fill:#fb8500}}
.dim{{fill:#636c76}}.name{{font-weight:bold}}.small{{font-size:12px}}
@media (prefers-color-scheme:dark){{text{{fill:#e6edf3}}
.ground{{fill:#0d1117}}.panel{{stroke:#3d444d}}.heat{{fill:#a84300}}.dim{{fill:#9198a1}}}}"""

#: Renderers drop or fold plain spaces.
_SPACE = "\u00a0"
#: Characters that only join others, and so are kept.
_JOINERS = {"\u200c", "\u200d"}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cell:
    """A character with what is drawn on top of it; `width` in columns, `token` -1 where no token covers it."""

    text: str
    width: int
    token: int = -1


def draw_pair(pair: Pair, row: WeightRow, layer: int) -> str:
    """The picture of `pair` with the weights of `row` from `layer`, as SVG text.

    Prompt and answers that are too long end in an ellipsis.
    """
    sides = (("chosen", pair.chosen, row.chosen), ("rejected", pair.rejected, row.rejected))
    top: float = _MARGIN + _LINE
    parts: list[str] = []
    question = pair.prompt[-1].content if pair.prompt else ""
    for line in _wrap(_cells(question), _WIDE_COLUMNS, _PROMPT_LINES):
        parts += _draw_line(line, _MARGIN, top, (), "dim")
        top += _LINE
    top += _LINE // 2
    bottom = top
    for position, (name, text, side) in enumerate(sides):
        left = _MARGIN + position * (_PANEL + _MARGIN)
        drawn, end = _draw_side(name, text, side, layer, left, top)
        parts += drawn
        bottom = max(bottom, end)
    for position in range(2):
        left = _MARGIN + position * (_PANEL + _MARGIN)
        size = f'width="{_PANEL:g}" height="{bottom - top + 24:g}"'
        parts.append(f'<rect class="panel" x="{left:g}" y="{top - 15:g}" {size} rx="6"/>')
    parts += _draw_legend(bottom + _LINE + 18, _caption(row, layer))
    return _document(parts, bottom + 2 * _LINE + 18)


def visible(text: str) -> str:
    """`text` with control, direction and unassigned characters as ⟨U+XXXX⟩; line feeds stay, tabs become spaces."""
    return "".join(_visible(character) for character in text)


def _visible(character: str) -> str:
    if character in _JOINERS or character == "\n":
        return character
    if character == "\t":
        return "    "
    if unicodedata.category(character) in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}:
        return f"⟨U+{ord(character):04X}⟩"
    return character


def _draw_side(name: str, text: str, side: SideWeights, layer: int, left: float, top: float) -> tuple[list[str], float]:
    """One answer from `top` on, its heading included, and where it ends."""
    groups, weights = _groups(side, layer, len(text))
    lines = _wrap(_cells(text, groups), _COLUMNS, _ANSWER_LINES)
    inner = left + _PADDING
    parts = [
        f'<text class="name" x="{inner:g}" y="{top + 4:g}">{name}</text>',
        f'<text class="dim small" text-anchor="end" x="{left + _PANEL - _PADDING:g}" y="{top + 4:g}">'
        f"{len(side)} tokens</text>",
    ]
    top += _LINE + 6
    for line in lines:
        parts += _draw_line(line, inner, top, weights)
        top += _LINE
    return parts, top - _LINE


def _groups(side: SideWeights, layer: int, length: int) -> tuple[list[int], list[float]]:
    """For each character the group of tokens that covers it (-1: none), and the weight of each group.

    Tokens that share a character are one group, with their heaviest weight.
    """
    groups, end = [-1] * length, 0
    weights: list[float] = []
    for start, stop, weight in zip(side.starts.tolist(), side.ends.tolist(), side.weights[layer].tolist(), strict=True):
        if weights and start < end:
            weights[-1] = max(weights[-1], weight)
        else:
            weights.append(weight)
        for place in range(max(start, end), min(stop, length)):
            groups[place] = len(weights) - 1
        end = max(end, stop)
    return groups, weights


def _cells(text: str, groups: Sequence[int] | None = None) -> Iterator[_Cell]:
    """The characters of `text` as they are drawn; marks and joined characters go with the one before them."""
    held: _Cell | None = None
    for place, character in enumerate(text):
        token = groups[place] if groups is not None else -1
        if held is not None and held.text != "\n" and _joins(held.text, character):
            held = _Cell(text=held.text + character, width=held.width, token=held.token)
            continue
        if held is not None:
            yield held
        shown = _visible(character)
        for part in shown[:-1]:
            yield _Cell(text=part, width=1, token=token)
        held = _Cell(text=shown[-1], width=_columns(shown[-1]), token=token)
    if held is not None:
        yield held


def _joins(before: str, character: str) -> bool:
    is_mark = unicodedata.category(character) in {"Mn", "Me"} or character in _JOINERS
    is_skin_tone = "\U0001f3fb" <= character <= "\U0001f3ff"
    # A bound, so that a text of nothing but marks is cut like any other.
    return len(before) < 16 and (is_mark or is_skin_tone or before.endswith("\u200d"))


def _columns(character: str) -> int:
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _wrap(cells: Iterable[_Cell], columns: int, most: int) -> list[list[_Cell]]:
    """Lines of at most `columns`, at most `most` of them; a cut text ends in an ellipsis."""
    lines: list[list[_Cell]] = [[]]
    for cell in cells:
        line = lines[-1]
        if cell.text == "\n":
            # A line feed is a token like others: it is shown where there is room for it.
            if _width(line) < columns:
                line.append(_Cell(text="↵", width=1, token=cell.token))
            lines.append([])
        else:
            line.append(cell)
            if _width(line) > columns:
                at = _break_at(line)
                lines.append(line[at:])
                # The space at the end of a line belongs to a token that goes on in the next one.
                del line[at - 1 if line[at - 1].text == " " else at :]
        if len(lines) > most:
            last = lines[most - 1]
            while _width(last) >= columns:
                last.pop()
            return [*lines[: most - 1], [*last, _Cell(text="…", width=1)]]
    return lines


def _break_at(line: Sequence[_Cell]) -> int:
    """Where an overfull line goes on in the next one: after its last space, before a wide character, or at its end."""
    for place in range(len(line) - 1, 0, -1):
        if line[place - 1].text == " " or line[place].width == 2:
            return place
    return len(line) - 1


def _width(line: Iterable[_Cell]) -> int:
    return sum(cell.width for cell in line)


def _draw_line(
    line: Sequence[_Cell], left: float, baseline: float, weights: Sequence[float], style: str = ""
) -> Iterator[str]:
    column = 0
    for token, run in groupby(line, key=lambda cell: cell.token):
        cells = list(run)
        x, columns = left + column * _CHARACTER, _width(cells)
        column += columns
        if token >= 0:
            yield (
                f'<rect class="heat" x="{x + 0.4:.1f}" y="{baseline - 14:g}" width="{columns * _CHARACTER - 0.8:.1f}" '
                f'height="{_LINE - 2}" rx="2" fill-opacity="{_opacity(weights[token]):.2f}"/>'
            )
        text = "".join(cell.text for cell in cells)
        if inked := text.strip(" "):
            before = len(text) - len(text.lstrip(" "))
            width = (columns - len(text) + len(inked)) * _CHARACTER
            dim = style or ("dim" if token < 0 or text == "↵" else "")
            # The length is given, so that text and shade agree in whatever font the reader has.
            yield (
                f'<text{_class(dim)} x="{x + before * _CHARACTER:.1f}" y="{baseline:g}" textLength="{width:.1f}" '
                f'lengthAdjust="spacingAndGlyphs">{escape(inked.replace(" ", _SPACE))}</text>'
            )


def _class(name: str) -> str:
    return f' class="{name}"' if name else ""


def _opacity(weight: float) -> float:
    return min(1.0, math.log1p(weight) / math.log1p(_FULL))


def _caption(row: WeightRow, layer: int) -> str:
    verdict = ""
    if not math.isnan(row.judge_prob_cr + row.judge_prob_rc):
        verdict = f"P(chosen) {row.judge_prob_cr:.2f} when first, {row.judge_prob_rc:.2f} when second; "
    return f"{verdict}layer {layer}; weight (mean 1):"


def _draw_legend(baseline: float, caption: str) -> Iterator[str]:
    step = 5 * _CHARACTER
    left = _WIDTH - _MARGIN - len(_LEGEND) * step
    yield f'<text class="dim small" text-anchor="end" x="{left - 8:g}" y="{baseline:g}">{escape(caption)}</text>'
    for position, weight in enumerate(_LEGEND):
        x = left + position * step
        label = f"{weight:g}{'+' if weight == _FULL else ''}"
        yield (
            f'<rect class="heat" x="{x:.1f}" y="{baseline - 14:g}" width="{step - 2:.1f}" height="{_LINE - 2}" rx="2" '
            f'fill-opacity="{_opacity(weight):.2f}"/>'
        )
        yield f'<text class="small" text-anchor="middle" x="{x + step / 2 - 1:.1f}" y="{baseline:g}">{label}</text>'


def _document(parts: Sequence[str], height: float) -> str:
    title = "A chosen and a rejected answer, every token shaded by its weight"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height:g}" width="{_WIDTH}" '
            f'height="{height:g}" role="img">',
            f"<title>{title}</title>",
            f"<style>{_STYLE}</style>",
            f'<rect class="ground" width="{_WIDTH}" height="{height:g}" rx="8"/>',
            *parts,
            "</svg>\n",
        ]
    )
