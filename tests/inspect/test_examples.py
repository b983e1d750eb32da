"""Pairs out of a cache: the one that a data-set card shows."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.weights_cache.samples import RECIPE, make_side
from twdpo.inspect.examples import card_example
from twdpo.preferences import Pair, load, resolve
from twdpo.weights_cache import CacheWriter, WeightRow
from twdpo.weights_cache.card import fits

DEMO = {"name": "demo", "kind": "demo", "location": "demo", "split": "train"}


def write(folder: Path, pairs: list[Pair], source: dict[str, str]) -> Path:
    rng = np.random.default_rng(0)
    with CacheWriter.open(folder, RECIPE, dataset=source) as writer:
        for pair in pairs:
            row = WeightRow(
                example_hash=pair.example_hash,
                chosen=make_side(rng, 3),
                rejected=make_side(rng, 3),
            )
            writer.add(row)
    return folder


def demo_pairs() -> list[Pair]:
    return [pair for pair in load(resolve("demo", "train")) if isinstance(pair, Pair)]


def test_a_pair_that_the_picture_shows_whole_comes_first(tmp_path: Path) -> None:
    pairs = demo_pairs()
    chosen = card_example(write(tmp_path, pairs, DEMO))
    assert chosen is not None
    assert fits(chosen)
    assert chosen == next(pair for pair in pairs if fits(pair))


def test_where_none_fits_it_is_the_first_of_the_cache(tmp_path: Path) -> None:
    short = [pair for pair in demo_pairs() if not fits(pair)][2:5]
    assert card_example(write(tmp_path, short, DEMO)) == short[0]


def test_a_data_set_that_is_not_there_gives_none(tmp_path: Path) -> None:
    gone = {"name": str(tmp_path / "gone.jsonl"), "kind": "path", "location": "gone"}
    assert card_example(write(tmp_path / "cache", demo_pairs()[:2], gone)) is None
    assert card_example(write(tmp_path / "nameless", demo_pairs()[:2], {"kind": "path"})) is None
