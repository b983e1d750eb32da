"""Checks of the embedded preference pairs (``twdpo/preferences/demo/pairs.jsonl``)."""

import importlib.resources
import json
import unicodedata
from collections import Counter
from statistics import mean
from typing import Any

import pytest

KEYS = ["id", "split", "category", "prompt", "chosen", "rejected", "flaw", "note"]
CATEGORIES = {
    "instruction",
    "fact",
    "arithmetic",
    "code",
    "rewrite",
    "multi-turn",
    "system",
    "multilingual",
    "long",
}


def read_pairs() -> list[dict[str, Any]]:
    path = importlib.resources.files("twdpo.preferences.demo") / "pairs.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


PAIRS = read_pairs()
each_pair = pytest.mark.parametrize("pair", PAIRS, ids=[str(pair.get("id")) for pair in PAIRS])


def test_counts() -> None:
    assert len(PAIRS) >= 96
    splits = Counter(pair["split"] for pair in PAIRS)
    assert set(splits) == {"train", "test"}
    assert splits["test"] == 24


def test_every_category_in_both_splits() -> None:
    counts = Counter((pair["category"], pair["split"]) for pair in PAIRS)
    assert {category for category, _ in counts} == CATEGORIES
    for category in CATEGORIES:
        assert counts[category, "test"] >= 2, category
        assert counts[category, "train"] + counts[category, "test"] >= 8, category


def test_ids_and_contents_are_unique() -> None:
    assert len({pair["id"] for pair in PAIRS}) == len(PAIRS)
    contents = {(json.dumps(pair["prompt"]), pair["chosen"], pair["rejected"]) for pair in PAIRS}
    assert len(contents) == len(PAIRS)


def test_splits_share_no_prompt() -> None:
    train, test = (
        {pair["prompt"][-1]["content"] for pair in PAIRS if pair["split"] == split} for split in ("train", "test")
    )
    assert not train & test


@each_pair
def test_schema(pair: dict[str, Any]) -> None:
    assert list(pair) == KEYS
    for key in KEYS:
        if key != "prompt":
            assert isinstance(pair[key], str), key
            assert pair[key].strip(), key
    assert pair["category"] in CATEGORIES


@each_pair
def test_messages(pair: dict[str, Any]) -> None:
    messages = pair["prompt"]
    assert isinstance(messages, list)
    for message in messages:
        assert list(message) == ["role", "content"]
        assert isinstance(message["content"], str)
        assert message["content"].strip()
    roles = [message["role"] for message in messages]
    assert roles[-1] == "user"
    has_system = roles[0] == "system"
    turns = roles[1:] if has_system else roles
    assert turns == [("user", "assistant")[i % 2] for i in range(len(turns))]
    if pair["category"] == "system":
        assert has_system
    if pair["category"] == "multi-turn":
        assert len(turns) >= 3


@each_pair
def test_flaw(pair: dict[str, Any]) -> None:
    chosen, rejected, flaw = pair["chosen"], pair["rejected"], pair["flaw"]
    assert chosen.strip() != rejected.strip()
    start = rejected.find(flaw)
    assert start >= 0
    # Overlapping occurrences count too, so ``str.count`` would not do.
    assert rejected.find(flaw, start + 1) == -1
    assert flaw not in chosen


def test_most_flaws_are_tight() -> None:
    loose = [pair["id"] for pair in PAIRS if len(pair["flaw"]) > 0.7 * len(pair["rejected"])]
    assert len(loose) <= 0.05 * len(PAIRS), loose


def test_flaws_lie_in_every_third() -> None:
    thirds = Counter[int]()
    for pair in PAIRS:
        middle = pair["rejected"].index(pair["flaw"]) + len(pair["flaw"]) / 2
        thirds[int(3 * middle / len(pair["rejected"]))] += 1
    assert all(thirds[third] >= 0.15 * len(PAIRS) for third in range(3)), thirds


@pytest.mark.parametrize("unit", ["characters", "words"])
def test_length_balance(unit: str) -> None:
    lengths = [
        tuple(len(text) if unit == "characters" else len(text.split()) for text in (pair["chosen"], pair["rejected"]))
        for pair in PAIRS
    ]
    chosen, rejected = mean(c for c, _ in lengths), mean(r for _, r in lengths)
    assert abs(chosen - rejected) <= 0.15 * max(chosen, rejected)
    longer, shorter = sum(c > r for c, r in lengths), sum(c < r for c, r in lengths)
    assert 0.4 <= longer / (longer + shorter) <= 0.6


@each_pair
def test_long_answers_are_long(pair: dict[str, Any]) -> None:
    counts = [len(pair[key].split()) for key in ("chosen", "rejected")]
    if pair["category"] == "long":
        assert all(120 <= count <= 180 for count in counts), counts
    else:
        assert all(count <= 80 for count in counts), counts


def test_scripts() -> None:
    text = "".join(pair["chosen"] + pair["rejected"] for pair in PAIRS)
    # The first word of a letter's name is its script: "GREEK SMALL LETTER ALPHA", "CJK UNIFIED IDEOGRAPH-4E00".
    scripts = {unicodedata.name(char, "?").split(maxsplit=1)[0] for char in set(text) if char.isalpha()}
    assert len(scripts) >= 8, scripts
    assert {"LATIN", "GREEK", "CYRILLIC", "ARABIC", "HEBREW", "DEVANAGARI", "HANGUL", "CJK", "THAI"} <= scripts


def test_some_answers_have_outer_newlines() -> None:
    for key in ("chosen", "rejected"):
        assert any(pair[key].startswith("\n") for pair in PAIRS), key
        assert any(pair[key].endswith("\n") for pair in PAIRS), key
