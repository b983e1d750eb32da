"""The report in a real browser: it loads in silence, finds and sorts pairs, and works by keyboard and on a phone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.inspect.report.encode import Item, write
from tests.inspect.report.opened import Opened
from tests.inspect.report.samples import make_items

Look = Callable[..., Opened]

PHONE = {"width": 390, "height": 844, "has_touch": True, "is_mobile": True}


@pytest.fixture(scope="module")
def items() -> list[Item]:
    return make_items(60, words=60, other=True)


@pytest.fixture(scope="module")
def address(items: list[Item], tmp_path_factory: pytest.TempPathFactory) -> str:
    chart = '<figure class="chart"><svg viewBox="0 0 9 9"><path class="c-line" d="M0 0h9"/></svg></figure>'
    return write(tmp_path_factory.mktemp("report") / "report.html", items, charts=chart)


def probability(item: Item) -> float | None:
    return None if item.p[0] is None or item.p[1] is None else (item.p[0] + item.p[1]) / 2


def agreement(item: Item) -> float | None:
    first, second = item.agreement
    return None if first is None or second is None else (first + second) / 2


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
def test_loads_in_silence_without_the_network(look: Look, address: str, width: int, theme: str) -> None:
    opened = look(address, width=width, color_scheme=theme)
    page = opened.page
    assert page.inner_text("#count") == "60 of 60"
    opened.show(0)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(int(part) for part in ground[4:-1].split(",")) < 150) == (theme == "dark")
    page.click("#to-overview")
    assert page.is_visible("#overview .summary")
    assert page.is_visible("#overview .chart svg")
    assert page.is_hidden("#pair")


def test_search_in_question_answers_and_hash(look: Look, address: str, items: list[Item]) -> None:
    opened = look(address)

    def texts(item: Item) -> str:
        parts = [
            item.hash,
            *(content for _, content in item.prompt or []),
            item.chosen.text or "",
            item.rejected.text or "",
        ]
        return "\n".join(parts).lower()

    searches = {
        "question 17:": ["question", "17:"],
        '"question 17:"': ["question 17:"],
        "SECOND answer 23.": ["second", "answer", "23."],
        items[31].hash[:9]: [items[31].hash[:9]],
        "مرحبا 世界": ["مرحبا", "世界"],
        "👩‍👩‍👧": ["👩‍👩‍👧"],
    }
    for typed, words in searches.items():
        opened.page.fill("#search", typed)
        assert opened.listed() == [i for i, item in enumerate(items) if all(word in texts(item) for word in words)]
        assert opened.listed()
        assert opened.page.inner_text("#count") == f"{len(opened.listed())} of 60"
    opened.page.fill("#search", "no such words")
    assert opened.page.inner_text("#count") == "0 of 60"
    assert "fewer or other words" in opened.page.inner_text("#empty")
    opened.page.click("#reset")
    assert opened.listed() == list(range(60))


def test_words_searched_for_are_marked_in_the_pair(look: Look, address: str, items: list[Item]) -> None:
    opened = look(address)
    opened.page.fill("#search", 'fox, "answer 5"')
    opened.show(5)
    marked = opened.page.evaluate("[...CSS.highlights.get('found')].map((range) => range.toString())")
    text = "\n".join([items[5].prompt[1][1], items[5].chosen.text or "", items[5].rejected.text or ""])  # type: ignore[index]
    assert len(marked) == text.count("fox,") + text.count("answer 5")
    assert set(marked) == {"fox,", "answer 5"}
    opened.page.fill("#search", "")
    assert not opened.page.evaluate("CSS.highlights.has('found')")


def test_filters_alone_and_together(look: Look, address: str, items: list[Item]) -> None:
    opened = look(address)

    def flips(item: Item) -> bool:
        return item.p[0] is not None and item.p[1] is not None and (item.p[0] > 0.5) != (item.p[1] > 0.5)

    fits: dict[str, Callable[[Item], bool]] = {
        "truncated": lambda item: item.truncated,
        "disagrees": lambda item: (probability(item) if probability(item) is not None else 1.0) < 0.5,  # type: ignore[operator]
        "flips": flips,
        "agreement": lambda item: (agreement(item) if agreement(item) is not None else 1.0) < 0.5,  # type: ignore[operator]
    }
    chip = "#filters [data-key={}]".format
    for key, fit in fits.items():
        opened.page.click(chip(key))
        expected = [i for i, item in enumerate(items) if fit(item)]
        assert opened.listed() == expected
        assert 0 < len(expected) < 60
        assert opened.page.inner_text(f"{chip(key)} .number") == str(len(expected))
        opened.page.click(chip("all"))
        assert len(opened.listed()) == 60
    for key in ("disagrees", "agreement"):
        opened.page.click(chip(key))
    both = [i for i, item in enumerate(items) if fits["disagrees"](item) and fits["agreement"](item)]
    assert opened.listed() == both
    opened.page.locator("#threshold").fill("0.3")
    strict = [i for i in both if (agreement(items[i]) or 0) < 0.3]
    assert opened.listed() == strict != both
    opened.page.fill("#search", "first")
    assert opened.listed() == strict


def test_sorts_both_ways_with_unknown_figures_last(look: Look, address: str, items: list[Item]) -> None:
    opened = look(address)
    figures: dict[str, Callable[[Item], float | None]] = {
        "number": lambda item: item.number,
        "agreement": agreement,
        "probability": probability,
        "effective": lambda item: sum(item.effective) / 2,
        "length": lambda item: len(item.chosen.starts) + len(item.rejected.starts),
        "overlap": lambda item: item.overlap,
    }
    assert opened.page.evaluate("SORTS.map(({ key }) => key)") == list(figures)
    for falling in (False, True):
        for key, figure in figures.items():
            opened.page.select_option("#sort", key)
            values = [figure(item) for item in items]
            known = [i for i, value in enumerate(values) if value is not None]
            known.sort(key=lambda i: -values[i] if falling else values[i])  # type: ignore[operator,arg-type,return-value]
            unknown = [i for i, value in enumerate(values) if value is None]
            assert opened.listed() == known + unknown, key
        opened.page.click("#direction")


def test_badges(look: Look, address: str, items: list[Item]) -> None:
    opened = look(address)
    for i, item in enumerate(items[:8]):
        shown = set(opened.page.locator(f"#row-{i} .badge").all_inner_texts())
        likely, agreed = probability(item), agreement(item)
        assert ("truncated" in shown) == item.truncated
        assert ("against label" in shown) == (likely is not None and likely < 0.5)
        assert ("low agreement" in shown) == (agreed is not None and agreed < 0.5)


def test_address_keeps_the_view(look: Look, address: str, items: list[Item]) -> None:
    opened = look(address)
    page = opened.page
    opened.show(3)
    for name, value in (("layer", "mean"), ("mode", "mixed"), ("view", "difference"), ("other-layer", "4")):
        page.click(f"[data-name={name}] [data-value='{value}']")
    page.locator("#share").fill("0.45")
    link = page.url
    assert f"example={items[3].hash[:12]}" in link
    before = opened.values(1)
    again = look(link)
    again.page.wait_for_selector(".side .t")
    assert again.values(1) == before
    assert again.page.inner_text(".pair h2") == "Pair #3"
    assert again.page.get_attribute("[data-name=view] [aria-checked=true]", "data-value") == "difference"
    page.goto("about:blank")
    opened.requests.clear()
    broken = look(f"{address}#example=ffff&layer=99&weights=no&mix=7&compare=%3Cscript%3E")
    assert broken.page.evaluate("[state.layer, state.mode, state.share, state.view, state.screen]") == [
        "29",
        "raw",
        0.3,
        "a",
        "list",
    ]


def test_keys(look: Look, address: str) -> None:
    opened = look(address)
    page, press = opened.page, opened.page.keyboard.press
    title = ".pair h2:text-is('Pair #{}')".format
    press("j")
    page.wait_for_selector(title(0))
    press("j")
    press("j")
    page.wait_for_selector(title(2))
    press("k")
    page.wait_for_selector(title(1))
    press("/")
    page.keyboard.type("jkm[?c")
    assert page.input_value("#search") == "jkm[?c"
    page.fill("#search", "")
    press("Escape")
    assert page.evaluate("document.activeElement.id") == "rows"
    press("ArrowDown")
    page.wait_for_selector(title(2))
    press("End")
    page.wait_for_selector(title(59))
    assert page.get_attribute("#rows", "aria-activedescendant") == "row-59"
    press("[")
    assert page.evaluate("state.layer") == "3"
    for layer in ("29", "mean", "mean"):
        press("]")
        assert page.evaluate("state.layer") == layer
    for mode in ("fixed", "mixed", "raw"):
        press("m")
        assert page.evaluate("state.mode") == mode
    for view in ("b", "difference", "a"):
        press("c")
        assert page.evaluate("state.view") == view
    press("?")
    assert page.evaluate("document.getElementById('help').open")
    press("j")
    press("Escape")
    assert not page.evaluate("document.getElementById('help').open")
    assert page.inner_text(".pair h2") == "Pair #59"


def test_arrow_keys_go_from_token_to_token_and_say_its_figures(look: Look, address: str, items: list[Item]) -> None:
    opened = look(address)
    opened.show(1)
    page, press = opened.page, opened.page.keyboard.press
    focused = "Number(document.activeElement.dataset.g)"
    page.locator(".side.chosen .t").first.focus()
    press("ArrowRight")
    press("ArrowRight")
    assert page.evaluate(focused) == 2
    weight = items[1].chosen.weights[29][2]
    said = page.inner_text("#say")
    assert said.startswith(f"token 3 of {len(items[1].chosen.starts)}, “")
    assert float(said.split("weight ")[1].split(",")[0]) == pytest.approx(weight, rel=1e-3)
    assert page.is_visible("#tip")
    press("ArrowDown")
    below = page.evaluate(focused)
    top = "(g) => document.querySelectorAll('.side.chosen .t')[g].getClientRects()[0].top"
    assert page.evaluate(top, below) > page.evaluate(top, 2)
    press("ArrowUp")
    press("End")
    assert page.evaluate(focused) == page.locator(".side.chosen .t").count() - 1
    press("Escape")
    assert page.is_hidden("#tip")
    press("Tab")
    assert "heavy-token" in page.evaluate("document.activeElement.className")
    assert page.locator(".side.chosen .t[tabindex='0']").count() == 1


def test_tab_goes_through_the_page_and_out_again(look: Look, address: str) -> None:
    opened = look(address)
    opened.show(0)
    seen = []
    opened.page.locator("#skip").focus()
    for _ in range(80):
        opened.page.keyboard.press("Tab")
        seen.append(opened.page.evaluate("document.activeElement.tagName + document.activeElement.id"))
        if seen[-1] == "BODY":
            break
        ring = """getComputedStyle(document.getElementById(
            document.activeElement.getAttribute("aria-activedescendant")) ?? document.activeElement).outlineStyle"""
        assert opened.page.evaluate(ring) != "none", seen[-1]
    assert seen[-1] == "BODY"
    assert {"INPUTsearch", "DIVrows", "SELECTsort", "BUTTONtheme"} <= set(seen)


def test_phone_has_screens_and_figures_at_a_tap(look: Look, address: str, items: list[Item]) -> None:
    opened = look(address, **PHONE)
    page = opened.page
    assert page.is_hidden("#pair")
    page.tap("#more")
    page.tap("#filters [data-key=truncated]")
    page.tap("#filters [data-key=all]")
    page.tap("#row-0")
    page.wait_for_selector(".side .t")
    assert page.is_hidden("#list")
    chosen, rejected = (page.locator(side).bounding_box() for side in (".side.chosen", ".side.rejected"))
    assert rejected["y"] >= chosen["y"] + chosen["height"]
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.evaluate("document.getElementById('pair').scrollWidth <= document.getElementById('pair').clientWidth")
    page.locator(".side.chosen .t").nth(5).tap()
    page.wait_for_selector("#tip:not([hidden])")
    assert f"token 6 of {len(items[0].chosen.starts)}" in page.inner_text("#tip")
    page.wait_for_function(
        """() => document.activeElement.getBoundingClientRect().bottom
            <= document.getElementById("tip").getBoundingClientRect().top"""
    )
    small = page.evaluate("""() => [...document.querySelectorAll("button, select, input")].filter((node) =>
        node.checkVisibility() && node.getBoundingClientRect().height < 44).map((node) => node.outerHTML)""")
    assert small == []
    page.tap("#back")
    page.wait_for_selector("#row-0")
    assert page.is_hidden("#pair")
    page.tap("#row-1")
    page.wait_for_selector(".side .t")
    page.go_back()
    page.wait_for_selector("#row-1")


def test_thousand_pairs_without_lag(look: Look, tmp_path: Path) -> None:
    items = make_items(1000, words=250)
    opened = look(write(tmp_path / "report.html", items))
    slowest = opened.page.evaluate(
        """() => {
            const search = document.getElementById("search");
            let slowest = 0;
            for (const typed of ["q", "qu", "fox 世界", "answer 77", "zzz", ""]) {
                const start = performance.now();
                search.value = typed;
                search.dispatchEvent(new Event("input"));
                document.body.getBoundingClientRect();
                slowest = Math.max(slowest, performance.now() - start);
            }
            return slowest;
        }"""
    )
    assert slowest < 100
    rows = opened.page.locator("#rows")
    assert rows.locator(".row").count() < 40
    rows.evaluate("box => { box.scrollTop = box.scrollHeight; }")
    opened.page.wait_for_selector("#row-999")
    assert rows.locator(".row").count() < 40
    opened.show(999)


def test_theme_button_turns_and_is_kept(look: Look, address: str) -> None:
    opened = look(address, color_scheme="dark")
    ground = "getComputedStyle(document.body).backgroundColor"
    dark = opened.page.evaluate(ground)
    opened.page.click("#theme")
    light = opened.page.evaluate(ground)
    assert light != dark
    opened.page.reload()
    assert opened.page.evaluate(ground) == light


def test_prints_the_pair_alone(look: Look, address: str) -> None:
    opened = look(address, color_scheme="dark")
    opened.show(0)
    opened.page.emulate_media(media="print")
    assert opened.page.is_visible(".side.rejected")
    for hidden in ("#list", ".switches", "#overview", ".tools"):
        assert opened.page.is_hidden(hidden)
    assert opened.page.evaluate("getComputedStyle(document.body).overflow") == "visible"
