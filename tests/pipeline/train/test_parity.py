"""Stage two against independent runs: the published trainer on real pairs, and TRL's DPOTrainer with all weights 1."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.fixtures.tiny_models import tiny_model
from twdpo.pipeline.models import load_model, load_tokenizer
from twdpo.pipeline.tokens import LiteralTokenizer
from twdpo.pipeline.train.data import Example, Side
from twdpo.pipeline.train.layouts import Batch, collate
from twdpo.pipeline.train.logps import TokenLogps
from twdpo.pipeline.train.loss import PairLosses, SideLogps, twdpo_loss
from twdpo.pipeline.train.render import Renderer
from twdpo.pipeline.train.weights import WeightRules, training_weights, uniform_weights
from twdpo.preferences import Message, Pair
from twdpo.weights_cache import SideWeights

LAYER, BETA = 29, 0.05
RULES = WeightRules(layers=(LAYER,))


def _judged(tokenizer: LiteralTokenizer, answer: str, ids: list[int], p: list[float]) -> SideWeights:
    """A published row as the cache would hold it; the answer was judged without white space around it."""
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
def policies(embedded_model: str) -> tuple[Any, TokenLogps, TokenLogps]:
    """Tokenizer, reference and policy: the same model with its last norm five per cent larger."""
    reference, policy = (load_model(embedded_model, dtype="float32", device="cpu") for _ in range(2))
    with torch.no_grad():
        policy.model.model.norm.weight *= 1.05
    return reference.tokenizer, TokenLogps(reference.model), TokenLogps(policy.model)


def _example(tokenizer: Any, figure: dict[str, Any], row: dict[str, Any]) -> Example:
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
    return Example(example_hash=pair.example_hash, row=0, chosen=sides[0], rejected=sides[1])


def _with_one_more_end_of_turn(example: Example, token: int) -> Example:
    """The published trainer appends an end-of-turn token, which we don't; it weighs nothing and nothing follows it."""
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
def _losses(example: Example, reference: TokenLogps, policy: TokenLogps, published: list[float]) -> PairLosses:
    """Our losses from our log-probs of the policy, and the published sums of the reference's.

    The published run computed its reference in half precision, to which our float32 one agrees to a per cent only (as
    checked here); ours is moved, by a + b·w_t, to where its plain and weighted sums are the published ones.
    """
    batch = collate([example], None, layout=policy.layout)
    ours, moved = batch.spread(reference(**batch.inputs)).double(), []
    for row, (plain, weighted) in enumerate(zip(published[:2], published[2:], strict=True)):
        w, filled = batch.weights[row].double(), batch.filled[row].double()
        basis = torch.stack([filled, w])
        lack = torch.tensor([plain, weighted], dtype=torch.float64) - basis @ ours[row]
        assert lack.abs().max() < 0.01 * abs(weighted) + 0.5
        moved.append(ours[row] + torch.linalg.solve(basis @ basis.T, lack) @ basis)
    return _loss_of(batch, batch.spread(policy(**batch.inputs)).double(), torch.stack(moved), BETA)


def _loss_of(batch: Batch, policy: torch.Tensor, reference: torch.Tensor, beta: float) -> PairLosses:
    sides = zip(policy.chunk(2), reference.chunk(2), batch.weights.chunk(2), strict=True)
    chosen, rejected = (SideLogps(policy=p, reference=r, weights=w) for p, r, w in sides)
    return twdpo_loss(chosen, rejected, beta=beta)


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
        example = _example(tokenizer, figure, row)
        longer = _with_one_more_end_of_turn(example, tokenizer.eos_token_id)
        found = _losses(longer, reference, policy, figure["ref"])
        values = {
            "loss": found.losses,
            "logps/weighted_chosen": found.weighted_chosen_logps,
            "logps/weighted_rejected": found.weighted_rejected_logps,
            "logps/chosen": found.chosen_logps,
            "logps/rejected": found.rejected_logps,
            "rewards/weighted_chosen": found.weighted_chosen_rewards,
            "rewards/weighted_rejected": found.weighted_rejected_rewards,
            "rewards/chosen": found.chosen_rewards,
            "rewards/rejected": found.rejected_rewards,
        }
        for name, value in values.items():
            # A reward is a difference of sums, and as exact as float32 keeps those.
            rounding = BETA * 5e-6 * abs(figure[name.replace("rewards", "logps")]) if "rewards" in name else 0.0
            assert value.item() == pytest.approx(figure[name], rel=1e-4, abs=rounding), name


def _trl_losses(
    policy: Any, reference: Any, tokenizer: Any, pairs: list[Pair], beta: float, folder: Path
) -> list[float]:
    """TRL's own loss of each pair, through its own data preparation."""
    from datasets import Dataset

    trl: Any = importlib.import_module("trl")
    rows = [
        {
            "prompt": [{"role": m.role, "content": m.content} for m in pair.prompt],
            "chosen": [{"role": "assistant", "content": pair.chosen}],
            "rejected": [{"role": "assistant", "content": pair.rejected}],
        }
        for pair in pairs
    ]
    arguments = trl.DPOConfig(
        output_dir=str(folder), beta=beta, max_length=2048, use_cpu=True, bf16=False, report_to=[], disable_tqdm=True
    )
    trainer = trl.DPOTrainer(
        model=policy,
        ref_model=reference,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    with torch.no_grad():
        return [float(trainer.compute_loss(trainer.model, trainer.data_collator([e]))) for e in trainer.train_dataset]


@pytest.mark.model
@pytest.mark.filterwarnings("ignore")
def test_all_ones_are_trl_dpo(embedded_model: str, tmp_path: Path) -> None:
    """With all weights 1, end of turn included, the loss is DPO as TRL computes it; small model, real tokenizer."""
    pytest.importorskip("trl")
    tokenizer = load_tokenizer(embedded_model)
    policy, reference = (tiny_model(seed=seed, vocab_size=len(tokenizer), context=2048) for seed in (1, 2))
    texts = [
        ("What is 2 + 2?", "It is 4.", "It is 5, I think, or maybe not."),
        ("Name a colour.", " Red\n", "\n\nBlue is a colour; so are *green* and `yellow`."),
        ("Greet me in Greek.", "Γειά σου! 👋🏽", "Hello"),
    ]
    pairs = [Pair(prompt=(Message(role="user", content=q),), chosen=c, rejected=r) for q, c, r in texts]
    renderer = Renderer(tokenizer, max_length=2048)
    ours = []
    for pair in pairs:
        rendered = renderer.render(pair)
        sides = [
            Side(
                ids=s.ids,
                prompt_length=s.prompt_length,
                weights=uniform_weights(s, WeightRules(layers=(), uncovered="one")),
            )
            for s in (rendered.chosen, rendered.rejected)
        ]
        assert all((side.weights == 1).all() for side in sides)
        batch = collate([Example(example_hash="", row=0, chosen=sides[0], rejected=sides[1])], None)
        with torch.no_grad():
            both = [batch.spread(TokenLogps(model)(**batch.inputs)) for model in (policy, reference)]
        ours.append(_loss_of(batch, both[0], both[1], 0.1).losses.item())
    theirs = _trl_losses(policy, reference, tokenizer, pairs, 0.1, tmp_path)
    assert max(abs(loss - np.log(2)) for loss in theirs) > 0.01
    assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-5)
