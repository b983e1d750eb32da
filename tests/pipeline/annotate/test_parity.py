"""Stage one against an independent run of the published procedure: same model, float32, real pairs."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from twdpo.pipeline.annotate.prompt import PromptBuilder, load_template
from twdpo.pipeline.annotate.rows import make_row
from twdpo.preferences import Message, Pair
from twdpo.weights_cache import CacheWriter, Recipe, WeightsCache

pytestmark = pytest.mark.model

LAYERS = (5, 11, 17, 23, 29)
#: Pairs that the default tests run: the six shortest.
FAST = 6


@cache
def published(shared: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(shared / "parity/published_procedure_24.parquet").to_pylist()
    return sorted(rows, key=lambda row: len(row["prompt"]) + len(row["chosen"]) + len(row["rejected"]))


def as_pair(row: dict[str, Any]) -> Pair:
    prompt = (Message(role="user", content=row["prompt"]),)
    return Pair(prompt=prompt, chosen=row["chosen"], rejected=row["rejected"])


@cache
def judge(name: str) -> tuple[Any, PromptBuilder]:
    from twdpo.pipeline.annotate.engines.transformers import TransformersEngine
    from twdpo.pipeline.models import load_model

    loaded = load_model(name, dtype="float32", device="cpu")
    return TransformersEngine(loaded.model), PromptBuilder(loaded.tokenizer, template=load_template(None))


def test_every_token_id_is_equal(shared: Path, embedded_model: str) -> None:
    _, builder = judge(embedded_model)
    rows = published(shared)
    assert len(rows) == 24
    for row in rows:
        cr, rc = (builder.build(as_pair(row), order) for order in ("cr", "rc"))
        for prompt, span, side in (
            (cr, cr.answer_a, "chosen"),
            (cr, cr.answer_b, "rejected"),
            (rc, rc.answer_a, "rejected"),
            (rc, rc.answer_b, "chosen"),
        ):
            assert prompt.ids[span.first : span.last].tolist() == row[f"{side}_tokens"]


@pytest.mark.parametrize("part", ["fast", pytest.param("rest", marks=pytest.mark.slow)])
def test_weights_agree(shared: Path, embedded_model: str, tmp_path: Path, part: str) -> None:
    """Every p within 2e-6 as computed, and within 1/4096 relative as read back from the cache."""
    engine, builder = judge(embedded_model)
    rows = published(shared)[:FAST] if part == "fast" else published(shared)[FAST:]
    pairs = [as_pair(row) for row in rows]
    prompts = [(builder.build(pair, "cr"), builder.build(pair, "rc")) for pair in pairs]
    assert any(prompt.truncated for both in prompts for prompt in both) == (part == "rest")
    readings = engine.read([prompt for both in prompts for prompt in both], LAYERS, builder.verdict_ids())
    computed = [
        make_row(pair, both, (readings[2 * i], readings[2 * i + 1]), LAYERS)
        for i, (pair, both) in enumerate(zip(pairs, prompts, strict=True))
    ]
    recipe = Recipe(
        judge_model=embedded_model,
        judge_revision=None,
        dtype="float32",
        judge_template=load_template(None),
        chat_template_hash=builder.frame_hash,
        max_length=2048,
        layers=LAYERS,
    )
    with CacheWriter.open(tmp_path / "cache", recipe) as writer:
        for made in computed:
            writer.add(made)
    with WeightsCache.open(tmp_path / "cache") as cache_:
        stored = cache_.fetch([pair.example_hash for pair in pairs])
    for row, made, kept in zip(rows, computed, stored, strict=True):
        for layer in LAYERS:
            for side in ("chosen", "rejected"):
                expected = np.asarray(row[f"{side}_p_{layer}"])
                p = made.side(side).weights[layer].astype(np.float64) / len(expected)
                np.testing.assert_allclose(p, expected, atol=2e-6, rtol=0)
                read = kept.side(side).weights[layer].astype(np.float64) / len(expected)
                np.testing.assert_allclose(read, p, atol=0, rtol=1 / 4096)
    for i, row in enumerate(rows):
        cr, rc = readings[2 * i], readings[2 * i + 1]
        for layer in LAYERS:
            for name, raw in (
                ("cr_chosen", cr.attention[layer][0]),
                ("cr_rejected", cr.attention[layer][1]),
                ("rc_rejected", rc.attention[layer][0]),
                ("rc_chosen", rc.attention[layer][1]),
            ):
                np.testing.assert_allclose(raw, row[f"{name}_attention_{layer}"], atol=2e-6, rtol=0)
