"""Plots of a cache as PNG and SVG, made with matplotlib (extra `plots`).

Titles say what is drawn, not what it means. The same figures give the same files, byte for byte. Not for: the figures
themselves (`figures.py`), or the charts of the HTML report (`charts.py`), which need no matplotlib.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from twdpo.errors import UsageError
from twdpo.inspect import drawn
from twdpo.inspect.figures import FIRST_TOKENS, POSITIONS, VERDICT_EDGES, Doubles, Figures
from twdpo.inspect.token_classes import CLASSES
from twdpo.plotting import (
    BLUE,
    GREEN,
    INK,
    ORANGE,
    PURPLE,
    QUIET,
    SKY,
    VERMILION,
    has_matplotlib,
    picture_bytes,
    plain_style,
    settle,
)
from twdpo.weights_cache.durable import make_folder, write_file
from twdpo.weights_cache.picture import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: The default layer's first.
_COLOURS = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY)
_WIDTH = 8.0
#: Inches above and below the panels, for title and caption.
_HEAD, _FOOT = 0.62, 0.32
_DASHED: Any = {"color": QUIET, "linewidth": 0.9, "linestyle": (0, (4, 3))}
_KEY: Any = {"loc": "lower left", "bbox_to_anchor": (-0.012, 1.0), "frameon": False, "borderaxespad": 0.2}
_FIXES = ("as stored", "after the sink fix")


def write_plots(figures: Figures, folder: Path, title: str) -> list[Path]:
    """Draw every plot that `figures` allow into `folder`, each as PNG and SVG; the paths, in the order drawn.

    title: what the figures are of, such as the cache's name and how many of its pairs; it stands under the title of
    each plot. Plots of what the cache does not hold are left out: see `drawn.left_out`. Raises UsageError where
    matplotlib is not installed, StorageError, or CacheError where `folder` is a file.
    """
    if not has_matplotlib():
        raise UsageError("--plots needs the package matplotlib; install it with: pip install 'twdpo[plots]'")
    make_folder(folder)
    missing = drawn.left_out(figures)
    paths: list[Path] = []
    with plain_style(), warnings.catch_warnings():
        # A name may hold characters that the font has not; they are drawn as boxes.
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        for name, draw in _PLOTS.items():
            if name not in missing:
                figure = draw(figures, visible(title))
                settle(figure)
                for kind in ("png", "svg"):
                    paths.append(folder / f"{name}.{kind}")
                    write_file(paths[-1], picture_bytes(figure, kind))
    return paths


def _sheet(height: float, title: str, about: str, caption: str, *, width: float = _WIDTH) -> Figure:
    """An empty figure with its texts; what is drawn on it keeps between them."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    engine: Any = figure.get_layout_engine()
    engine.set(rect=(0.005, _FOOT / height, 0.985, 1 - (_HEAD + _FOOT) / height), wspace=0.06)
    texts: tuple[tuple[float, str, str, Any], ...] = (
        (0.12, "top", title, {"fontsize": 12, "fontweight": "bold"}),
        (0.37, "top", about, {"fontsize": 9, "color": QUIET}),
        (height - 0.1, "bottom", caption, {"fontsize": 8, "color": QUIET}),
    )
    for down, align, text, style in texts:
        # Names are no formulas.
        figure.text(0.1 / width, 1 - down / height, text, va=align, parse_math=False, **style)
    return figure


def _position(figures: Figures, about: str) -> Figure:
    figure = _sheet(4.3, "Mean weight along the answer", about, drawn.caption(figures))
    middles = (np.arange(POSITIONS) + 0.5) * 100 / POSITIONS
    _before_and_after(figure, figures, middles, figures.position, "position in the answer (% of its tokens)")
    for axes in figure.axes:
        axes.set_xlim(0, 100)
        axes.set_xticks(range(0, 101, 20))
    return figure


