"""What a report says of each pair, read back by a reader that was written on its own."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.inspect.report.test_encoding import unpack, value_of
from tests.weights_cache.samples import LAYERS, RECIPE, fill, make_row, make_side
from twdpo.inspect.gather import draw
from twdpo.inspect.report.encoding import json_in_html
from twdpo.inspect.report.payload import Shown, bias_of, blocks, default_layer, report_json, shared_mass
from twdpo.weights_cache import CacheWriter, SideWeights, WeightsCache, round_mantissa

PAIRS = 40


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A cache with texts, and another of every third pair with other tokens and layers."""
    folder = tmp_path_factory.mktemp("caches")
    fill(folder / "one", range(PAIRS), text=True)
    recipe = replace(RECIPE, judge_model="another/judge", layers=(1, 2))
    with CacheWriter.open(folder / "two", recipe) as writer:
        for number in range(0, PAIRS, 3):
            rng, row = np.random.default_rng(1000 + number), make_row(number)
            sides = {name: make_side(rng, 20, layers=(1, 2)) for name in ("chosen", "rejected")}
            if number % 2:
                same = row.chosen
                weights = {layer: np.ones(len(same), np.float32) for layer in (1, 2)}
                sides["chosen"] = SideWeights(starts=same.starts, ends=same.ends, weights=weights)
            writer.add(replace(row, **sides))
    return folder / "one", folder / "two"


def shown(cache: WeightsCache, other: WeightsCache | None = None) -> Shown:
    drawn = draw(cache, 99)
    hashes = [example.row.example_hash for example in drawn.examples]
    others = tuple(other.get(each) if each in other else None for each in hashes) if other else ()
    return Shown(
        cache=cache,
        default_layer=LAYERS[-1],
        numbers=drawn.numbers.tolist(),
        examples=drawn.examples,
        other=other,
        other_default=2,
        others=others,
    )


def spans(side: dict[str, Any]) -> list[tuple[int, int]]:
    at, found = 0, []
    for gap, length in zip(side["gap"], side["len"], strict=True):
        found.append((at + gap, at + gap + length))
        at += gap + length
    return found


def units(text: str, start: int, end: int) -> str:
    """A piece of a text by 16-bit units, as a browser cuts it."""
    return text.encode("utf-16-le")[2 * start : 2 * end].decode("utf-16-le")


def test_every_pair_comes_back(folders: tuple[Path, Path]) -> None:
    with WeightsCache.open(folders[0]) as cache, WeightsCache.open(folders[1]) as other:
        world = shown(cache, other)
        bias = bias_of(world)
        report = report_json(world, bias)
        packed = [unpack(block) for block in blocks(world, bias)]
        assert [(b["first"], b["count"]) for b in report["blocks"]] == [(0, 32), (32, 8)]
        place = 0
        for content, codes in packed:
            at = 0

            def take(count: int, codes: list[int] = codes) -> np.ndarray[Any, Any]:
                nonlocal at
                at += count
                return np.array([value_of(code, bias) for code in codes[at - count : at]], np.float32)

            for entry in content["examples"]:  # type: ignore[index,call-overload]
                row, theirs = world.rows_of(place)
                assert [tuple(turn) for turn in entry["prompt"]] == list(row.prompt or ())
                for name, text in (("chosen", row.chosen_text), ("rejected", row.rejected_text)):
                    side, said = row.side(name), entry[name]
                    assert said["text"] == text
                    for (start, end), s, e in zip(spans(said), side.starts.tolist(), side.ends.tolist(), strict=True):
                        assert units(said["text"], start, end) == (text or "")[s:e]
                    for layer in LAYERS:
                        assert np.array_equal(take(len(side)), round_mantissa(side.weights[layer]))
                assert (entry["other"] is None) == (theirs is None)
                if theirs is not None:
                    for name in ("chosen", "rejected"):
                        same = entry["other"][name].get("same", False)
                        assert same == np.array_equal(theirs.side(name).starts, row.side(name).starts)
                        for layer in (1, 2):
                            assert np.array_equal(take(len(theirs.side(name))), theirs.side(name).weights[layer])
                place += 1
            assert at == len(codes)
        assert place == PAIRS


