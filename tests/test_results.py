"""Results as tables and as JSON: dashes and nulls where there is nothing, blocks that follow the numbers."""

from __future__ import annotations

import io
import json
from dataclasses import fields, replace
from pathlib import Path

from rich.console import Console

from tests.weights_cache.samples import RECIPE, SOURCE, make_row
from twdpo import results
from twdpo.weights_cache import CacheSummary, CacheWriter, Manifest, Recipe, WeightsCache, summarize

NAN = float("nan")
EVEN = replace(RECIPE, source="position", judge_model="", judge_revision=None, dtype="", judge_template="", layers=(0,))


def summed(folder: Path, recipe: Recipe, **changes: object) -> tuple[CacheSummary, Manifest]:
    with CacheWriter.open(folder, recipe, dataset=SOURCE) as writer:
        for number in range(3):
            row = make_row(number, layers=recipe.layers)
            writer.add(replace(row, **changes))  # type: ignore[arg-type]
    with WeightsCache.open(folder) as cache:
        return summarize(cache), cache.manifest


def test_weights_without_a_judge_have_dashes_and_nulls(tmp_path: Path) -> None:
    missing = dict.fromkeys(
        ("judge_prob_cr", "judge_prob_rc", "order_agreement_chosen", "order_agreement_rejected"), NAN
    )
    summary, manifest = summed(tmp_path / "cache", EVEN, **missing)
    rows = results.summary_rows(summary, manifest, 2)
    assert rows["pairs"] == "3, 2 left out"
    assert rows["truncated"] == "1 (33.3%)"
    assert rows["judge prefers chosen"] == "– (chosen first –, rejected first –)"
    assert rows["in both orders"] == "right –, wrong –, verdict flips –"
    assert rows["orders agree"] == "– of the weight"
    assert rows["recipe"] == "weights by position, no judge, layers 0"
    assert rows["sources"] == "demo [train]"
    machine = json.loads(json.dumps(results.summary_json(summary, manifest, 2), allow_nan=False))
    for name in ("judge_accuracy", "both_right", "both_wrong", "verdict_flips", "position_bias", "order_agreement"):
        assert machine[name] is None
    assert machine["effective_share"] == summary.effective_share


def test_the_names_for_machines_are_stable(tmp_path: Path) -> None:
    summary, manifest = summed(tmp_path / "cache", RECIPE)
    machine = results.summary_json(summary, manifest, 0)
    assert set(machine) == {field.name for field in fields(CacheSummary)} | {
        "rejected",
        "recipe",
        "fingerprint",
        "sources",
        "defaults",
        "include_text",
        "schema_version",
        "twdpo_version",
    }
    assert machine["recipe"] == RECIPE.to_json()
    assert machine["sources"] == [SOURCE]


def test_blocks_follow_the_numbers(tmp_path: Path) -> None:
    summary, _ = summed(tmp_path / "cache", RECIPE)
    flat = replace(summary, deciles=(0.0, 2.0, 1.0, 0.5, 2.0, 2.0, 1.7, 0.24, 0.26, 1.0))
    numbers, blocks = results.summary_rows(flat)["weight by tenth"].split("\n")
    assert [block[0] for block in blocks.split()] == list("▁█▅▃██▇▁▂▅")
    # Each block stands under its number.
    assert [len(word) for word in numbers.split()] == [len(word) for word in blocks.split()]
    even = replace(summary, deciles=(0.0,) * 10)
    assert set(results.summary_rows(even)["weight by tenth"].split("\n")[1]) == {"▁", " "}


def test_a_long_list_of_sources_is_cut(tmp_path: Path) -> None:
    summary, manifest = summed(tmp_path / "cache", RECIPE)
    many = replace(manifest, sources=tuple({"name": f"set{i}"} for i in range(5)))
    assert results.summary_rows(summary, many)["sources"] == "set0, set1, set2 and 2 more"


def test_values_are_text_and_not_markup() -> None:
    out = io.StringIO()
    Console(file=out, width=80, force_terminal=True).print(results.table({"name": "[red]x[/red] \x1b[31m [/oops]"}))
    assert "[red]x[/red] ⟨U+001B⟩[31m [/oops]" in out.getvalue()
