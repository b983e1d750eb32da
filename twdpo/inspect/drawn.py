"""What plots and charts of a cache have in common: which layers and bins are drawn, and how things are called.

Not for: the drawing itself (`plots.py` with matplotlib, `charts.py` as inline SVG).
"""

from __future__ import annotations

import math

import numpy as np

from twdpo.inspect.figures import AGREEMENT_EDGES, WEIGHT_EDGES, Counts, Doubles, Figures

#: Layers that one plot can tell apart.
SHOWN_LAYERS = 6


def left_out(figures: Figures) -> dict[str, str]:
    """The plots that cannot be drawn of `figures`, each with the reason."""
    missing = {}
    if not figures.with_text:
        missing["token-classes"] = "the texts of the pairs are not there"
    if not figures.agreement.any():
        missing["order-agreement"] = "the cache does not say how the two orders agree"
    if not figures.judged:
        missing |= dict.fromkeys(("margin-effective", "verdicts"), "the cache holds no probabilities of a judge")
    return missing


def shown_layers(figures: Figures) -> tuple[int, ...]:
    """Places in `figures.layers` of the layers to draw: the default layer first, then others, evenly spread."""
    default = figures.layers.index(figures.default_layer)
    others = [place for place in range(len(figures.layers)) if place != default]
    most = min(len(others), SHOWN_LAYERS - 1)
    spread = np.linspace(0, len(others) - 1, most).round().astype(int).tolist() if most else []
    return (default, *(others[place] for place in spread))


def shown_classes(figures: Figures) -> Counts:
    """The token classes that occur, by their mean weight in the default layer after the sink fix, lightest first."""
    used = np.flatnonzero(figures.class_tokens > 0)
    weights = figures.class_weights[1, shown_layers(figures)[0], used]
    order: Counts = used[np.argsort(weights, kind="stable")]
    return order


def weight_bins(figures: Figures) -> tuple[slice, Doubles]:
    """The bins of weights from the first to the last that a shown layer uses, and those from 1/4 to 4; their borders.

    An open bin is drawn as wide as the others.
    """
    used = np.flatnonzero(figures.weight_tokens[list(shown_layers(figures))].sum(axis=0) > 0)
    near = np.searchsorted(WEIGHT_EDGES, (1 / 4, 4.0)) + 1
    first, last = min(int(used[0]), int(near[0])), max(int(used[-1]) + 1, int(near[1]))
    step = WEIGHT_EDGES[1] / WEIGHT_EDGES[0]
    borders = np.concatenate([[WEIGHT_EDGES[0] / step], WEIGHT_EDGES, [WEIGHT_EDGES[-1] * step]])
    return slice(first, last), borders[first : last + 1]


def open_ends(bins: slice) -> str:
    """What an outermost bin holds besides, where it is open."""
    ends = [f"below {power(float(WEIGHT_EDGES[0]))} in the first bin"] * (bins.start == 0)
    ends += [f"{WEIGHT_EDGES[-1]:g} and above in the last"] * (bins.stop == len(WEIGHT_EDGES) + 1)
    return ", ".join(ends)


def agreement_bins(figures: Figures) -> tuple[slice, Doubles]:
    """The bins of the agreement from the first to the last that is used, rounded to tenths, and their borders."""
    used = np.flatnonzero(figures.agreement.any(axis=0))
    bins = slice(int(used[0]) // 4 * 4, int(used[-1]) // 4 * 4 + 4)
    return bins, AGREEMENT_EDGES[bins.start : bins.stop + 1]


def quadrants(figures: Figures) -> dict[str, float]:
    """The share of the judged pairs by what the judge preferred in the two orders; even counts for the chosen answer.

    In the order in which they lie in the plot: upper left, upper right, lower left, lower right.
    """
    half = len(figures.verdicts) // 2
    first, second = figures.verdicts[half:], figures.verdicts[:half]
    counts = {
        "first twice": first[:, :half].sum(),
        "chosen twice": first[:, half:].sum(),
        "rejected twice": second[:, :half].sum(),
        "second twice": second[:, half:].sum(),
    }
    return {name: float(count) / figures.judged for name, count in counts.items()}


def layer_name(figures: Figures, place: int) -> str:
    """What a layer is called."""
    return f"layer {figures.layers[place]}"


def power(value: float) -> str:
    """A power of two as readers know it: 1/8, 1, 32."""
    return f"1/{1 / value:g}" if value < 1 else f"{value:g}"


def many(count: int, name: str) -> str:
    """So many of what is called `name`."""
    return f"{count:,} {name}{'s' * (count != 1)}"


def percent(share: float) -> str:
    """A share in percent, with a digit after the point where it is small."""
    return f"{share:.0%}" if share >= 0.0995 or share == 0 else f"{share:.1%}" if share >= 0.0005 else "< 0.1%"


def caption(figures: Figures) -> str:
    """What a figure is counted over."""
    several = len(figures.layers) - len(shown_layers(figures))
    rest = f"; {len(shown_layers(figures))} of {len(figures.layers)} layers" if several else ""
    return f"{many(figures.pairs, 'pair')}, {many(figures.tokens, 'judged token')}{rest}"


def log_range(values: Doubles) -> tuple[float, float]:
    """The range of a logarithmic axis for mean weights, at least from 1/2 to 2; zeros are left out."""
    known = values[np.isfinite(values) & (values > 0)]
    low, high = float(known.min(initial=2**-0.5)), float(known.max(initial=2**0.5))
    low, high = math.floor(2 * math.log2(low) - 0.3) / 2, math.ceil(2 * math.log2(high) + 0.3) / 2
    return 2.0**low, 2.0**high


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of two from `low` to `high`: each, or every second or more where there are many; with 1 among them."""
    exponents = range(math.ceil(math.log2(low)), math.floor(math.log2(high)) + 1)
    step = 1 + len(exponents) // 12
    return [2.0**exponent for exponent in exponents if exponent % step == 0]
