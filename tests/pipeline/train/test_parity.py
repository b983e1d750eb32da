"""Stage two against independent runs: the published trainer on real pairs, and TRL's DPOTrainer with all weights 1."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.fixtures.tiny_models import tiny_model
from twdpo.pipeline.models import load_model, load_tokenizer
from twdpo.pipeline.tokens import LiteralTokenizer
from twdpo.pipeline.train.batches import Batch, collate
from twdpo.pipeline.train.data import Example, Side
from twdpo.pipeline.train.logps import TokenLogps
from twdpo.pipeline.train.loss import PairLosses, SideLogps, twdpo_loss
from twdpo.pipeline.train.render import Renderer
from twdpo.pipeline.train.weights import WeightRules, training_weights
from twdpo.preferences import Message, Pair
from twdpo.weights_cache import SideWeights

LAYER, BETA = 29, 0.05
RULES = WeightRules(layers=(LAYER,))


def _judged(tokenizer: LiteralTokenizer, answer: str, ids: list[int], p: list[float]) -> SideWeights:
    """A published row as the cache would hold it; the answer was judged stripped, its first token maybe after a space."""
    stripped = len(answer) - len(answer.lstrip())
    tokens = tokenizer.encode("\n" + answer.strip() + "\n")
    first, last = tokens.overlapping(1, 1 + len(answer.strip()))
    assert list(tokens.ids[first:last]) == ids[: last - first]
    starts = np.maximum(tokens.starts[first:last] - 1, 0) + stripped
    ends = np.minimum(tokens.ends[first:last] - 1, len(answer.strip())) + stripped
    weights = (np.asarray(p, np.float32) * len(p)).astype(np.float32)
    n = len(ids)
    return SideWeights(starts=starts[:n].astype(np.int32), ends=ends[:n].astype(np.int32), weights={LAYER: weights})


@pytest.fixture(scope="module")
def published(shared: Path) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The published trainer's figures, each with the row of attention it was trained with."""
    import pyarrow.parquet as pq

    figures = json.loads((shared / "parity" / "published_trainer_12.json").read_text("utf-8"))
    rows = pq.read_table(shared / "parity" / "published_procedure_24.parquet").to_pylist()
    by_text = {(row["chosen"], row["rejected"]): row for row in rows}
    return [(figure, by_text[figure["chosen"], figure["rejected"]]) for figure in figures]


@pytest.fixture(scope="module")
def policies(embedded_model: str) -> Iterator[tuple[Any, TokenLogps, TokenLogps]]:
    """Tokenizer, reference and policy: the same model with its last norm five per cent larger."""
    reference, policy = (load_model(embedded_model, dtype="float32", device="cpu") for _ in range(2))
    with torch.no_grad():
        policy.model.model.norm.weight *= 1.05
    yield reference.tokenizer, TokenLogps(reference.model), TokenLogps(policy.model)


def _example(tokenizer: Any, figure: dict[str, Any], row: dict[str, Any]) -> tuple[Example, Pair]:
    pair = Pair(
        prompt=(Message(role="user", content=figure["prompt"]),), chosen=figure["chosen"], rejected=figure["rejected"]
    )
    rendered = Renderer(tokenizer, max_length=2048).render(pair)
    literal = LiteralTokenizer(tokenizer)
    sides = []
    for name, side in (("chosen", rendered.chosen), ("rejected", rendered.rejected)):
        stored = _judged(literal, figure[name], row[f"{name}_tokens"], row[f"{name}_p_{LAYER}"])
        weights = training_weights(stored, side, RULES)
        sides.append(Side(ids=side.ids, prompt_length=side.prompt_length, weights=weights))
    return Example(example_hash=pair.example_hash, row=0, chosen=sides[0], rejected=sides[1]), pair


def _with_one_more_end_of_turn(example: Example, token: int) -> Example:
    """The published trainer appends an end-of-turn token, which we don't; it weighs nothing."""
    sides = (
        Side(
            ids=np.append(side.ids, np.int32(token)),
            prompt_length=side.prompt_length,
            weights=np.append(side.weights, np.float32(0)),
        )
        for side in (example.chosen, example.rejected)
    )
    chosen, rejected = sides
    return replace(example, chosen=chosen, rejected=rejected)


@torch.no_grad()
def _losses(example: Example, reference: TokenLogps, policy: TokenLogps) -> PairLosses:
    batch = collate([example], None)
    both = [batch.spread(model(batch.ids, batch.mask, batch.wanted)) for model in (policy, reference)]
    return _loss_of(batch, both[0], both[1], BETA)


def _loss_of(batch: Batch, policy: torch.Tensor, reference: torch.Tensor, beta: float) -> PairLosses:
    sides = zip(policy.chunk(2), reference.chunk(2), batch.weights.chunk(2), strict=True)
    chosen, rejected = (SideLogps(policy=p, reference=r, weights=w) for p, r, w in sides)
    return twdpo_loss(chosen, rejected, beta=beta)


def _agree_with(figure: dict[str, Any], found: PairLosses) -> None:
    expected = {
        "loss": found.losses,
        "rewards/weighted_chosen": found.weighted_chosen_rewards,
        "rewards/weighted_rejected": found.weighted_rejected_rewards,
        "logps/weighted_chosen": found.weighted_chosen_logps,
        "logps/weighted_rejected": found.weighted_rejected_logps,
    }
    for name, value in expected.items():
        assert value.item() == pytest.approx(figure[name], rel=1e-4), name


@pytest.mark.model
@pytest.mark.parametrize(
    "numbers", [range(1, 3), pytest.param(range(12), marks=pytest.mark.slow)], ids=["two pairs", "all"]
)
def test_published_trainer(
    published: list[tuple[dict[str, Any], dict[str, Any]]],
    policies: tuple[Any, TokenLogps, TokenLogps],
    numbers: range,
) -> None:
    tokenizer, reference, policy = policies
    for number in numbers:
        figure, row = published[number]
        example, _ = _example(tokenizer, figure, row)
        _agree_with(figure, _losses(example, reference, policy))
        longer = _with_one_more_end_of_turn(example, tokenizer.eos_token_id)
        found = _losses(longer, reference, policy)
        _agree_with(figure, found)
        assert found.chosen_logps.item() == pytest.approx(figure["logps/chosen"], rel=1e-4)
        assert found.rejected_logps.item() == pytest.approx(figure["logps/rejected"], rel=1e-4)
        assert found.chosen_rewards.item() == pytest.approx(figure["rewards/chosen"], rel=1e-3)
        assert found.rejected_rewards.item() == pytest.approx(figure["rewards/rejected"], rel=1e-3)
