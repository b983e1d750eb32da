"""Pieces of the charts of the HTML report: marks, texts and scales as SVG, styled by class names alone.

Not for: which charts there are (`charts.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from xml.sax.saxutils import escape, quoteattr

from twdpo.inspect.figures import Doubles
from twdpo.weights_cache.picture import visible

#: Units of each chart's own grid: about pixels, at the width at which the report shows it.
WIDTH = 320.0
_TITLE, _FONT = 13, 11


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """Values from `low` to `high` to places from `start` to `end`; `log`: by their logarithm."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.log:
            # A mean of 0 lies on the border.
            low, high, value = math.log(low), math.log(high), math.log(max(value, low))
        return self.start + (self.end - self.start) * (value - low) / (high - low)


def figure(title: str, parts: Iterable[str], height: float, note: str) -> str:
    heading = f'<text class="c-value" x="8" y="16" font-size="{_TITLE}" font-weight="600">{escape(title)}</text>'
    return (
        f'<figure class="chart"><svg viewBox="0 0 {WIDTH:g} {height:.0f}" font-size="{_FONT}" role="img" '
        f"aria-label={quoteattr(title)}>{heading}{''.join(parts)}</svg>"
        f"<figcaption>{escape(visible(note))}</figcaption></figure>"
    )


def nice(least: float) -> float:
    """The smallest of 1, 2 and 5 times a power of ten that is not below `least`."""
    power = math.floor(math.log10(least))
    factor = next(factor for factor in (1, 2, 5, 10) if factor * 10.0**power >= least * (1 - 1e-9))
    return float(f"{factor}e{power}")


def text(x: float, y: float, content: str, style: str, anchor: str = "start") -> str:
    align = "" if anchor == "start" else f' text-anchor="{anchor}"'
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}"{align}>{escape(content)}</text>'


def rule(x1: float, y1: float, x2: float, y2: float, style: str, more: str = "") -> str:
    return f'<path class="{style}" d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}"{more}/>'


def path(points: Iterable[tuple[float, float]], style: str, more: str = "") -> str:
    return f'<path class="{style}" d="M{"L".join(f"{x:.1f} {y:.1f}" for x, y in points)}"{more}/>'


def stairs(values: Doubles, edges: Doubles, across: Scale, down: Scale, style: str) -> str:
    points = [(across(edges[0]), down.start)]
    for value, start, end in zip(values, edges[:-1], edges[1:], strict=True):
        points += [(across(start), down(value)), (across(end), down(value))]
    return path([*points, (across(edges[-1]), down.start)], style)


def dot(x: float, y: float, radius: float, series: int, more: str = "") -> str:
    return f'<circle class="c-dot c-s{series}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}"{more}/>'


def hover(x: float, y: float, width: float, height: float, lines: Iterable[str]) -> str:
    """An unseen field that shows `lines` under the pointer."""
    title = escape("\n".join(lines))
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill-opacity="0">'
        f"<title>{title}</title></rect>"
    )
