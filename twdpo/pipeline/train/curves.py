"""The picture of a run: loss, weighted margin, weighted accuracy and learning rate over the steps, as PNG and SVG.

The same records give the same SVG, byte for byte. Not for: the figures themselves (`metrics.py`), or the style
(`twdpo/plotting.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twdpo.pipeline.train.metrics import Record
from twdpo.plotting import BLUE, QUIET, VERMILION, has_matplotlib, picture_bytes, plain_style
from twdpo.weights_cache.durable import write_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PICTURES = ("curves.png", "curves.svg")
INSTALL = "no curves were drawn, since matplotlib is not installed; pip install 'twdpo[plots]'"

_TRAINING, _HELD_OUT = BLUE, VERMILION
#: From so many points on a mean over a part of them is drawn, and the points themselves faintly.
_SMOOTHED_FROM, _SMOOTHED_PART = 40, 25

_MARGIN, _ACCURACY = "rewards/weighted_margins", "rewards/weighted_accuracies"


def write_curves(
    out: Path,
    records: Sequence[Record],
    *,
    title: str,
    best: int | None = None,
    untrained: float | None = math.log(2),
) -> bool:
    """Draw the records of a run into `out`; False where matplotlib is not installed. `best`: the best checkpoint.

    untrained: the loss of a policy that is its reference, None where none takes part. Raises StorageError.
    """
    if not has_matplotlib():
        return False
    with plain_style():
        figure = _figure(records, title, best, untrained)
        for name in PICTURES:
            write_file(out / name, picture_bytes(figure, name.rpartition(".")[2]))
    return True


def _figure(records: Sequence[Record], title: str, best: int | None, untrained: float | None = math.log(2)) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    training = [record for record in records if "loss" in record]
    heldout = [record for record in records if "eval_loss" in record]
    figure = Figure(figsize=(8, 8.2), layout="constrained", facecolor="white")
    loss, margin, accuracy, rate = figure.subplots(4, 1, sharex=True, height_ratios=(3, 3, 3, 1))
    figure.suptitle(title, fontsize=11.5, fontweight="bold", x=0.01, ha="left")

    if untrained is not None:
        name = "log 2" if untrained == math.log(2) else f"{untrained:.4g}"
        label = f"{name}: no preference learnt"
        loss.axhline(untrained, color=QUIET, linewidth=0.9, linestyle=(0, (4, 3)), label=label)
    _curves(loss, training, heldout, "loss", best)
    loss.set_ylabel("loss")
    margin.axhline(0.0, color=QUIET, linewidth=0.9, linestyle=(0, (4, 3)))
    _curves(margin, training, heldout, _MARGIN, best)
    margin.set_ylabel("weighted margin")
    accuracy.axhline(0.5, color=QUIET, linewidth=0.9, linestyle=(0, (4, 3)))
    _curves(accuracy, _decided(training), _decided(heldout), _ACCURACY, best)
    accuracy.set_ylabel("weighted accuracy")
    accuracy.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    rate.plot(*_points(training, "learning_rate"), color=QUIET, linewidth=1.2)
    rate.set_ylabel("rate")
    rate.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    rate.set_ylim(bottom=0.0)
    rate.set_xlabel("optimizer step")
    rate.xaxis.set_major_locator(MaxNLocator(integer=True))

    # Above the panels, so that no curve runs through it.
    loss.legend(
        *_ordered(loss, 0 if untrained is None else 1),
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
        ncols=4,
        frameon=False,
        borderaxespad=0.2,
    )
    figure.align_ylabels()
    return figure


def _curves(axes: Axes, training: Sequence[Record], heldout: Sequence[Record], name: str, best: int | None) -> None:
    steps, values = _points(training, name)
    line: dict[str, Any] = {"color": _TRAINING, "linewidth": 1.6, "label": "training"}
    if len(steps) >= _SMOOTHED_FROM:
        axes.plot(steps, values, color=_TRAINING, linewidth=0.7, alpha=0.3)
        width = len(steps) // _SMOOTHED_PART
        axes.plot(steps, _smooth(values, width), **line | {"label": f"training, mean over {2 * width + 1} lines"})
    else:
        axes.plot(steps, values, marker="o", markersize=2.5, **line)
    steps, values = _points(heldout, f"eval_{name}")
    axes.plot(steps, values, color=_HELD_OUT, linewidth=1.6, marker="D", markersize=4.5, label="held out")
    if best in steps:
        at = values[steps.index(best)]
        axes.plot(
            [best],
            [at],
            "o",
            markersize=12,
            markerfacecolor="none",
            markeredgecolor=_HELD_OUT,
            label="best checkpoint",
        )


def _points(records: Sequence[Record], name: str) -> tuple[list[int], list[float]]:
    found = [(int(record["step"]), record[name]) for record in records if math.isfinite(record.get(name, math.nan))]
    return [step for step, _ in found], [value for _, value in found]


def _decided(records: Sequence[Record]) -> list[Record]:
    """Without those from before the first change of the policy: all margins are 0 then, and none right or wrong."""
    return [r for r in records if any(r.get(f"{prefix}{_MARGIN}", 0.0) != 0.0 for prefix in ("", "eval_"))]


def _smooth(values: Sequence[float], width: int) -> list[float]:
    """The mean over `width` values to each side; near the ends over those that there are."""
    parts = (values[max(0, i - width) : i + width + 1] for i in range(len(values)))
    return [sum(part) / len(part) for part in parts]


def _ordered(axes: Axes, lines: int) -> tuple[list[Any], list[str]]:
    """The legend's entries: the curves first, the line that they are compared with, if there is one, last."""
    handles, labels = axes.get_legend_handles_labels()
    return handles[lines:] + handles[:lines], labels[lines:] + labels[:lines]
