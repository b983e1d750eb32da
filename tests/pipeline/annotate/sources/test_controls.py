"""`shuffled` and `random`: from a cache and from a judge alike, whatever the order, and fair after the sink fix."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.pipeline.annotate.sources.conftest import Run
from twdpo.errors import DataError, RecipeMismatch, UsageError
from twdpo.weights_cache import Manifest, WeightsCache, verify
from twdpo.weights_cache.transforms import sink_fix


def rows_of(folder: Path) -> dict[str, Any]:
    with WeightsCache.open(folder) as cache:
        return {row.example_hash: row for row in cache.rows()}


def assert_same_weights(first: Path, second: Path) -> None:
    ours, theirs = rows_of(first), rows_of(second)
    assert ours.keys() == theirs.keys()
    for key, row in ours.items():
        for name in ("chosen", "rejected"):
            for layer, weights in row.side(name).weights.items():
                np.testing.assert_array_equal(weights, theirs[key].side(name).weights[layer])


@pytest.mark.parametrize("source", ["shuffled", "random"])
def test_a_base_gives_what_judging_gives(run: Run, pairs_file: Path, tmp_path: Path, source: str) -> None:
    judged = run("judged", source=source)
    attention = run("attention")
    result = run("based", source=source, base=str(tmp_path / "attention"))
    assert (result.counts.written, result.counts.duplicates, result.counts.rejected) == (10, 1, 1)
    assert result.judge_accuracy == judged.judge_accuracy == attention.judge_accuracy
    assert verify(tmp_path / "based").ok
    manifests = [Manifest.load(tmp_path / name) for name in ("judged", "based")]
    assert manifests[0].recipe == manifests[1].recipe
    assert manifests[0].defaults == manifests[1].defaults == Manifest.load(tmp_path / "attention").defaults
    assert_same_weights(tmp_path / "judged", tmp_path / "based")
    # And in any order, cut anyhow.
    lines = pairs_file.read_text().splitlines(keepends=True)
    (tmp_path / "turned.jsonl").write_text("".join(reversed(lines)))
    for part in ("1/2", "0/2"):
        turned = str(tmp_path / "turned.jsonl")
        run("parts", source=source, base=str(tmp_path / "attention"), dataset=turned, shard=part)
    assert_same_weights(tmp_path / "judged", tmp_path / "parts")


def test_weights_are_those_of_the_base_before_and_after_the_sink_fix(run: Run, tmp_path: Path) -> None:
    run("attention")
    run("shuffled", source="shuffled", base=str(tmp_path / "attention"))
    run("other", source="shuffled", base=str(tmp_path / "attention"), source_options="seed=1")
    before, after, other = (rows_of(tmp_path / name) for name in ("attention", "shuffled", "other"))
    moved = 0
    for key, row in before.items():
        for layer, weights in row.chosen.weights.items():
            found = after[key].chosen.weights[layer]
            np.testing.assert_array_equal(np.sort(found), np.sort(weights))
            np.testing.assert_allclose(np.sort(sink_fix(found)), np.sort(sink_fix(weights)), rtol=1e-6)
            moved += not np.array_equal(found, weights)
            moved += not np.array_equal(found, other[key].chosen.weights[layer])
        figures = [after[key].judge_prob_cr, after[key].attention_share_chosen]
        assert figures == [row.judge_prob_cr, row.attention_share_chosen]
        assert np.isnan(after[key].order_agreement_chosen)
    assert moved > 40


def test_the_mean_over_layers_is_reworked_as_each_layer_is(run: Run, tmp_path: Path) -> None:
    run("attention")
    run("random", source="random", base=str(tmp_path / "attention"))
    for key, row in rows_of(tmp_path / "random").items():
        base = rows_of(tmp_path / "attention")[key]
        factors = [row.chosen.weights[layer][1:] for layer in (0, 1)]
        for number, layer in enumerate((0, 1)):
            # Where two tokens drew the same token, they did so in every layer.
            same = factors[number][:, None] == factors[number][None]
            if len(np.unique(base.chosen.weights[layer][1:])) == len(base.chosen) - 1:
                np.testing.assert_array_equal(same, factors[1 - number][:, None] == factors[1 - number][None])


def test_pairs_that_the_base_lacks_stop_the_run_and_its_rejects_stay_rejects(
    run: Run, pairs_file: Path, tmp_path: Path
) -> None:
    run("some", limit=4)
    with pytest.raises(DataError, match=r"has no weights of row 4 of the data set; annotate all pairs into it first"):
        run("out", source="shuffled", base=str(tmp_path / "some"))
    assert len(rows_of(tmp_path / "out")) <= 4
    counts = run("out", source="shuffled", base=str(tmp_path / "some"), limit=4).counts
    assert counts.written + counts.cached == 4
    # A pair that the judge's prompt had no room for.
    long = {"prompt": "q", "chosen": "\ud800", "rejected": "b"}
    (tmp_path / "bad.jsonl").write_text(json.dumps(long) + "\n" + pairs_file.read_text())
    bad = str(tmp_path / "bad.jsonl")
    assert run("whole", dataset=bad).counts.rejected == 2
    assert run("control", dataset=bad, source="random", base=str(tmp_path / "whole")).counts.rejected == 2


def test_a_base_of_another_source_is_named_in_the_recipe(run: Run, tmp_path: Path) -> None:
    run("position", source="position", source_options="gamma=0.9")
    run("out", source="shuffled", base=str(tmp_path / "position"))
    recipe = Manifest.load(tmp_path / "out").recipe
    assert recipe.source_options == {"seed": 0, "first_token": "moved", "of": "position", "of_options": {"gamma": 0.9}}
    assert not Manifest.load(tmp_path / "out").has_sink
    # No sink lies on the first token, so that it takes part.
    before, after = (rows_of(tmp_path / name) for name in ("position", "out"))
    assert any(after[key].chosen.weights[0][0] != row.chosen.weights[0][0] for key, row in before.items())
    with pytest.raises(UsageError, match="its weights are shuffled already; name what it was made of"):
        run("twice", source="random", base=str(tmp_path / "out"))


def test_another_seed_is_another_recipe(run: Run) -> None:
    run("out", source="random")
    with pytest.raises(RecipeMismatch, match=r'source_options: {"seed":0} in the cache, {"seed":1} asked for'):
        run("out", source="random", source_options="seed=1")
    with pytest.raises(RecipeMismatch, match=r"source: random in the cache, shuffled asked for"):
        run("out", source="shuffled")


@pytest.mark.parametrize("source", ["shuffled", "random", "attention", "uniform", "position"])
def test_the_sink_fix_is_for_sources_with_a_sink(run: Run, tmp_path: Path, source: str) -> None:
    run("out", source=source)
    assert Manifest.load(tmp_path / "out").has_sink == (source in ("shuffled", "random", "attention"))
