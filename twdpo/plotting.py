"""The house style of pictures made with matplotlib (extra `plots`), and their bytes.

Drawn in memory: no display, no pyplot, no style of the user's. The same figures give the same SVG, byte for byte.
Not for: what is drawn (`pipeline/train/curves.py`, `inspect/plots.py`).
"""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, QUIET, GRID = "#222222", "#777777", "#E6E6E6"
#: Of Okabe and Ito's palette, which all kinds of colour vision tell apart, also in print.
BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9"

_STYLE: Any = {
    "font.family": ["DejaVu Sans"],
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": "#BBBBBB",
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "svg.hashsalt": "twdpo",
    "svg.fonttype": "path",
}


def has_matplotlib() -> bool:
    """Whether matplotlib is installed; it is not imported."""
    return importlib.util.find_spec("matplotlib") is not None


@contextmanager
def plain_style() -> Iterator[None]:
    """matplotlib's own defaults with ours over them, whatever the user has set; put back afterwards."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def settle(figure: Figure) -> None:
    """Lay `figure` out for good, its panels at rounded places. To be called within `plain_style`, before its bytes.

    The solver that places panels is off by a last bit now and then, from which SVG derives names.
    """
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes in figure.axes:
        left, bottom, width, height = (round(value, 5) for value in axes.get_position(original=True).bounds)
        axes.set_position((left, bottom, width, height))


def picture_bytes(figure: Figure, kind: str) -> bytes:
    """The file of a figure, `kind` png or svg. To be called within `plain_style`, as the drawing."""
    # Neither a date nor a version, so that the same figures give the same file.
    metadata = {"Software": None} if kind == "png" else {"Date": None, "Creator": None}
    content = io.BytesIO()
    figure.savefig(content, format=kind, dpi=160, metadata=metadata)
    return content.getvalue()