def _first_tokens(figures: Figures, about: str) -> Figure:
    counts = figures.first_counts
    shown = int(np.count_nonzero(counts))
    caption = f"{drawn.caption(figures)}; number {shown}: {drawn.many(int(counts[shown - 1]), 'answer')}"
    figure = _sheet(4.3, f"Mean weight of the first {FIRST_TOKENS} tokens", about, caption)
    means = figures.first_tokens[..., :shown]
    _before_and_after(figure, figures, np.arange(1, shown + 1), means, "number of the token in the answer")
    for axes in figure.axes:
        axes.set_xlim(0.3, shown + 0.7)
        axes.set_xticks([1, *range(8, shown + 1, 8)] if shown >= 8 else range(1, shown + 1))
    return figure


def _before_and_after(figure: Figure, figures: Figures, x: Any, means: Doubles, label: str) -> None:
    """Two panels with a line for each layer; means: [2, L, points]."""
    panels = figure.subplots(1, 2, sharey=True)
    layers = drawn.shown_layers(figures)
    _log_axis(panels[0], "y", *drawn.log_range(means[:, list(layers)]))
    for axes, values, name in zip(panels, means, _FIXES, strict=True):
        axes.axhline(1.0, **_DASHED)
        for series, place in reversed(list(enumerate(layers))):
            size = 1.3 if series else 2.4
            axes.plot(x, values[place], "o-", color=_COLOURS[series], linewidth=size, markersize=1.2 + size)
        axes.set_title(name, loc="left", fontsize=9.5)
        axes.set_xlabel(label)
    panels[0].set_ylabel("mean weight (1 = even)")
    _end_labels(
        panels[1],
        [means[1, place][~np.isnan(means[1, place])][-1] for place in layers],
        [drawn.layer_name(figures, p) for p in layers],
    )


def _token_classes(figures: Figures, about: str) -> Figure:
    caption = f"{drawn.caption(figures)}; {drawn.many(figures.with_text, 'pair')} with text; function words: English"
    figure = _sheet(4.6, "Weight by class of token, after the sink fix", about, caption)
    order, layers = drawn.shown_classes(figures), drawn.shown_layers(figures)
    means, shares = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    rows = np.arange(len(order))
    means.axvline(1.0, **_DASHED)
    _log_axis(means, "x", *drawn.log_range(figures.class_weights[1, list(layers)][:, order]))
    for series, place in reversed(list(enumerate(layers))):
        size = {"s": 26, "zorder": 2} if series else {"s": 64, "zorder": 3}
        label, weights = drawn.layer_name(figures, place), figures.class_weights[1, place, order]
        means.scatter(weights, rows, color=_COLOURS[series], edgecolors="white", linewidths=0.5, label=label, **size)
    means.set_yticks(rows, [CLASSES[kind] for kind in order])
    means.tick_params(axis="y", length=0, labelcolor=INK)
    means.set_xlabel("mean weight (1 = even)")
    handles, labels = means.get_legend_handles_labels()
    means.legend(handles[::-1], labels[::-1], ncols=3, columnspacing=1.2, handletextpad=0.2, fontsize=8.5, **_KEY)
    bars = (
        (0.19, figures.class_tokens[order] / figures.class_tokens.sum(), "#BBBBBB", "of the tokens (number)"),
        (
            -0.19,
            figures.class_mass[1, layers[0], order],
            BLUE,
            f"of the weight, {drawn.layer_name(figures, layers[0])}",
        ),
    )
    for up, values, colour, label in bars:
        shares.barh(rows + up, 100 * values, 0.34, color=colour, label=label)
        for row, value in zip(rows, values, strict=True):
            number = f" ({figures.class_tokens[order[row]]:,})" if up > 0 else ""
            at: Any = {"xytext": (3, 0), "textcoords": "offset points", "va": "center", "fontsize": 7.5}
            shares.annotate(drawn.percent(value) + number, (100 * value, row + up), **at)
    shares.set_xlabel("share (%)")
    shares.set_xlim(0, 135 * max(values.max() for _, values, _, _ in bars))
    shares.grid(axis="y", visible=False)
    shares.tick_params(axis="y", length=0)
    shares.legend(fontsize=8.5, **_KEY)
    return figure


