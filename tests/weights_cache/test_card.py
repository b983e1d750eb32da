"""The data-set card: its header, its escapes, and who may write it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import yaml

from tests.weights_cache.samples import RECIPE, SOURCE, fill
from twdpo.weights_cache import Manifest
from twdpo.weights_cache.card import MARKER, render_card


def test_the_header_points_at_the_shards(tmp_path: Path) -> None:
    fill(tmp_path, range(5))
    _, header, body = (tmp_path / "README.md").read_text("utf-8").split("---\n", 2)
    assert yaml.safe_load(header)["configs"] == [
        {"config_name": "default", "data_files": [{"split": "train", "path": "data/*.parquet"}]}
    ]
    assert "5 pairs, 2 of them cut" in body
    assert RECIPE.fingerprint in body
    assert "| demo | demo |  | train |  | Apache-2.0 |" in body


def test_what_a_person_wrote_is_kept(tmp_path: Path) -> None:
    fill(tmp_path, range(2))
    card = tmp_path / "README.md"
    card.write_text(card.read_text("utf-8").replace(MARKER, "My own words."), "utf-8")
    fill(tmp_path, range(4))
    assert "My own words." in card.read_text("utf-8")
    assert "2 pairs" in card.read_text("utf-8")


def test_nothing_in_the_manifest_can_break_the_table() -> None:
    source = {**SOURCE, "name": "a|b\n<script>\n---"}
    card = render_card("c", Manifest(recipe=replace(RECIPE, judge_model="x\n| y"), sources=(source,)))
    assert "| a\\|b &lt;script> --- |" in card
    assert "| judge_model | x \\| y |" in card
    assert RECIPE.judge_template not in card
