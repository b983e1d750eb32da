"""Contrast as WCAG 2 counts it: all text on every shade, in both themes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.inspect.report.encode import write
from tests.inspect.report.opened import Opened
from tests.inspect.report.samples import make_items

#: Text and its ground, as the browser computes them; grounds are laid over one another up to an opaque one.
COLOURS = """() => {
    const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
    const paint = (colours) => {
        canvas.clearRect(0, 0, 1, 1);
        for (const colour of colours) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }
        return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
    };
    const found = [];
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const node = walker.currentNode.parentElement;
        if (!walker.currentNode.data.trim() || !node.checkVisibility()) continue;
        if (node.closest("script, .unseen, .skip, option")) continue;
        const grounds = [];
        for (let at = node; at; at = at.parentElement) grounds.unshift(getComputedStyle(at).backgroundColor);
        const ground = paint(["#fff", ...grounds]);
        const fill = node.closest("svg") ? getComputedStyle(node).fill : getComputedStyle(node).color;
        found.push({ text: walker.currentNode.data.trim().slice(0, 30) + " ." + node.className, ground,
                     ink: paint(["#fff", ...grounds, fill]) });
    }
    return found;
}"""


def luminance(colour: list[int]) -> float:
    parts = [c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


def contrast(first: list[int], second: list[int]) -> float:
    dark, light = sorted((luminance(first), luminance(second)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_all_text_on_all_shades(look: Callable[..., Opened], tmp_path: Path, theme: str) -> None:
    label = '<svg viewBox="0 0 90 20"><text class="c-label" y="9">a</text></svg>'
    chart = f'<figure class="chart">{label}<figcaption>b</figcaption></figure>'
    opened = look(
        write(tmp_path / "report.html", make_items(6, other=True), charts=chart),
        color_scheme=theme,
        reduced_motion="reduce",
    )
    page = opened.page
    seen = page.evaluate(COLOURS)
    opened.show(1)
    for view in ("a", "b", "difference"):
        page.click(f"[data-name=view] [data-value={view}]")
        # Every shade from none to full, on tokens of either colour and on those that were not judged.
        page.evaluate(
            """() => document.querySelectorAll(".t").forEach((token, i) =>
                token.style.setProperty("--a", (i % 21) / 20))"""
        )
        opened.tip(0, 2)
        seen += page.evaluate(COLOURS)
    page.fill("#search", "nowhere to be found")
    seen += page.evaluate(COLOURS)
    page.click("#to-help")
    seen += page.evaluate(COLOURS)
    tokens = {tuple(each["ground"]) for each in seen if " .t " in each["text"]}
    assert len(tokens) >= 40
    assert len(seen) > 500
    low = {
        each["text"]: round(contrast(each["ink"], each["ground"]), 2)
        for each in seen
        if contrast(each["ink"], each["ground"]) < 4.5
    }
    assert low == {}


def test_weight_is_not_told_by_colour_alone(look: Callable[..., Opened], tmp_path: Path) -> None:
    items = make_items(2)
    opened = look(write(tmp_path / "report.html", items))
    opened.show(1)
    marks = opened.page.evaluate(
        "[...document.querySelectorAll('.side.chosen .t')].map((t) => getComputedStyle(t).boxShadow)"
    )
    for weight, mark in zip(items[1].chosen.weights[29], marks, strict=True):
        thick = next(size for least, size in ((8, 3), (4, 2), (2, 1), (0, 0)) if weight >= least)
        assert (f"0px -{thick}px" in mark) if thick else mark == "none"
