"""The figures that the page shows, against numpy and the functions that training uses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.inspect.report.encode import BIAS, Item, Side, code_of, write
from tests.inspect.report.opened import Opened
from tests.inspect.report.samples import LAYERS, OTHER_LAYERS, make_item, make_items
from twdpo.weights_cache.alignment import align_weights
from twdpo.weights_cache.transforms import select, sink_fix, uniform_mix

Look = Callable[..., Opened]


@pytest.fixture(scope="module")
def items() -> list[Item]:
    return make_items(12, other=True)


@pytest.fixture(scope="module")
def address(items: list[Item], tmp_path_factory: pytest.TempPathFactory) -> str:
    return write(tmp_path_factory.mktemp("report") / "report.html", items, block_size=5)


def wanted(side: Side, layers: tuple[int, ...], mode: str, share: float = 0.3) -> np.ndarray:
    """The weights of an answer as training reads them."""
    weights = select({layer: np.array(values, np.float32) for layer, values in side.weights.items()}, layers)
    weights = weights if mode == "raw" else sink_fix(weights)
    return uniform_mix(weights, share) if mode == "mixed" else weights


def wanted_other(side: Side, layers: tuple[int, ...], mode: str, share: float = 0.3) -> np.ndarray:
    """The other cache's weights on this one's tokens: moved before they are mixed, as in training."""
    assert side.other is not None
    weights = wanted(side.other, layers, "raw" if mode == "raw" else "fixed")
    offsets = [np.array(each, np.int32) for each in (side.other.starts, side.other.ends, side.starts, side.ends)]
    moved, covered = align_weights(weights, *offsets)
    moved = uniform_mix(moved, share) if mode == "mixed" else moved
    return np.where(covered, moved, np.nan)


def assert_shown(opened: Opened, item: Item, expected: Callable[[Side], np.ndarray]) -> None:
    for number, side in enumerate((item.chosen, item.rejected)):
        shown = np.array([np.nan if value is None else value for value in opened.values(number)])
        np.testing.assert_allclose(shown, expected(side), rtol=3e-6, atol=1e-6)


def test_codes_keep_every_bit_of_a_stored_weight(look: Look, address: str) -> None:
    edges = [0, 2.0 ** (1 - BIAS), 2.0 ** (1 - BIAS) / 2048, 1, 127.9375]
    values = np.array([*edges, *make_item(3).chosen.weights[29]], np.float32)
    opened = look(address)
    decoded = opened.page.evaluate("codes => codes.map((code) => WEIGHT_OF_CODE[code])", code_of(values).tolist())
    assert decoded == values.tolist()


@pytest.mark.parametrize("number", [0, 3])
def test_layers_and_modes_give_the_weights_that_train(look: Look, address: str, items: list[Item], number: int) -> None:
    opened = look(address)
    opened.show(number)
    for layer, layers in [*((str(each), (each,)) for each in LAYERS), ("mean", LAYERS)]:
        opened.page.click(f"[data-name=layer] [data-value='{layer}']")
        for mode in ("raw", "fixed", "mixed"):
            opened.page.click(f"[data-name=mode] [data-value={mode}]")
            assert_shown(opened, items[number], lambda side, of=layers, how=mode: wanted(side, of, how))
    opened.page.locator("#share").fill("0.85")
    assert_shown(opened, items[number], lambda side: wanted(side, LAYERS, "mixed", 0.85))
    assert opened.page.inner_text("#share-out") == "0.85"


@pytest.mark.parametrize("number", [0, 1])
def test_comparison_moves_the_other_weights_by_characters(
    look: Look, address: str, items: list[Item], number: int
) -> None:
    opened = look(address)
    opened.show(number)
    for layer, layers in (("4", (4,)), ("12", (12,)), ("mean", OTHER_LAYERS)):
        opened.page.click(f"[data-name=other-layer] [data-value='{layer}']")
        for mode in ("raw", "fixed", "mixed"):
            opened.page.click(f"[data-name=mode] [data-value={mode}]")
            opened.page.click("[data-name=view] [data-value=b]")
            assert_shown(opened, items[number], lambda side, of=layers, how=mode: wanted_other(side, of, how))
            opened.page.click("[data-name=view] [data-value=difference]")
            assert_shown(
                opened,
                items[number],
                lambda side, of=layers, how=mode: wanted(side, (29,), how) - wanted_other(side, of, how),
            )
    opened.page.click("[data-name=mode] [data-value=raw]")
    opened.page.click("[data-name=other-layer] [data-value='12']")
    for side_number, side in enumerate((items[number].chosen, items[number].rejected)):
        fact = opened.page.locator(".side").nth(side_number).locator("[data-fact='shared by A and B'] b")
        assert float(fact.inner_text()) == pytest.approx(shared(side), abs=6e-4)


def shared(side: Side) -> float:
    """The part of the weight that both caches put on the same tokens, as the list's overlap counts it."""
    mine, theirs = wanted(side, (29,), "raw"), np.nan_to_num(wanted_other(side, (12,), "raw"))
    return float(np.minimum(mine / mine.sum(), theirs / theirs.sum()).sum())