def _distribution(figures: Figures, about: str) -> Figure:
    layers = drawn.shown_layers(figures)
    bins, edges = drawn.weight_bins(figures)
    ends = drawn.open_ends(bins)
    caption = f"{drawn.caption(figures)}; two bins to a doubling{'; ' if ends else ''}{ends}"
    figure = _sheet(1.75 + 0.85 * len(layers), "Distribution of the weights, as stored", about, caption)
    panels = figure.subplots(len(layers), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for axes, place in zip(panels, sorted(layers), strict=True):
        colour = _COLOURS[layers.index(place)]
        axes.stairs(100 * figures.weight_tokens[place, bins], edges, fill=True, color="#C8C8C8", label="of the tokens")
        axes.stairs(100 * figures.weight_mass[place, bins], edges, color=colour, linewidth=1.8, label="of the weight")
        axes.axvline(1.0, **_DASHED)
        corner = {"transform": axes.transAxes, "va": "top"}
        axes.text(0.008, 0.94, drawn.layer_name(figures, place), color=colour, fontweight="bold", **corner)
        effective = f"effective tokens {figures.effective[place]:.0%} of the length"
        axes.text(0.992, 0.94, effective, ha="right", fontsize=8.5, color=QUIET, **corner)
    panels[0].legend(ncols=2, **_KEY)
    # Room for the names above the bars.
    panels[0].set_ylim(0, 1.25 * panels[0].get_ylim()[1])
    _log_axis(panels[-1], "x", edges[0], edges[-1])
    panels[-1].set_xlabel("weight (1 = even)")
    figure.supylabel("share (%)", fontsize=9.5)
    return figure


def _order_agreement(figures: Figures, about: str) -> Figure:
    counts = figures.agreement.sum(axis=1)
    caption = f"{counts[0]:,} chosen and {counts[1]:,} rejected answers; dashed: means"
    figure = _sheet(3.9, "Weight that both orders of the answers put on the same tokens", about, caption)
    axes = figure.subplots()
    bins, edges = drawn.agreement_bins(figures)
    for side, (name, colour) in enumerate((("chosen", BLUE), ("rejected", VERMILION))):
        if counts[side]:
            shares, mean = 100 * figures.agreement[side, bins] / counts[side], figures.agreement_means[side]
            style: Any = {"fill": True, "color": "#A9CCE3"} if side == 0 else {"color": colour, "linewidth": 1.8}
            axes.stairs(shares, 100 * edges, label=f"{name}, mean {mean:.1%}", **style)
            axes.axvline(100 * mean, color=colour, linewidth=1.2, linestyle=(0, (4, 3)))
    axes.legend(ncols=2, **_KEY)
    axes.set_xlim(100 * edges[0], 100 * edges[-1])
    axes.set_ylim(0, None)
    axes.set_xlabel("share of an answer's weight that lies on the same tokens in both orders (%)")
    axes.set_ylabel("answers (%)")
    return figure


def _margin_effective(figures: Figures, about: str) -> Figure:
    dots = "" if len(figures.margins) == figures.judged else f", {len(figures.margins):,} of them drawn"
    caption = (
        f"{drawn.many(figures.judged, 'judged pair')}{dots}; "
        f"{drawn.many(len(figures.margin_counts), 'group')} by margin, about as many pairs in each"
    )
    figure = _sheet(4.3, f"Judge's margin and effective tokens, layer {figures.default_layer}", about, caption)
    axes = figure.subplots()
    axes.axvline(0.0, **_DASHED)
    dot: Any = {"s": 12, "color": BLUE, "alpha": 0.35, "linewidths": 0, "clip_on": False, "label": "a pair"}
    axes.scatter(figures.margins, 100 * figures.margin_effective, **dot)
    low, median, high = 100 * figures.margin_effects[:, 1:].T
    axes.vlines(figures.margin_means, low, high, color=VERMILION, linewidth=1.8)
    line: Any = {"color": VERMILION, "linewidth": 1.2, "markersize": 6, "markeredgecolor": "white"}
    axes.plot(figures.margin_means, median, "o-", label="median and quartiles of a group of pairs", **line)
    axes.legend(ncols=2, **_KEY)
    reach = 1.08 * max(0.01, float(np.abs(figures.margin_edges).max()))
    axes.set_xlim(-reach, reach)
    axes.set_ylim(0, 100)
    axes.set_xlabel("mean probability of the chosen answer over both orders, less one half")
    axes.set_ylabel("effective tokens (% of the length)")
    return figure


def _verdicts(figures: Figures, about: str) -> Figure:
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.ticker import MaxNLocator

    caption = f"{drawn.many(figures.judged, 'judged pair')}; white: none; dotted: the same probability in both orders"
    figure = _sheet(5.8, "What the judge prefers in both orders", about, caption, width=6.8)
    axes = figure.subplots()
    colours = LinearSegmentedColormap.from_list("twdpo", ["#CFE4F3", BLUE, "#00243D"])
    counts = np.ma.masked_equal(figures.verdicts, 0)
    axes.plot([0, 1], [0, 1], color=QUIET, linewidth=0.9, linestyle=":")
    mesh = axes.pcolormesh(
        VERDICT_EDGES, VERDICT_EDGES, counts, cmap=colours, vmin=0, edgecolors="white", linewidth=0.5
    )
    axes.plot([0, 1], [0.5, 0.5], **_DASHED)
    axes.plot([0.5, 0.5], [0, 1], **_DASHED)
    # Above and below the field, so that no cell lies under them.
    corners = ((0, 1.04, "left"), (1, 1.04, "right"), (0, -0.04, "left"), (1, -0.04, "right"))
    for (x, y, align), (name, share) in zip(corners, drawn.quadrants(figures).items(), strict=True):
        axes.text(x, y, f"{name} {drawn.percent(share)}", ha=align, va="center", fontsize=8.5)
    axes.set_aspect("equal")
    axes.grid(visible=False)
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.09, 1.09), xticks=np.linspace(0, 1, 6), yticks=np.linspace(0, 1, 6))
    axes.spines.left.set_bounds(0, 1)
    axes.set_xlabel("probability of the chosen answer when it stands second")
    axes.set_ylabel("probability of the chosen answer when it stands first")
    bar: Any = figure.colorbar(mesh, ax=axes, label="pairs", shrink=0.6, ticks=MaxNLocator(integer=True, nbins=6))
    bar.outline.set_visible(False)
    return figure