def test_the_columns_are_those_of_the_rows(folders: tuple[Path, Path]) -> None:
    with WeightsCache.open(folders[0]) as cache, WeightsCache.open(folders[1]) as other:
        world = shown(cache, other)
        report = json.loads(json_in_html(report_json(world, 20)))
        columns = report["examples"]
        assert {len(column) for column in columns.values()} == {PAIRS}
        for place, (row, theirs) in enumerate(map(world.rows_of, range(PAIRS))):
            assert columns["hash"][place] == row.example_hash
            assert columns["number"][place] == place
            assert columns["tokens_chosen"][place] == len(row.chosen)
            assert columns["p_cr"][place] == pytest.approx(row.judge_prob_cr, rel=1e-5)
            assert columns["agreement_rejected"][place] is None  # NaN in the samples
            assert columns["truncated"][place] is row.truncated
            weights = row.rejected.weights[LAYERS[-1]].astype(float)
            p = weights / weights.sum()
            entropy = -sum(value * math.log(value) for value in p if value > 0)
            expected = math.exp(entropy) / len(row.rejected)
            assert columns["effective_rejected"][place] == pytest.approx(expected, rel=1e-4)
            assert (columns["overlap"][place] is None) == (theirs is None)
        assert report["other"]["shared"] == sum(value is not None for value in columns["overlap"])
        assert report["cache"]["layers"] == list(LAYERS)
        assert report["cache"]["shown"] == report["cache"]["pairs"] == PAIRS
        assert report["other"]["judge"] == "another/judge"


def test_without_texts_offsets_count_characters(tmp_path: Path) -> None:
    fill(tmp_path / "cache", range(3))
    with WeightsCache.open(tmp_path / "cache") as cache:
        world = shown(cache)
        (block,) = blocks(world, bias_of(world))
        content, _ = unpack(block)
        for place, entry in enumerate(content["examples"]):  # type: ignore[index,call-overload]
            assert entry["prompt"] is None
            assert entry["chosen"]["text"] is None
            side = world.examples[place].row.chosen
            assert spans(entry["chosen"]) == list(zip(side.starts.tolist(), side.ends.tolist(), strict=True))
        assert report_json(world, 20)["examples"]["title"] == [""] * 3
        assert report_json(world, 20)["other"] is None


def test_shared_mass_by_hand() -> None:
    def side(ends: list[int], weights: list[float]) -> SideWeights:
        starts = np.array([0, *ends[:-1]], np.int32)
        return SideWeights(starts=starts, ends=np.array(ends, np.int32), weights={0: np.array(weights, np.float32)})

    even, first = side([2, 4], [1, 1]), side([2, 4], [2, 0])
    assert shared_mass(even, 0, even, 0) == 1.0
    assert shared_mass(even, 0, first, 0) == 0.5
    assert shared_mass(first, 0, side([2, 4], [0, 2]), 0) == 0.0
    # One token over all four characters, half of it on each of the two; seen the other way there is but one token.
    assert shared_mass(even, 0, side([4], [1]), 0) == 1.0
    assert shared_mass(side([4], [1]), 0, first, 0) == 1.0
    assert shared_mass(first, 0, side([4], [1]), 0) == 0.5


def test_the_layer_shown_first_is_the_one_that_trains(tmp_path: Path) -> None:
    for said, layer in (("3", 3), ("mean", 29), ("7", 29), (None, 29)):
        folder = tmp_path / str(said)
        with CacheWriter.open(folder, RECIPE, defaults={"attn_source": said} if said else {}) as writer:
            writer.add(make_row(1))
        with WeightsCache.open(folder) as cache:
            assert default_layer(cache) == layer