def test_pair_that_the_other_cache_lacks_says_so(look: Look, address: str, items: list[Item]) -> None:
    opened = look(f"{address}#example={items[4].hash[:12]}&compare=difference")
    opened.page.wait_for_selector(".side .t")
    assert "no weights for this pair" in opened.page.inner_text(".pair .notice")
    assert_shown(opened, items[4], lambda side: wanted(side, (29,), "raw"))


def test_token_figures(look: Look, address: str, items: list[Item]) -> None:
    opened = look(address)
    opened.show(2)
    side = items[2].chosen
    weights = np.array(side.weights[29])
    assert side.text is not None
    for token in (0, int(np.argmax(weights)), len(weights) - 1):
        rows = opened.tip(0, token)
        assert float(rows["weight"].split()[0].replace(",", "")) == pytest.approx(weights[token], rel=1e-4)
        rank = int(np.sum(weights > weights[token])) + 1
        assert rows["rank"].startswith(f"{rank} of {len(weights)}")
        assert float(rows["share"].split()[0]) == pytest.approx(100 * weights[token] / weights.sum(), rel=1e-3)
        units = [len(side.text[:at].encode("utf-16-le")) // 2 for at in (side.starts[token], side.ends[token])]
        assert rows["characters"] == f"{units[0]}–{units[1]}"
        for layer in LAYERS:
            assert float(rows[str(layer)].split()[-1].replace(",", "")) == pytest.approx(
                side.weights[layer][token], rel=1e-3
            )
        assert f"token {token + 1} of {len(weights)}" in opened.page.inner_text(".tip-head")


def test_facts_and_heaviest_tokens(look: Look, address: str, items: list[Item]) -> None:
    opened = look(address)
    opened.show(1)
    weights = np.array(items[1].chosen.weights[29])
    p = weights / weights.sum()
    facts = opened.page.locator(".side.chosen .facts").inner_text()
    assert f"{len(weights)} tokens" in facts
    assert facts.split("tokens")[1].split()[0] == f"{np.exp(-np.sum(p * np.log(p))):#.3g}".rstrip(".")
    assert f"{items[1].agreement[0]:.2f} order agreement" in facts
    assert f"{items[1].p[0]:.2f} shown first, {items[1].p[1]:.2f} shown second" in opened.page.inner_text(".verdict")
    named = opened.page.locator(".side.chosen .heavy-token")
    heaviest = np.argsort(-weights, kind="stable")[:8].tolist()
    assert [int(chip.get_attribute("data-g")) for chip in named.all()] == heaviest
    named.nth(1).click()
    assert opened.page.evaluate("document.activeElement.dataset.g") == str(heaviest[1])
    assert opened.page.evaluate("document.activeElement.className").endswith("flash")


def test_tokens_that_share_a_character_are_one_with_the_heaviest_weight(look: Look, tmp_path: Path) -> None:
    text = "a👩b"
    side = Side(text=text, starts=[0, 1, 1, 2], ends=[1, 2, 2, 3], weights={7: [0.5, 1.25, 2.0, 0.25]})
    item = Item(prompt=[("user", "?")], chosen=side, rejected=side, hash="0" * 32, number=0, title="?")
    opened = look(write(tmp_path / "report.html", [item]))
    opened.show(0)
    tokens = opened.page.locator(".side.chosen .t")
    assert tokens.all_inner_texts() == ["a", "👩", "b"]
    rows = opened.tip(0, 1)
    assert rows["weight"] == "2.0000"
    assert rows["rank"] == "1 of 4"
    assert "tokens 2–3 of 4, sharing characters" in opened.page.inner_text(".tip-head")


def test_shades_follow_the_logarithm_of_the_weight(look: Look, address: str, items: list[Item]) -> None:
    opened = look(address)
    opened.show(1)
    script = "[...document.querySelectorAll('.side.chosen .t')].map((t) => Number(t.style.getPropertyValue('--a')))"
    shades = np.array(opened.page.evaluate(script))
    weights = np.array(items[1].chosen.weights[29])
    np.testing.assert_allclose(shades, np.minimum(1, np.log1p(weights) / np.log1p(8)), atol=6e-4)


def test_answers_without_texts_show_offsets_and_weights(look: Look, tmp_path: Path) -> None:
    side = Side(text=None, starts=[0, 3, 4], ends=[3, 4, 9], weights={7: [0.5, 1.5, 1.0]})
    item = Item(prompt=None, chosen=side, rejected=side, hash="0" * 32, number=0, title="0" * 32)
    opened = look(write(tmp_path / "report.html", [item]))
    opened.show(0)
    assert [text.split() for text in opened.page.locator(".side.chosen .t").all_inner_texts()] == [
        ["0–3", "0.500"],
        ["3–4", "1.50"],
        ["4–9", "1.00"],
    ]
    assert "--include-text" in opened.page.inner_text(".pair .notice")
    assert "--dataset" in opened.page.inner_text(".pair .notice")
    assert opened.page.locator(".prompt").is_hidden()