def _log_axis(axes: Axes, name: str, low: float, high: float) -> None:
    """Make the axis called `name` logarithmic from `low` to `high`, with ticks that are powers of two."""
    ticks = drawn.log_ticks(low, high)
    axis = {"x": axes.xaxis, "y": axes.yaxis}[name]
    axes.set(**{f"{name}scale": "log", f"{name}lim": (low, high)})
    axis.set_ticks(ticks, labels=[drawn.power(tick) for tick in ticks])
    axis.set_ticks([], minor=True)


def _end_labels(axes: Axes, ends: Sequence[float], names: Sequence[str]) -> None:
    """Names of lines to the right of their ends, moved apart where they would touch."""
    low, high = np.log2(axes.get_ylim())
    places = [(np.log2(end) - low) / (high - low) if end > 0 else 0.0 for end in ends]
    order = sorted(range(len(ends)), key=lambda series: places[series])
    for _ in range(50):
        for below, above in pairwise(order):
            lacking = max(0.0, 0.062 - (places[above] - places[below])) / 2
            places[below] -= lacking
            places[above] += lacking
    for series, name in enumerate(names):
        style: Any = {"color": _COLOURS[series], "fontweight": "normal" if series else "bold", "fontsize": 8.5}
        axes.text(1.015, places[series], name, transform=axes.transAxes, va="center", **style)


_PLOTS: dict[str, Callable[[Figures, str], Figure]] = {
    "position": _position,
    "position-first-tokens": _first_tokens,
    "token-classes": _token_classes,
    "distribution": _distribution,
    "order-agreement": _order_agreement,
    "margin-effective": _margin_effective,
    "verdicts": _verdicts,
}
#: The names of the files, in the order in which they are drawn.
PLOTS = tuple(_PLOTS)
