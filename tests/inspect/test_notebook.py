"""A pair in a notebook: what the HTML holds, and that nothing in a text acts."""

from __future__ import annotations

import builtins
import io
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

import twdpo
from tests.inspect.samples import HOSTILE, make_example, make_pair, tokens_of, write_cache
from tests.weights_cache.samples import LAYERS
from twdpo.errors import CacheError, UsageError
from twdpo.inspect.notebook import PairView
from twdpo.inspect.segments import LINE_FEED
from twdpo.weights_cache import WeightsCache
from twdpo.weights_cache.picture import visible
from twdpo.weights_cache.statistics import effective_tokens
from twdpo.weights_cache.transforms import sink_fix

_TAGS = {"div", "span", "table", "tr", "td"}
_ATTRIBUTES = {"style", "title", "dir"}


class Page(HTMLParser):
    """Tags, attributes, the text of each block of writing, and the tooltips."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.styles: list[str] = []
        self.titles: list[str] = []
        self.blocks: list[str] = []
        self.open: list[bool] = []
        self.feed(html)
        self.close()
        assert not self.open, "every tag is closed"

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        self.tags.add(tag)
        self.attributes |= set(given)
        self.styles.append(given.get("style") or "")
        if given.get("title"):
            self.titles.append(given["title"] or "")
        self.open.append("dir" in given)
        if "dir" in given:
            self.blocks.append("")

    def handle_endtag(self, tag: str) -> None:
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if any(self.open):
            self.blocks[-1] += data

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data}")

    def handle_decl(self, decl: str) -> None:
        raise AssertionError(f"a declaration: {decl}")


@pytest.mark.parametrize(
    "text", [HOSTILE, HOSTILE[::-1], "<!-- </div> ]]> &#x3c;b> -->" * 3, "漢字 مرحبا 👩‍👩‍👧 e\u0301\n\n"]
)
def test_nothing_in_a_text_is_markup_and_all_of_it_is_shown(text: str) -> None:
    pair = make_pair(text, "short", text)
    page = Page(PairView(make_example(pair), (3,))._repr_html_())
    assert page.tags == _TAGS
    assert page.attributes == _ATTRIBUTES
    shown = [block.replace(f"{LINE_FEED}\n", "\n") for block in page.blocks]
    assert shown == [visible(f"user: {text}"), visible(text), "short"]
    assert not any(c in style for style in page.styles for c in "\"'<>&\\@")
    assert not any("url" in style or "expression" in style for style in page.styles)


def test_tooltips_have_every_token_once_with_exact_weight_and_rank() -> None:
    text = "Cafe\u0301 and 🙂 more words to read"
    example = make_example(make_pair(text, "other"))
    lines = [line for title in Page(PairView(example, (29,))._repr_html_()).titles for line in title.split("\n")]
    expected = []
    for side in (example.row.chosen, example.row.rejected):
        weights = side.weights[29]
        for i, weight in enumerate(weights.tolist()):
            rank = 1 + sum(other > weight for other in weights.tolist())
            expected.append(
                f"weight {weight:.4g}, rank {rank} of {len(weights)}, token {i}, "
                f"characters {side.starts[i]}–{side.ends[i]}"
            )
    assert lines == expected


def test_text_that_is_not_known_is_said_and_places_are_shown() -> None:
    html = PairView(make_example(make_pair("abc", "def"), with_text=False), (3,))._repr_html_()
    assert "pass dataset=" in html
    assert "characters 0–" in html


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pairs = [make_pair(f"The answer is {i}.", f"Perhaps it is {i}.") for i in range(5)]
    return write_cache(tmp_path_factory.mktemp("cache") / "cache", pairs)


def test_show_by_folder_and_by_open_cache(folder: Path) -> None:
    view = twdpo.inspect.show(folder, 3, layer="mean:0,3", sink_fix=True)
    assert view.layers == (0, 3)
    assert repr(view).startswith(f"<PairView pair 3, {view.example.row.example_hash}: mean of layers 0, 3, sink-fixed")
    assert "\n" not in repr(view)
    with WeightsCache.open(folder, layers=(3,)) as cache:
        again = twdpo.inspect.show(cache, view.example.row.example_hash[:12], layer=3)
        assert len(cache) == 5, "it stays open"
        with pytest.raises(UsageError, match="--layer 29 is not in the cache"):
            twdpo.inspect.show(cache, 0)
    assert again.example.row.example_hash == view.example.row.example_hash
    assert isinstance(twdpo.inspect.show(str(folder)).example.number, int)
    with pytest.raises(CacheError, match="no such folder"):
        twdpo.inspect.show(folder / "none")
    with pytest.raises(UsageError, match="0 to 4"):
        twdpo.inspect.show(folder, 5)


def test_in_a_terminal_it_is_the_terminal_view(folder: Path) -> None:
    console = Console(width=100, file=io.StringIO())
    console.print(twdpo.inspect.show(folder, 1))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "heaviest:" in shown
    assert "\x1b" not in shown


def test_one_row_a_token(folder: Path) -> None:
    pytest.importorskip("pandas")
    view = twdpo.inspect.show(folder, 2, layer="mean:0,3")
    frame = view.to_pandas()
    row, pair = view.example.row, view.example.pair
    assert pair is not None
    names = [f"weight_{layer}" for layer in LAYERS]
    assert list(frame.columns) == [
        *("side", "token", "start", "end", "text"),
        *names,
        *("weight", "weight_sink_fixed", "rank"),
    ]
    assert len(frame) == len(row.chosen) + len(row.rejected)
    for name, text in (("chosen", pair.chosen), ("rejected", pair.rejected)):
        part = frame[frame.side == name]
        side = row.side(name)
        assert "".join(part.text) == text
        assert part.token.tolist() == list(range(len(side)))
        mean = (side.weights[0].astype(np.float64) + side.weights[3]) / 2
        assert np.allclose(part.weight, mean, rtol=1e-6)
        assert np.array_equal(part.weight_sink_fixed, sink_fix(part.weight.to_numpy()))
        assert np.array_equal(part.weight_29, side.weights[29])
        assert part.sort_values("rank").weight.is_monotonic_decreasing
        assert sorted(part["rank"]) == list(range(1, len(side) + 1))
    assert PairView(make_example(make_pair("a", "b"), with_text=False), (3,)).to_pandas().text.isna().all()


def test_one_row_a_pair(folder: Path) -> None:
    pytest.importorskip("pandas")
    frame = twdpo.inspect.to_pandas(folder)
    with WeightsCache.open(folder) as cache:
        rows = list(cache.rows())
        assert twdpo.inspect.to_pandas(cache, limit=2).equals(frame.head(2))
    assert frame.example_hash.tolist() == [row.example_hash for row in rows]
    assert frame.truncated.tolist() == [False, True, False, True, False]
    assert frame.rejected_tokens.tolist() == [len(row.rejected) for row in rows]
    assert frame.chosen_effective.tolist() == [effective_tokens(row.chosen.weights[29]) for row in rows]
    assert np.allclose(frame.judge_prob_cr, 0.8)
    assert frame.attention_share_chosen.isna().all()
    assert len(twdpo.inspect.to_pandas(folder, limit=0)) == 0
    other = twdpo.inspect.to_pandas(folder, layer="0")
    assert other.chosen_first_weight.tolist() == [float(row.chosen.weights[0][0]) for row in rows]


def test_without_pandas_it_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *arguments: Any, **named: Any) -> Any:
        if name == "pandas":
            raise ImportError(name)
        return real(name, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", missing)
    for make in (lambda: twdpo.inspect.to_pandas(folder), lambda: twdpo.inspect.show(folder, 0).to_pandas()):
        with pytest.raises(UsageError, match="pip install pandas"):
            make()


def test_import_twdpo_gives_show_without_loading_anything_heavy() -> None:
    code = (
        "import sys, twdpo; twdpo.inspect; before = {'numpy', 'rich', 'pyarrow'} & set(sys.modules); "
        "twdpo.inspect.show; print(sorted(before | ({'torch', 'transformers', 'pandas'} & set(sys.modules))))"
    )
    folder = Path(twdpo.__file__).parents[1]
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=folder)
    assert out.stdout.strip() == "[]"


def test_the_sample_covers_a_text_with_tokens() -> None:
    side = tokens_of("some text to cut up")
    assert (side.starts[0], side.ends[-1]) == (0, 19)
    assert np.array_equal(side.starts[1:], side.ends[:-1])
