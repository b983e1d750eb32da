"""The frontiers of a comparison as a picture: accuracy and margin against the KL from the reference, a line an arm.

Not for: the figures (`frontier.py`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from twdpo.evaluate.compare.frontier import KL, REWARD, Frontier
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
from twdpo.weights_cache.durable import write_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAME = "frontier"
_COLOURS = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY)
_MARKERS = "osD^vP"
#: The largest KL over the smallest, up to which places are as on an even scale.
_MAGNITUDE = 8.0
_DASHES = ("-", "--", ":", "-.")
_PANELS = (
    ("accuracy", "held-out accuracy, %", 100.0),
    ("margin", "held-out margin, nats", 1.0),
    (REWARD, "reward of its own answers", 1.0),
)


def write_picture(folder: Path, found: Frontier, baseline: str, *, title: str) -> tuple[Path, ...]:
    """Draw the frontiers as PNG and SVG into `folder`; nothing without matplotlib. Raises StorageError."""
    if not has_matplotlib():
        return ()
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    arms = list(dict.fromkeys(arm for arm, _ in found.points))
    kls = [metrics[KL].value for metrics in found.points.values()]
    spread = max(kls) / max(min(kls), 1e-300)
    panels = [panel for panel in _PANELS if panel[0] in next(iter(found.points.values()))]
    with plain_style():
        figure = Figure(figsize=(1.6 + 3.7 * len(panels), 4.6), layout="constrained", facecolor="white")
        engine: Any = figure.get_layout_engine()
        engine.set(rect=(0.005, 0.0, 0.99, 0.88))
        figure.text(
            0.012,
            0.975,
            "What is learned, and how far the policy moved for it",
            fontsize=12,
            fontweight="bold",
            va="top",
        )
        figure.text(0.012, 0.92, title, fontsize=9, color=QUIET, va="top", parse_math=False)
        columns = figure.subplots(1, len(panels))
        for axes, (metric, label, factor) in zip(columns, panels, strict=True):
            for place, arm in enumerate(arms):
                _line(axes, found, arm, metric, factor, place, is_baseline=arm == baseline)
            axes.set_xscale("log")
            # A logarithm's own places are few, or too close together, where the KLs are of one magnitude.
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if spread > _MAGNITUDE else MaxNLocator(4))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.set_xlabel("KL from the reference, nats a token")
            axes.set_ylabel(label)
        handles, labels = columns[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right upper", frameon=False)
        settle(figure)
        paths = []
        for kind in ("png", "svg"):
            paths.append(folder / f"{NAME}.{kind}")
            write_file(paths[-1], picture_bytes(figure, kind))
    return tuple(paths)


def _line(axes: Axes, found: Frontier, arm: str, metric: str, factor: float, place: int, *, is_baseline: bool) -> None:
    points = [metrics for (name, _), metrics in found.points.items() if name == arm]
    points.sort(key=lambda each: each[KL].value)
    x = np.array([each[KL].value for each in points])
    y = np.array([each[metric].value for each in points]) * factor
    colour = INK if is_baseline else _COLOURS[(place - 1) % len(_COLOURS)]
    style: Any = {"color": colour, "linewidth": 2.0 if is_baseline else 1.3, "zorder": 3 if is_baseline else 2}
    dashes = _DASHES[max(place - 1, 0) // len(_COLOURS) % len(_DASHES)]
    axes.plot(
        x,
        y,
        dashes,
        marker=_MARKERS[(place + place // len(_MARKERS)) % len(_MARKERS)],
        markersize=4.5,
        label=arm,
        **style,
    )
    if is_baseline:
        low = np.array([each[metric].low for each in points]) * factor
        high = np.array([each[metric].high for each in points]) * factor
        axes.fill_between(x, low, high, color=QUIET, alpha=0.15, linewidth=0, label="its 95 % interval")
