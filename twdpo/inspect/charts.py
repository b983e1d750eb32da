"""The plots of a cache as inline SVG for the HTML report: no script, link or style, only class names that it styles.

Nothing in them comes from a data set. Not for: the figures (`figures.py`), or files of their own (`plots.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from xml.sax.saxutils import escape

import numpy as np

from twdpo.inspect import drawn, svg
from twdpo.inspect.figures import POSITIONS, VERDICT_EDGES, Doubles, Figures
from twdpo.inspect.token_classes import CLASSES

#: From where to where a chart is drawn across.
_LEFT, _RIGHT = 34.0, 312.0
#: Pairs drawn as dots.
_DOTS = 300
_FIXES = ("as stored", "after the sink fix")


def charts(figures: Figures, caption: str) -> str:
    """Every chart that `figures` allow, as a run of HTML figures; `caption`, of any text, stands under each."""
    missing = drawn.left_out(figures)
    return "\n".join(draw(figures, caption) for name, draw in _CHARTS.items() if name not in missing)


def _position(figures: Figures, caption: str) -> str:
    names = [f"{5 * place} to {5 * place + 5}% of the answer" for place in range(POSITIONS)]
    x = [5.0 * place + 2.5 for place in range(POSITIONS)]
    ticks = [(tick, f"{tick}%") for tick in (0, 50, 100)]
    parts, height = _before_and_after(figures, figures.position, x, (0.0, 100.0), ticks, names)
    note = "Mean weight by position in the answer; dashed: even weights."
    return svg.figure("Weight along the answer", parts, height, f"{note} {caption}")


def _first_tokens(figures: Figures, caption: str) -> str:
    shown = int(np.count_nonzero(figures.first_counts))
    names = [f"token {place + 1}, {drawn.many(int(figures.first_counts[place]), 'answer')}" for place in range(shown)]
    x = [float(place + 1) for place in range(shown)]
    ticks = [(tick, str(tick)) for tick in ((1, 8, 16, 24, 32) if shown >= 8 else range(1, shown + 1)) if tick <= shown]
    means = figures.first_tokens[..., :shown]
    parts, height = _before_and_after(figures, means, x, (0.5, shown + 0.5), ticks, names)
    note = "Mean weight by number of the token; dashed: even weights."
    return svg.figure("Weight of the first tokens", parts, height, f"{note} {caption}")


def _before_and_after(
    figures: Figures,
    means: Doubles,
    x: Sequence[float],
    reach: tuple[float, float],
    ticks: Iterable[tuple[float, str]],
    names: Sequence[str],
) -> tuple[list[str], float]:
    """Two panels with a line for each layer, and their height; means: [2, L, points], names: of the points."""
    layers = drawn.shown_layers(figures)
    low, high = drawn.log_range(means[:, list(layers)])
    parts, top = _key([str(figures.layers[place]) for place in layers], heading="layer")
    down = svg.Scale(low=low, high=high, start=top + 140, end=top + 14, log=True)
    for fixed, (left, right) in enumerate(((_LEFT, 167.0), (179.0, _RIGHT))):
        across = svg.Scale(low=reach[0], high=reach[1], start=left, end=right)
        parts.append(svg.text(left, top + 4, _FIXES[fixed], "c-label"))
        for tick in drawn.log_ticks(low, high):
            parts.append(svg.rule(left, down(tick), right, down(tick), "c-grid"))
            if not fixed:
                parts.append(svg.text(left - 5, down(tick) + 4, drawn.power(tick), "c-label", "end"))
        parts.append(svg.rule(left, down(1), right, down(1), "c-axis", ' stroke-dasharray="4 3"'))
        parts += _bottom_axis(across, down.start, ticks)
        for series, place in reversed(list(enumerate(layers))):
            values = zip(x, means[fixed, place].tolist(), strict=True)
            points = [(across(at), down(value)) for at, value in values if not math.isnan(value)]
            parts.append(svg.path(points, f"c-line c-s{series}", "" if series == 0 else ' stroke-opacity="0.7"'))
        step = (right - left) / len(x)
        for number, name in enumerate(names):
            lines = [f"{drawn.layer_name(figures, p)}: {means[fixed, p, number]:.2f}" for p in layers]
            # Answers shorter than the parts are many leave some parts without a token.
            if not np.isnan(means[fixed, 0, number]):
                parts.append(svg.hover(left + number * step, down.end, step, 126, [f"{name}, {_FIXES[fixed]}", *lines]))
    return parts, down.start + 20


def _token_classes(figures: Figures, caption: str) -> str:
    layers, order = drawn.shown_layers(figures), drawn.shown_classes(figures)[::-1]
    low, high = drawn.log_range(figures.class_weights[1, list(layers)][:, order])
    parts, top = _key([str(figures.layers[place]) for place in layers], heading="layer")
    bottom = top + 22 + 19 * len(order)
    across = svg.Scale(low=low, high=high, start=96, end=226, log=True)
    parts += [
        svg.text(272, top + 10, "tokens", "c-label", "end"),
        svg.text(_RIGHT, top + 10, "weight", "c-label", "end"),
    ]
    for tick in drawn.log_ticks(low, high):
        parts.append(svg.rule(across(tick), top + 8, across(tick), bottom, "c-grid"))
    parts.append(svg.rule(across(1), top + 8, across(1), bottom, "c-axis", ' stroke-dasharray="4 3"'))
    parts += _bottom_axis(across, bottom, [(tick, drawn.power(tick)) for tick in drawn.log_ticks(low, high)])
    for row, kind in enumerate(order.tolist()):
        y = top + 28 + 19 * row
        tokens, mass = figures.class_tokens[kind] / figures.class_tokens.sum(), figures.class_mass[1, layers[0], kind]
        parts.append(svg.text(90, y, CLASSES[kind], "c-value", "end"))
        parts.append(svg.text(272, y, drawn.percent(tokens), "c-value", "end"))
        parts.append(svg.text(_RIGHT, y, drawn.percent(mass), "c-value", "end"))
        for series, place in reversed(list(enumerate(layers))):
            weight = figures.class_weights[1, place, kind]
            parts.append(svg.dot(across(weight), y - 4, 3.0 if series else 5.0, series))
        values = [f"{drawn.layer_name(figures, p)}: {figures.class_weights[1, p, kind]:.2f}" for p in layers]
        parts.append(
            svg.hover(
                96,
                y - 13,
                130,
                19,
                [f"{CLASSES[kind]}, {drawn.many(int(figures.class_tokens[kind]), 'token')}", *values],
            )
        )
    of = "" if figures.with_text == figures.pairs else f" Over the {figures.with_text:,} pairs with text."
    note = f"Mean weight after the sink fix; shares of the tokens and, in layer {figures.default_layer}, of the weight."
    return svg.figure("Weight by class of token", parts, bottom + 20, f"{note}{of} {caption}")


def _distribution(figures: Figures, caption: str) -> str:
    layers = drawn.shown_layers(figures)
    bins, edges = drawn.weight_bins(figures)
    across = svg.Scale(low=edges[0], high=edges[-1], start=8, end=_RIGHT, log=True)
    shares = (figures.weight_tokens[:, bins], figures.weight_mass[:, bins])
    most = max(float(each[list(layers)].max()) for each in shares)
    parts: list[str] = []
    bottom = 24.0
    for place in sorted(layers):
        series, bottom = layers.index(place), bottom + 50
        down = svg.Scale(low=0, high=most, start=bottom, end=bottom - 34)
        parts.append(svg.rule(across(1), bottom - 34, across(1), bottom, "c-grid"))
        parts.append(svg.stairs(shares[0][place], edges, across, down, f"c-area c-s{series}"))
        parts.append(svg.stairs(shares[1][place], edges, across, down, f"c-line c-s{series}"))
        parts.append(svg.rule(8, bottom, _RIGHT, bottom, "c-axis"))
        parts.append(svg.text(8, bottom - 37, drawn.layer_name(figures, place), "c-value"))
        effective = f"effective tokens {figures.effective[place]:.0%}"
        parts.append(svg.text(_RIGHT, bottom - 37, effective, "c-label", "end"))
        for number, (start, end) in enumerate(pairwise(edges)):
            lines = [f"{drawn.layer_name(figures, place)}, weight {start:.3g} to {end:.3g}"]
            lines += [f"tokens: {shares[0][place, number]:.1%}", f"weight: {shares[1][place, number]:.1%}"]
            parts.append(svg.hover(across(start), bottom - 40, across(end) - across(start), 40, lines))
    ticks = [tick for tick in drawn.log_ticks(edges[0], edges[-1]) if math.log2(tick) % 4 == 0]
    parts += _bottom_axis(across, bottom, [(tick, drawn.power(tick)) for tick in ticks])
    ends = drawn.open_ends(bins)
    note = f"Shares by size of the weight, as stored: filled of the tokens, line of the weight{ends and f'; {ends}'}."
    return svg.figure("Distribution of the weights", parts, bottom + 20, f"{note} {caption}")


def _order_agreement(figures: Figures, caption: str) -> str:
    counts = figures.agreement.sum(axis=1)
    bins, edges = drawn.agreement_bins(figures)
    shares = figures.agreement[:, bins] / np.maximum(counts, 1)[:, None]
    known = [side for side in range(2) if counts[side]]
    words = [f"{('chosen', 'rejected')[side]}, mean {figures.agreement_means[side]:.1%}" for side in known]
    parts, top = _key(words, known)
    across = svg.Scale(low=edges[0], high=edges[-1], start=_LEFT, end=_RIGHT)
    down, axis = _share_axis(float(shares.max()), top + 4, top + 130)
    parts += axis
    for side, style in ((0, "c-area c-s0"), (0, "c-line c-s0"), (1, "c-line c-s1")):
        if counts[side]:
            parts.append(svg.stairs(shares[side], edges, across, down, style))
    for number, (start, end) in enumerate(pairwise(edges)):
        lines = [f"{start:.1%} to {end:.1%} the same"]
        lines += [f"{('chosen', 'rejected')[side]}: {shares[side, number]:.1%}" for side in known]
        parts.append(svg.hover(across(start), down.end, across(end) - across(start), down.start - down.end, lines))
    step = max(1, round(10 * (edges[-1] - edges[0]) / 5))
    tenths = range(round(10 * edges[0]), round(10 * edges[-1]) + 1, step)
    parts += _bottom_axis(across, down.start, [(tenth / 10, f"{10 * tenth}%") for tenth in tenths])
    note = "Answers by the share of their weight that lies on the same tokens in both orders."
    return svg.figure("Agreement of the two orders", parts, down.start + 20, f"{note} {caption}")


def _margin_effective(figures: Figures, caption: str) -> str:
    reach = 1.08 * max(0.01, float(np.abs(figures.margin_edges).max()))
    across = svg.Scale(low=-reach, high=reach, start=_LEFT, end=_RIGHT)
    down, parts = _share_axis(1.0, 32, 178)
    parts.append(svg.rule(across(0), down.end, across(0), down.start, "c-axis", ' stroke-dasharray="4 3"'))
    for margin, share in zip(figures.margins[:_DOTS], figures.margin_effective[:_DOTS], strict=True):
        parts.append(svg.dot(across(margin), down(share), 1.8, 1, ' opacity="0.5"'))
    groups = zip(figures.margin_means, figures.margin_effects, figures.margin_counts, strict=True)
    for margin, (_, low, median, high), count in groups:
        x = across(margin)
        lines = [
            f"{drawn.many(int(count), 'pair')}, mean margin {margin:+.3f}",
            f"median: {median:.0%}",
            f"quartiles: {low:.0%}, {high:.0%}",
        ]
        parts.append(svg.rule(x, down(low), x, down(high), "c-line c-s0"))
        parts.append(svg.dot(x, down(median), 4, 0))
        parts.append(svg.hover(x - 6, down(high) - 4, 12, down(low) - down(high) + 8, lines))
    ticks = [place * svg.nice(reach / 3) for place in range(-2, 3)]
    parts += _bottom_axis(
        across, down.start, [(tick, f"{tick:+.3g}" if tick else "0") for tick in ticks if abs(tick) < reach]
    )
    dots = (
        f"{min(_DOTS, len(figures.margins)):,} of {figures.judged:,} judged pairs"
        if figures.judged > _DOTS
        else "pairs"
    )
    note = (
        f"Effective tokens in percent of the length, layer {figures.default_layer}, by the judge's margin: mean "
        f"probability of the chosen answer less one half. Dots: {dots}; bars: median and quartiles of groups."
    )
    return svg.figure("Judge's margin and effective tokens", parts, down.start + 20, f"{note} {caption}")


def _verdicts(figures: Figures, caption: str) -> str:
    across = svg.Scale(low=0, high=1, start=80, end=240)
    down = svg.Scale(low=0, high=1, start=216, end=56)
    parts = [svg.rule(80, 216, 240, 56, "c-grid")]
    most, size = int(figures.verdicts.max()), 160 / (len(VERDICT_EDGES) - 1)
    for row, column in np.argwhere(figures.verdicts).tolist():
        count, left, bottom = int(figures.verdicts[row, column]), VERDICT_EDGES[column], VERDICT_EDGES[row]
        end = 1 / (len(VERDICT_EDGES) - 1)
        places = f"first {bottom:.2f} to {bottom + end:.2f}, second {left:.2f} to {left + end:.2f}"
        title = f"{places}: {drawn.many(count, 'pair')}"
        parts.append(
            f'<rect class="c-bar c-s1" x="{across(left):.1f}" y="{down(bottom) - size:.1f}" width="{size:.1f}" '
            f'height="{size:.1f}" fill-opacity="{0.15 + 0.85 * count / most:.2f}"><title>{escape(title)}</title></rect>'
        )
    parts.append(svg.rule(80, down(0.5), 240, down(0.5), "c-axis", ' stroke-dasharray="4 3"'))
    parts.append(svg.rule(across(0.5), 56, across(0.5), 216, "c-axis", ' stroke-dasharray="4 3"'))
    parts.append(svg.path([(80, 56), (80, 216), (240, 216)], "c-axis"))
    corners = ((156, 48, "end"), (164, 48, "start"), (156, 242, "end"), (164, 242, "start"))
    for (x, y, align), (name, share) in zip(corners, drawn.quadrants(figures).items(), strict=True):
        parts.append(svg.text(x, y, f"{name} {drawn.percent(share)}", "c-value", align))
    for tick in (0.0, 0.5, 1.0):
        parts.append(svg.text(74, down(tick) + 4, f"{tick:g}", "c-label", "end"))
        parts.append(svg.text(across(tick), 228, f"{tick:g}", "c-label", "middle"))
    note = (
        "Pairs by the judge's probability of the chosen answer: upwards when it stands first, to the right when it "
        "stands second. Line: the same in both orders."
    )
    return svg.figure("What the judge prefers in both orders", parts, 250, f"{note} {caption}")


_CHARTS: dict[str, Callable[[Figures, str], str]] = {
    "position": _position,
    "position-first-tokens": _first_tokens,
    "token-classes": _token_classes,
    "distribution": _distribution,
    "order-agreement": _order_agreement,
    "margin-effective": _margin_effective,
    "verdicts": _verdicts,
}


def _key(names: Sequence[str], series: Sequence[int] | None = None, heading: str = "") -> tuple[list[str], float]:
    """A dot and the name of each series, in as many lines as they need, and where the last one ends."""
    parts = [svg.text(8, 36, heading, "c-label")] if heading else []
    left = 8 + (6 + 6.2 * len(heading) if heading else 0.0)
    x, y = left, 36.0
    for number, name in zip(series or range(len(names)), names, strict=True):
        width = 24 + 6.2 * len(name)
        if x + width > svg.WIDTH and x > left:
            x, y = left, y + 15
        parts += [svg.dot(x + 4, y - 4, 4, number), svg.text(x + 12, y, name, "c-value")]
        x += width
    return parts, y + 14


def _share_axis(most: float, top: float, bottom: float) -> tuple[svg.Scale, list[str]]:
    """An upright axis of shares from 0 to a little over `most`, with its grid."""
    step = svg.nice(most / 5)
    steps = math.ceil(most / step - 1e-9)
    down = svg.Scale(low=0, high=step * steps, start=bottom, end=top)
    parts: list[str] = []
    for number in range(steps + 1):
        y = down(step * number)
        parts.append(svg.rule(_LEFT, y, _RIGHT, y, "c-grid"))
        parts.append(svg.text(_LEFT - 4, y + 4, f"{100 * step * number:g}%", "c-label", "end"))
    return down, parts


def _bottom_axis(across: svg.Scale, y: float, ticks: Iterable[tuple[float, str]]) -> list[str]:
    parts = [svg.rule(across.start, y, across.end, y, "c-axis")]
    for value, name in ticks:
        parts.append(svg.rule(across(value), y, across(value), y + 4, "c-axis"))
        # Those at the ends stay within the axis.
        anchor = "start" if value <= across.low else "end" if value >= across.high else "middle"
        parts.append(svg.text(across(value), y + 16, name, "c-label", anchor))
    return parts
