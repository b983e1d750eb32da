"""Whatever a data set holds shows as text, and a script that gets into the page does not run."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import pytest

from tests.inspect.report.encode import Item, Side, page, scripts, write
from tests.inspect.report.opened import Opened
from twdpo.weights_cache.picture import visible

Look = Callable[..., Opened]

HOSTILE = {
    "script": "<script>window.ran = 1</script><img src=x onerror='window.ran = 1'>",
    "end": "</script><script>window.ran = 1</script><!-- <script> -->]]>",
    "entities": "&lt;b&gt; &amp;amp; &#60;script&#62; &nbsp;",
    "braces": "{{report}} {{blocks}} {{script}} ${window.ran = 1} {% raw %} $title",
    "direction": "ab\u202ecba\u202c \u2066x\u2069 \u200f\u061c مرحبا",
    "controls": "\x00nul \x07bell \x1b[31mred\x1b[0m \x7f tab\there\rreturn \u2028line \u2029paragraph \ufeff",
    "marks": "\u0301\u0489 e" + "\u0301" * 60 + " \u200d\u200c",
    "private": "\ue000 \U000f0000 \uffff \u0378",
    "lines": "one\n\ntwo\n",
}


def hostile_item(number: int, text: str) -> Item:
    """A pair that is hostile in every field."""
    starts = list(range(0, len(text), 3))
    ends = [min(at + 3, len(text)) for at in starts]
    side = Side(text=text, starts=starts, ends=ends, weights={29: [1.0] * len(starts)})
    return Item(prompt=[(text, text)], chosen=side, rejected=side, hash=f"{number:032x}", number=number, title=text)


def test_hostile_texts_show_as_text(look: Look, tmp_path: Path) -> None:
    items = [hostile_item(number, text) for number, text in enumerate(HOSTILE.values())]
    recipe = {"judge_template": HOSTILE["end"], HOSTILE["script"]: HOSTILE["braces"]}
    opened = look(write(tmp_path / "report.html", items, name=HOSTILE["script"], judge=HOSTILE["end"], recipe=recipe))
    for number, text in enumerate(HOSTILE.values()):
        opened.show(number)
        assert opened.page.locator(".side.chosen .text").evaluate("box => box.textContent") == visible(text)
        assert opened.page.locator(".turn-text").evaluate("box => box.textContent") == visible(text)
        opened.page.locator(".side.rejected .t").first.hover()
        assert opened.page.is_visible("#tip")
    opened.page.click("#to-overview")
    assert HOSTILE["braces"] in opened.page.locator("#recipe").evaluate("box => box.textContent")
    for typed in HOSTILE.values():
        opened.page.fill("#search", re.sub(r"[\x00-\x1f]", "", typed))
    assert opened.page.evaluate("window.ran") is None
    assert opened.page.locator("#pair script, #pair img, #pair b[style]").count() == 0


def test_megabyte_of_one_word_neither_freezes_nor_breaks_the_page(look: Look, tmp_path: Path) -> None:
    text = "a" * 1_000_000
    side = Side(text=text, starts=[0, 4], ends=[4, 9], weights={29: [1.5, 0.5]})
    item = Item(prompt=[("user", text)], chosen=side, rejected=side, hash="0" * 32, number=0, title=text[:160])
    opened = look(write(tmp_path / "report.html", [item]), width=390, height=844)
    opened.page.evaluate("window.began = performance.now()")
    opened.show(0)
    assert (
        opened.page.evaluate("document.body.getBoundingClientRect().width && performance.now() - window.began") < 1500
    )
    for node in ("document.documentElement", "document.getElementById('pair')"):
        assert opened.page.evaluate(f"{node}.scrollWidth <= {node}.clientWidth")
    assert "1,000,000" in opened.page.locator(".side.chosen .show-all").inner_text()
    opened.page.locator(".side.chosen .show-all").click()
    assert opened.page.locator(".side.chosen .text").evaluate("box => box.textContent.length") == len(text)


def test_policy_stops_a_script_and_a_style_that_get_in(look: Look, tmp_path: Path) -> None:
    opened = look(write(tmp_path / "report.html", [hostile_item(0, "text")]))
    opened.expected = ("Content Security Policy",)
    opened.page.evaluate(
        """() => {
            const script = document.createElement("script");
            script.textContent = "window.ran = 1";
            const image = document.createElement("img");
            image.setAttribute("onerror", "window.ran = 1");
            image.src = "data:,";
            const link = document.createElement("script");
            link.src = "https://example.org/script.js";
            const styled = document.createElement("p");
            styled.setAttribute("style", "color: rgb(1, 2, 3)");
            styled.id = "styled";
            document.body.append(script, image, link, styled);
        }"""
    )
    opened.page.wait_for_timeout(100)
    assert opened.page.evaluate("window.ran") is None
    assert opened.page.evaluate("getComputedStyle(document.getElementById('styled')).color") != "rgb(1, 2, 3)"
    assert len([text for text in opened.problems if "Content Security Policy" in text]) >= 3


def test_code_makes_no_markup_and_runs_no_text() -> None:
    code = scripts()
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|\bFunction\(|setHTML|DOMParser", code
    )
    assert not re.search(
        r"</script|<!--|</style", code + (files("twdpo.inspect") / "report/report.css").read_text("utf-8")
    )
    template = (files("twdpo.inspect") / "report/report.html").read_text("utf-8")
    assert not re.search(r"\son\w+=|\sstyle=|https?://(?!www\.w3\.org/2000/svg)", template)
    assert sorted(re.findall(r"\{\{(\w+)\}\}", template)) == sorted(
        ["title", "csp", "style", "summary", "charts", "report", "blocks", "script"]
    )


def test_files_stay_readable() -> None:
    folder = files("twdpo.inspect") / "report"
    lengths = {
        file.name: len(file.read_text("utf-8").splitlines())
        for file in folder.iterdir()
        if file.name[-3:] in {".js", "css"}
    }
    assert len(lengths) > 5
    assert {name: n for name, n in lengths.items() if n > 350} == {}


@pytest.mark.parametrize("broken", ["base64", "deflate", "json"])
def test_damaged_block_is_named_and_the_rest_works(look: Look, tmp_path: Path, broken: str) -> None:
    items = [hostile_item(number, f"text {number}") for number in range(2)]
    text = page(items, block_size=1)
    block = re.search(r'id="block-0">([^<]+)<', text)
    assert block is not None
    damaged = {"base64": "§§§", "deflate": "AAAA", "json": "Y2AAAA=="}[broken]
    path = tmp_path / "report.html"
    path.write_text(text.replace(block[1], damaged), "utf-8")
    opened = look(path.as_uri(), wait=False)
    opened.page.wait_for_selector("html[data-texts=damaged]")
    opened.page.click("#row-0")
    opened.page.wait_for_selector(".answers .notice:has-text('damaged')")
    opened.show(1)


def test_old_browser_and_no_script_are_told(look: Look, tmp_path: Path) -> None:
    address = write(tmp_path / "report.html", [hostile_item(0, "text")])
    silent = look(address, wait=False, java_script_enabled=False)
    assert silent.page.locator("noscript p").is_visible()
    assert silent.page.locator("#trouble").is_hidden()
    assert silent.page.locator(".summary").is_visible()
    assert silent.page.locator("#list").is_hidden()
    old = look("about:blank", wait=False)
    old.page.add_init_script("delete globalThis.DecompressionStream")
    old.address = address
    old.load(wait=False)
    old.page.wait_for_selector("#trouble:has-text('cannot unpack')")
    assert old.page.is_visible("#overview")
