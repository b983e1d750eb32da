"""Sources of tokens alone: their formulas, and that they weigh what attention weighs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.pipeline.annotate.sources.conftest import Run
from twdpo.errors import ModelError
from twdpo.pipeline.annotate.sources.tokens import mean_one
from twdpo.weights_cache import WeightsCache, verify


@pytest.mark.parametrize("source", ["uniform", "position"])
def test_the_tokens_are_those_of_attention(run: Run, tmp_path: Path, source: str) -> None:
    counts = run("attention").counts
    result = run("out", source=source)
    assert (result.counts.written, result.counts.duplicates, result.counts.rejected) == (10, 1, 1)
    assert (result.counts.written, result.counts.truncated) == (counts.written, counts.truncated)
    assert result.judge_accuracy is None
    assert verify(tmp_path / "out").ok
    assert (tmp_path / "out/rejects.jsonl").read_text() == (tmp_path / "attention/rejects.jsonl").read_text()
    with WeightsCache.open(tmp_path / "out") as ours, WeightsCache.open(tmp_path / "attention") as theirs:
        assert len(ours) == len(theirs) == 10
        for row in ours.rows():
            other = theirs.get(row.example_hash)
            for name in ("chosen", "rejected"):
                np.testing.assert_array_equal(row.side(name).starts, other.side(name).starts)
                np.testing.assert_array_equal(row.side(name).ends, other.side(name).ends)
            figures = [row.judge_prob_cr, row.judge_prob_rc, row.attention_share_chosen, row.order_agreement_rejected]
            assert np.isnan(figures).all()


def test_uniform_is_all_ones_and_position_decays(run: Run, tmp_path: Path) -> None:
    run("uniform", source="uniform")
    run("position", source="position", source_options="gamma=0.5")
    with WeightsCache.open(tmp_path / "uniform") as uniform, WeightsCache.open(tmp_path / "position") as position:
        assert position.recipe.source_options == {"gamma": 0.5}
        assert (position.layers, position.manifest.defaults["attn_source"]) == ((0,), "0")
        for row in position.rows():
            n = len(row.chosen)
            total = sum(0.5**t for t in range(n))
            expected = [n * 0.5**t / total for t in range(n)]
            np.testing.assert_allclose(row.chosen.weights[0], expected, rtol=2**-11)
            np.testing.assert_array_equal(uniform.get(row.example_hash).chosen.weights[0], np.ones(n))


def test_three_tokens_by_hand() -> None:
    # 1, ½, ¼ sum to 7/4; times 3 over that.
    np.testing.assert_allclose(mean_one([1, 0.5, 0.25], 3, "x"), [12 / 7, 6 / 7, 3 / 7], rtol=1e-6)
    np.testing.assert_array_equal(mean_one([0, 0], 2, "x"), [1, 1])


@pytest.mark.parametrize("scale", [1e308, 1e-310, 5e-324])
def test_any_scale_will_do(scale: float) -> None:
    np.testing.assert_array_equal(mean_one([scale, 0, scale], 3, "x"), [1.5, 0, 1.5])


@pytest.mark.parametrize("values", [[1, 2], [[1, 2, 3]], [1, -1, 3], [1, np.nan, 1], [1, np.inf, 1]])
def test_what_are_no_weights_is_one_line(values: list[float]) -> None:
    with pytest.raises(ModelError, match="--source mine gave"):
        mean_one(values, 3, "mine")


def test_parts_and_going_on_make_the_same_cache(run: Run, tmp_path: Path) -> None:
    run("whole", source="position")
    for part in ("0/2", "1/2"):
        run("parts", source="position", shard=part)
    run("some", source="position", limit=4)
    counts = run("some", source="position").counts
    assert (counts.cached, counts.written) == (4, 6)
    with WeightsCache.open(tmp_path / "whole") as whole:
        for name in ("parts", "some"):
            with WeightsCache.open(tmp_path / name) as other:
                assert len(other) == len(whole)
                for row in whole.rows():
                    found = other.get(row.example_hash)
                    np.testing.assert_array_equal(row.chosen.weights[0], found.chosen.weights[0])


def test_texts_are_stored_where_asked_for(run: Run, tmp_path: Path) -> None:
    run("out", source="uniform", include_text=True)
    assert verify(tmp_path / "out").ok
    with WeightsCache.open(tmp_path / "out") as cache:
        assert next(cache.rows()).chosen_text == "  good answer 0 "
