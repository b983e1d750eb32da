"""Draw the README's picture from a real cache: `python docs/pictures.py twdpo-demo/weights_cache`."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import TerminalTheme

from twdpo.inspect.examples import find_example
from twdpo.inspect.views import example_view
from twdpo.weights_cache import WeightsCache

#: Echolocation, not heat vision: a short pair with a plain error.
EXAMPLE = "78414ac5"
THEME = TerminalTheme((250, 250, 247), (40, 40, 40), [(40, 40, 40)] * 8, [(90, 90, 90)] * 8)


def main(cache: str) -> None:
    """Write docs/images/pair.svg."""
    console = Console(record=True, width=104, color_system="truecolor", force_terminal=True, file=io.StringIO())
    with WeightsCache.open(cache) as opened:
        console.print(example_view(find_example(opened, EXAMPLE), opened.layers[-1]))
    svg = console.export_svg(title="twdpo inspect twdpo-demo/weights_cache --example 78414ac5", theme=THEME)
    # The exporter links a font on the web; the reader's own will do.
    svg = re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL)
    folder = Path(__file__).parent / "images"
    folder.mkdir(exist_ok=True)
    (folder / "pair.svg").write_text(svg, "utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
