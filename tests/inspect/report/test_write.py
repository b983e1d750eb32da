"""Reports of real caches, made as a user makes them and read in a real browser."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.inspect.report.opened import Opened
from tests.inspect.samples import HOSTILE, make_pair, tokens_of, write_cache
from tests.weights_cache.samples import LAYERS, RECIPE, make_row
from twdpo.cli import main
from twdpo.inspect.report.payload import shared_mass
from twdpo.inspect.report.write import MOST_LAYERS, report_layers
from twdpo.preferences import Pair, load, resolve
from twdpo.weights_cache import CacheWriter, Manifest, WeightsCache
from twdpo.weights_cache.picture import visible

Look = Callable[..., Opened]


def other_cache(folder: Path, pairs: Sequence[Pair]) -> Path:
    """Another judge's weights of every second of `pairs`, on other tokens."""
    with CacheWriter.open(folder, replace(RECIPE, judge_model="another/judge", layers=(2, 5))) as writer:
        for number, pair in enumerate(pairs[::2]):
            sides = {
                name: tokens_of(text, 50 + number, (2, 5))
                for name, text in (("chosen", pair.chosen), ("rejected", pair.rejected))
            }
            writer.add(replace(make_row(number), example_hash=pair.example_hash, **sides))
    return folder


@pytest.fixture
def pairs() -> list[Pair]:
    texts = ["Grüße 🙂 tail", HOSTILE, "plain words only", "世界 مرحبا", "```\ncode\n```"]
    return [make_pair(f"{text} {number}", f"{number} {text}", text) for number, text in enumerate(texts)]


def place_of(cache: WeightsCache, number: int) -> str:
    return [row.example_hash for row in cache.rows()][number]


