"""Recipes and rows for the tests of the cache. A row's content depends on its number alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from twdpo.preferences.pair import Message, example_hash
from twdpo.weights_cache import CacheWriter, Recipe, SideWeights, WeightRow, round_mantissa

LAYERS = (0, 3, 29)
RECIPE = Recipe(
    judge_model="a/judge",
    judge_revision="0123abcd",
    dtype="float32",
    judge_template="{question} | {answer_a} | {answer_b} – which?",
    chat_template_hash="feed",
    chat_template_kwargs={"enable_thinking": False},
    max_length=2048,
    layers=LAYERS,
)
SOURCE = {"name": "demo", "kind": "named", "location": "demo", "split": "train", "licence": "Apache-2.0"}
TEXT = "Grüße, 世界! 👩‍👩‍👧 مرحبا \u0000\n | <b>"


def make_side(rng: np.random.Generator, tokens: int, layers: Sequence[int] = LAYERS) -> SideWeights:
    """Random weights over `tokens` tokens, some of which share a character."""
    lengths = rng.integers(1, 9, tokens)
    ends = np.cumsum(lengths).astype(np.int32)
    starts = (ends - lengths).astype(np.int32)
    raw = {layer: rng.lognormal(0, 1.5, tokens) for layer in layers}
    weights = {layer: (values / values.mean()).astype(np.float32) for layer, values in raw.items()}
    return SideWeights(starts=starts, ends=ends, weights=weights)


def make_row(number: int, *, text: bool = False, layers: Sequence[int] = LAYERS) -> WeightRow:
    """Row `number`: the same whenever it is made."""
    rng = np.random.default_rng(number)
    prompt = (("system", f"{number}"), ("user", TEXT * 2))
    chosen, rejected = f"{number} {TEXT * 20}", f"{TEXT * 20} {number}"
    messages = tuple(Message(role=role, content=content) for role, content in prompt)
    row = WeightRow(
        example_hash=example_hash(messages, chosen, rejected),
        chosen=make_side(rng, int(rng.integers(1, 40)), layers),
        rejected=make_side(rng, int(rng.integers(1, 40)), layers),
        judge_prob_cr=float(np.float32(rng.random())),
        judge_prob_rc=float(np.float32(rng.random())),
        attention_share_chosen=0.25,
        attention_share_rejected=0.5,
        order_agreement_chosen=-0.5,
        truncated=number % 3 == 0,
    )
    return replace(row, prompt=prompt, chosen_text=chosen, rejected_text=rejected) if text else row


def content(row: WeightRow) -> tuple[object, ...]:
    """All that a row says, as it is after storage, in a form that compares with ==."""
    sides = []
    for side in (row.chosen, row.rejected):
        weights = {layer: round_mantissa(values).tobytes() for layer, values in side.weights.items()}
        sides.append((side.starts.tobytes(), side.ends.tobytes(), weights))
    floats = [row.judge_prob_cr, row.judge_prob_rc, row.attention_share_chosen, row.attention_share_rejected]
    agreement = [row.order_agreement_chosen, row.order_agreement_rejected]
    texts = (row.prompt, row.chosen_text, row.rejected_text)
    return row.example_hash, sides, np.array([*floats, *agreement], np.float32).tobytes(), row.truncated, texts


def fill(folder: Path, numbers: Sequence[int], *, shard_rows: int = 4, text: bool = False) -> list[WeightRow]:
    """Write the rows of `numbers` into the cache in `folder`, and return them."""
    rows = [make_row(number, text=text) for number in numbers]
    with CacheWriter.open(folder, RECIPE, dataset=SOURCE, include_text=text, shard_rows=shard_rows) as writer:
        for row in rows:
            writer.add(row)
    return rows
