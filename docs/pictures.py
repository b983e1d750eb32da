"""Draw the pictures of the documentation from real caches of the demo's pairs.

    twdpo annotate --dataset demo --out demo-cache
    twdpo annotate --dataset demo --out demo-facts --judge-template docs/examples/facts.txt
    python docs/pictures.py demo-cache demo-facts

The screenshots need playwright and Chromium in the path.
"""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright
from rich.console import Console
from rich.terminal_theme import TerminalTheme

from twdpo.inspect.examples import find_example
from twdpo.inspect.views import example_view
from twdpo.weights_cache import SideWeights, WeightsCache
from twdpo.weights_cache.picture import draw_pair
from twdpo.weights_cache.transforms import sink_fix

IMAGES = Path(__file__).parent / "images"
#: The five pairs that docs/inspect.md reads.
READ = {"comet": "f58e83b6", "wax": "6e67bde6", "mean": "8275aedf", "yaml": "df12e08d", "ride": "2f550d7c"}
THEME = TerminalTheme((250, 250, 247), (40, 40, 40), [(40, 40, 40)] * 8, [(90, 90, 90)] * 8)


def draw_terminal(cache: WeightsCache) -> None:
    """The README's picture: the terminal view."""
    console = Console(record=True, width=104, color_system="truecolor", force_terminal=True, file=io.StringIO())
    console.print(example_view(find_example(cache, READ["comet"]), cache.layers[-1:], sink_fixed=True))
    svg = console.export_svg(
        title=f"twdpo inspect twdpo-demo/weights_cache --example {READ['comet']} --sink-fix", theme=THEME
    )
    # The exporter links a font on the web; the reader's own will do.
    svg = re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL)
    (IMAGES / "pair.svg").write_text(svg, "utf-8")


def draw_read(cache: WeightsCache) -> None:
    """The pairs that are read in the documentation, with the weights that train: after the sink fix."""

    def fixed(side: SideWeights) -> SideWeights:
        return replace(side, weights={layer: sink_fix(weights) for layer, weights in side.weights.items()})

    for name, key in READ.items():
        found = find_example(cache, key)
        assert found.pair is not None
        row = replace(found.row, chosen=fixed(found.row.chosen), rejected=fixed(found.row.rejected))
        (IMAGES / f"read-{name}.svg").write_text(draw_pair(found.pair, row, cache.layers[-1]), "utf-8")


def photograph(cache: str, other: str) -> None:
    """The report at both widths, in both themes."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as running:
        file = Path(folder) / "report.html"
        command = [sys.executable, "-m", "twdpo", "inspect", cache, "--html", str(file), "--compare", other]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        browser = running.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])

        def shot(name: str, address: str, width: int, height: int, **options: Any) -> Any:
            page = browser.new_page(viewport={"width": width, "height": height}, **options)
            page.goto(f"{file.as_uri()}#{address}")
            page.wait_for_selector("html[data-texts=read]")
            page.wait_for_timeout(300)
            if "weights" in address and width > 1000:
                page.locator(".side.rejected .t", has_text="far").first.hover()
                page.wait_for_timeout(200)
            page.screenshot(path=IMAGES / f"report-{name}.png")
            page.close()

        shot("overview", "show=overview", 1440, 960, color_scheme="light")
        pair = f"example={READ['comet']}&weights=fixed"
        shot("pair", pair, 1440, 820, color_scheme="dark")
        shot("compare", f"example={READ['comet']}&compare=difference", 1440, 820, color_scheme="light")
        shot("phone", pair, 390, 844, color_scheme="light", device_scale_factor=2)
        shot("phone-dark", pair, 390, 844, color_scheme="dark", device_scale_factor=2)
        browser.close()


def main(cache: str, other: str) -> None:
    """Draw all of them."""
    IMAGES.mkdir(exist_ok=True)
    with WeightsCache.open(cache) as opened:
        draw_terminal(opened)
        draw_read(opened)
    photograph(cache, other)


if __name__ == "__main__":
    main(*sys.argv[1:])