def test_the_report_shows_what_the_cache_holds(
    look: Look, tmp_path: Path, pairs: list[Pair], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, other = write_cache(tmp_path / "one", pairs), other_cache(tmp_path / "two", pairs)
    file = tmp_path / "report.html"
    assert main(["inspect", str(folder), "--html", str(file), "--compare", str(other)]) == 0
    said = capsys.readouterr().out
    assert "5 of 5" in said
    assert "2, which the other cache lacks" in said
    opened = look(file.as_uri())
    known = {pair.example_hash: pair for pair in pairs}
    with WeightsCache.open(folder) as one, WeightsCache.open(other) as two:
        for number, row in enumerate(one.rows()):
            opened.show(number)
            pair = known[row.example_hash]
            for side, text in enumerate((pair.chosen, pair.rejected)):
                box = opened.page.locator(".side .text").nth(side)
                assert box.evaluate("box => box.textContent") == visible(text)
            for layer in LAYERS:
                opened.page.click(f"[data-name=layer] [data-value='{layer}']")
                for side, mine in enumerate((row.chosen, row.rejected)):
                    assert opened.values(side) == pytest.approx(mine.weights[layer].tolist(), rel=1e-6)
            overlap = opened.page.evaluate("number => EXAMPLES.overlap[number]", number)
            if row.example_hash in two:
                theirs = two.get(row.example_hash)
                shares = [shared_mass(row.side(s), LAYERS[-1], theirs.side(s), 5) for s in ("chosen", "rejected")]
                assert overlap == pytest.approx(np.mean(shares), rel=1e-5)
            else:
                assert overlap is None


#: Where the machine lacks a script's fonts, Chromium looks for them token by token, which takes seconds a pair.
@pytest.mark.parametrize("step", [6, pytest.param(1, marks=pytest.mark.slow)])
def test_the_hard_rows_show_as_text(look: Look, tmp_path: Path, shared: Path, step: int) -> None:
    source = shared / "data/edge_cases.jsonl"
    if not source.is_file():
        pytest.skip("needs shared/data/edge_cases.jsonl beside the checkout")
    unique = {item.example_hash: item for item in load(resolve(str(source))) if isinstance(item, Pair)}
    folder = write_cache(tmp_path / "cache", list(unique.values())[::step])
    file = tmp_path / "report.html"
    assert main(["inspect", str(folder), "--html", str(file)]) == 0
    opened = look(file.as_uri())
    # In the page itself: a call from outside for each of them would take most of a minute.
    shown = opened.page.evaluate(
        """async () => {
            const shown = [];
            for (let number = 0; number < COUNT; number += 1) {
                openExample(number);
                const isThere = () => document.querySelector(".pair h2")?.textContent === `Pair #${number}`
                    && document.querySelector(".side .t");
                while (!isThere()) await new Promise((done) => setTimeout(done, 1));
                shown.push([...document.querySelectorAll(".side .text")].map((box) => box.textContent));
            }
            return shown;
        }"""
    )
    with WeightsCache.open(folder) as cache:
        wanted = [unique[row.example_hash] for row in cache.rows()]
    assert shown == [[visible(pair.chosen), visible(pair.rejected)] for pair in wanted]


def test_the_policy_allows_this_script_and_style_alone(tmp_path: Path, pairs: list[Pair]) -> None:
    file = tmp_path / "report.html"
    assert main(["inspect", str(write_cache(tmp_path / "cache", pairs)), "--html", str(file)]) == 0
    text = file.read_text("utf-8")
    policy = re.search(r'http-equiv="Content-Security-Policy"\s+content="([^"]*)"', text)
    assert policy is not None
    assert "default-src 'none'" in policy[1]
    assert "unsafe" not in policy[1]
    for kind in ("script", "style"):
        (body,) = re.findall(rf"<{kind}>(.*?)</{kind}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy[1]
    assert not re.search(r"\s(style|on\w+)=", re.sub(r"<(script|style).*?</\1>", "", text, flags=re.DOTALL))
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", text)


def test_the_same_command_writes_the_same_bytes(tmp_path: Path, pairs: list[Pair]) -> None:
    folder, files = write_cache(tmp_path / "cache", pairs), [tmp_path / f"{name}.html" for name in "ab"]
    for file in files:
        assert main(["inspect", str(folder), "--html", str(file), "--examples", "3", "--seed", "7"]) == 0
    assert files[0].read_bytes() == files[1].read_bytes()


def test_plots_and_report_at_once(tmp_path: Path, pairs: list[Pair], capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = write_cache(tmp_path / "cache", pairs, text=False), tmp_path / "plots"
    arguments = ["inspect", str(folder), "--plots", str(out), "--html", str(tmp_path / "r.html")]
    assert main(arguments) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "without texts 5" in said
    assert "no plot token-classes: the texts of the pairs are not there" in said
    assert {path.suffix for path in out.iterdir()} == {".png", ".svg"}
    assert (tmp_path / "r.html").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--html", "report.txt"], 2, "ends in .html"),
        (["--html", "folder.html"], 2, "is a folder"),
        (["--html", "r.html", "--example", "1"], 2, "leave out --example"),
        (["--plots", "p", "--layer", "3"], 2, "leave out --example, --layer"),
        (["--html", "r.html", "--json"], 2, "--json"),
        (["--html", "r.html", "--examples", "0"], 2, "--examples 0"),
        (["--html", "r.html", "--split", "train"], 2, "--dataset"),
        (["--compare", "two"], 2, "--compare needs --html"),
        (["--plots", "p", "--compare", "two"], 2, "--compare needs --html"),
        (["--html", "r.html", "--compare", "none"], 1, "none is no weights cache"),
        (["--html", "r.html", "--compare", "strangers"], 2, "has none of these pairs"),
        (["--html", "r.html", "--dataset", "gone.jsonl"], 1, "gone.jsonl"),
        (["--plots", "file"], 1, "a file is in the way"),
    ],
)
def test_a_mistake_gets_one_line(
    tmp_path: Path,
    pairs: list[Pair],
    arguments: list[str],
    code: int,
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_cache(tmp_path / "one", pairs)
    other_cache(tmp_path / "two", pairs)
    write_cache(tmp_path / "strangers", [make_pair("a", "b")])
    (tmp_path / "folder.html").mkdir()
    (tmp_path / "file").write_text("x")
    assert main(["inspect", "one", *arguments]) == code
    said = capsys.readouterr()
    assert message in said.err
    assert said.err.count("\n") == 1
    assert not (tmp_path / "r.html").exists()


def test_a_report_of_many_layers_holds_some_of_them() -> None:
    def layers(count: int, said: str) -> tuple[int, ...]:
        recipe = replace(RECIPE, layers=tuple(range(count)))
        return report_layers(Manifest(recipe=recipe, defaults={"attn_source": said}))

    assert layers(MOST_LAYERS, "2") == tuple(range(MOST_LAYERS))
    assert layers(32, "31") == (0, 6, 12, 18, 24, 31)
    assert layers(32, "7") == (0, 6, 7, 12, 18, 24, 31)
    assert layers(32, "mean") == (0, 6, 12, 18, 24, 31)
