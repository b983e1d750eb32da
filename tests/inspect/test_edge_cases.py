"""The terminal view of every hard row: 14 scripts, emoji, zero-width and control characters. Nothing steers it."""

from __future__ import annotations

import io
import re
import unicodedata
from collections import Counter
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from tests.inspect.samples import HOSTILE, make_example, make_pair, write_cache
from twdpo import results
from twdpo.inspect.examples import find_example
from twdpo.inspect.segments import LINE_FEED
from twdpo.inspect.terminal import SHADES
from twdpo.inspect.views import HEAVIEST, example_view
from twdpo.preferences import Pair, load, resolve
from twdpo.weights_cache import WeightsCache, summarize
from twdpo.weights_cache.picture import visible

#: What rich writes for styles, and nothing else: Select Graphic Rendition.
_SGR = re.compile(r"\x1b\[[0-9;]*m")
_MARKS = "".join(mark for _, _, marks in SHADES for mark in marks)
_FRAME = "╭╮╰╯│─"


@pytest.fixture(scope="module")
def hard_pairs(shared: Path) -> list[Pair]:
    file = shared / "data/edge_cases.jsonl"
    if not file.is_file():
        pytest.skip("needs shared/data/edge_cases.jsonl beside the checkout")
    return [item for item in load(resolve(str(file))) if isinstance(item, Pair)]


def drawn(pair: Pair, width: int, *, color: bool) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=color, color_system="truecolor" if color else None)
    console.print(example_view(make_example(pair), 3, color=color))
    return out.getvalue()


def check_harmless(shown: str, *, color: bool) -> str:
    """The text without its styles, after a look for all that would act on a terminal."""
    assert ("\x1b" in shown) == color
    plain = _SGR.sub("", shown)
    bad = {c for c in plain if c != "\n" and unicodedata.category(c) in {"Cc", "Cs", "Co", "Zl", "Zp"}}
    assert not bad
    assert not re.search(r"[\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff]", plain)
    return plain


def check_frames(plain: str, width: int) -> None:
    """Every line of a frame is as wide as the others, whatever stands in it."""
    framed = [line for line in plain.split("\n") if line.strip()[:1] in set("╭│╰")]
    assert framed
    assert {cell_len(line.rstrip(" ")) for line in framed} <= set(range(width + 1))
    edges = {cell_len(line.rstrip(" ")) for line in framed if line.rstrip()[-1] in "╮│╯"}
    assert len(edges) == (1 if width < 70 else len(edges))
    if width >= 70:
        # Where one answer is longer than the other, its frame goes on alone.
        assert len(edges) <= 2


def spoken(text: str, drop: str = "") -> str:
    """What of a text is to be seen: no blanks, frames, marks or signs of the view."""
    gone = set(_MARKS + _FRAME + LINE_FEED + drop)
    return "".join(c for c in visible(text) if not c.isspace() and c not in gone)


def panel(plain: str, name: str) -> str:
    """The text in one answer's frame where they stand one below the other."""
    inside = plain.split(f"─ {name} ")[1].split("\n╰")[0]
    lines = inside.split("\n")[1:]
    return "".join(line.strip().strip("│") for line in lines)


def check_pair(pair: Pair) -> None:
    for width in (40, 80, 200):
        for color in (True, False):
            plain = check_harmless(drawn(pair, width, color=color), color=color)
            check_frames(plain, width)
            missing = Counter(spoken(pair.chosen + pair.rejected)) - Counter(plain)
            assert not missing
            if width == 40:
                for name, answer in (("chosen", pair.chosen), ("rejected", pair.rejected)):
                    assert spoken(panel(plain, name)).startswith(spoken(answer))
                    assert "heaviest" in panel(plain, name)


@pytest.mark.parametrize("part", range(8))
def test_every_hard_row_is_shown_whole_and_harmless(hard_pairs: list[Pair], part: int) -> None:
    assert len(hard_pairs) > 100
    for pair in hard_pairs[part::8]:
        check_pair(pair)


def test_hostile_text_is_shown_whole_and_harmless() -> None:
    check_pair(make_pair(HOSTILE, HOSTILE[::-1], HOSTILE))
    check_pair(make_pair("\u0301\u200d\ufe0f" * 30 + "x", "👩\u200d👩\u200d👧" * 20 + " " + "漢字" * 60, HOSTILE))


def test_a_megabyte_of_one_word_is_shown() -> None:
    plain = check_harmless(drawn(make_pair("x" * 1_000_000, "short"), 80, color=False), color=False)
    assert plain.count("x") >= 1_000_000


def test_hard_texts_and_names_through_a_cache_and_its_summary(hard_pairs: list[Pair], tmp_path: Path) -> None:
    source = {"name": f"{HOSTILE}.jsonl", "kind": "file", "location": HOSTILE, "split": "train"}
    pairs = [pair for pair in hard_pairs if "\ud800" not in pair.chosen][:30]
    folder = write_cache(tmp_path / "cache", pairs, source=source)
    out = io.StringIO()
    console = Console(file=out, width=80)
    with WeightsCache.open(folder) as cache:
        console.print(results.table(results.summary_rows(summarize(cache), cache.manifest, 0)))
        check_harmless(out.getvalue(), color=False)
        assert "[bold]markup[/bold]" in out.getvalue().replace("\n", "")
        found = find_example(cache, "5")
        assert found.pair is not None
        assert found.pair.chosen == pairs[5].chosen


def test_the_list_of_heaviest_tokens_is_harmless_without_texts() -> None:
    example = make_example(make_pair(HOSTILE, HOSTILE), with_text=False)
    out = io.StringIO()
    Console(file=out, width=80).print(example_view(example, 3, color=False))
    plain = check_harmless(out.getvalue(), color=False)
    assert plain.count("characters ") == 2 * HEAVIEST
    assert "pass --dataset" in " ".join(plain.split())
