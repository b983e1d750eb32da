"""Figures of held-out pairs against an oracle: each sequence alone, whole logits, float64, plain loops."""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.fixtures.tiny_models import VOCABULARY, tiny_model
from twdpo.evaluate.heldout import PairFigures, ReferenceStates, differences, measure, summarize
from twdpo.evaluate.statistics import Bootstrap
from twdpo.pipeline.train.data import Example, Side
from twdpo.pipeline.train.logps import TokenLogps

QUICK = Bootstrap(resamples=60)


def make_side(rng: np.random.Generator, prompt: NDArray[np.int32], length: int) -> Side:
    ids = np.concatenate([prompt, rng.integers(3, VOCABULARY, length).astype(np.int32)])
    weights = rng.random(length).astype(np.float32) * (rng.random(length) > 0.2)
    return Side(ids=ids, prompt_length=len(prompt), weights=weights.astype(np.float32))


def make_examples(count: int = 5, seed: int = 0) -> list[Example]:
    rng = np.random.default_rng(seed)
    examples = []
    for number in range(count):
        prompt = rng.integers(3, VOCABULARY, int(rng.integers(2, 9))).astype(np.int32)
        chosen, rejected = (make_side(rng, prompt, int(rng.integers(1, 12))) for _ in range(2))
        examples.append(Example(example_hash=f"{number:032x}", row=number, chosen=chosen, rejected=rejected))
    return examples


def logps_of(model: Any, side: Side) -> NDArray[np.float64]:
    """Log-softmax over the vocabulary where each completion token is predicted."""
    ids = torch.from_numpy(side.ids.astype(np.int64))[None]
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, side.prompt_length - 1 : -1].double().numpy()
    logits = logits - logits.max(-1, keepdims=True)
    return np.asarray(logits - np.log(np.exp(logits).sum(-1, keepdims=True)))


def oracle(policy: Any, reference: Any, side: Side) -> dict[str, float]:
    """ratio, weighted ratio, Σ log π and Σ KL of one answer."""
    ours, theirs = logps_of(policy, side), logps_of(reference, side)
    found = {"ratio": 0.0, "weighted": 0.0, "logps": 0.0, "kl": 0.0}
    for t, token in enumerate(side.ids[side.prompt_length :]):
        ratio = ours[t, token] - theirs[t, token]
        found["ratio"] += ratio
        found["weighted"] += float(side.weights[t]) * ratio
        found["logps"] += ours[t, token]
        found["kl"] += float(sum(np.exp(p) * (p - q) for p, q in zip(ours[t], theirs[t], strict=True)))
    return found


@pytest.fixture(scope="module")
def models() -> tuple[Any, Any]:
    """A policy and its reference."""
    return tiny_model(seed=1), tiny_model(seed=2)


# Gemma bounds its logits; without the fused way the head is called; `whole` leaves logits to the model's own forward.
@pytest.mark.parametrize(
    ("family", "head", "layout"),
    [
        ("llama", "fused", "auto"),
        ("gemma2", "fused", "padded"),
        ("cohere", "chunked", "padded"),
        ("llama", "whole", "padded"),
    ],
)
def test_agrees_with_plain_loops(family: str, head: str, layout: str) -> None:
    policy, reference = tiny_model(family, seed=1), tiny_model(family, seed=2)
    examples = make_examples()
    ours, theirs = (TokenLogps(copy.deepcopy(m), head=head, layout=layout) for m in (policy, reference))
    states = ReferenceStates.of(theirs, examples, tokens=60)
    # A few rows of logits at a time, and several batches: neither may show.
    figures = measure(ours, examples, states, tokens=40, chunk_logits=3 * VOCABULARY)
    for name in ("chosen", "rejected"):
        expected = [oracle(policy, reference, getattr(example, name)) for example in examples]
        for column, key in (("ratios", "ratio"), ("logps", "logps"), ("kl", "kl")):
            found = getattr(figures, f"{name}_{column}")
            np.testing.assert_allclose(found, [e[key] for e in expected], rtol=2e-4, atol=2e-4)
        weighted = getattr(figures, f"weighted_{name}_ratios")
        np.testing.assert_allclose(weighted, [e["weighted"] for e in expected], rtol=2e-4, atol=2e-4)
    assert figures.hashes == tuple(example.example_hash for example in examples)
    assert figures.chosen_tokens.tolist() == [len(example.chosen.weights) for example in examples]


def test_reference_log_probs_do_without_kl(models: tuple[Any, Any]) -> None:
    """Log-probs from a store give the same ratios, and nothing of the vocabulary."""
    policy, reference = models
    examples = make_examples(3)
    states = ReferenceStates.of(TokenLogps(copy.deepcopy(reference)), examples)
    logps = {
        e.example_hash: tuple(
            logps_of(reference, s)[np.arange(len(s.weights)), s.ids[s.prompt_length :]].astype(np.float32)
            for s in (e.chosen, e.rejected)
        )
        for e in examples
    }
    here = TokenLogps(copy.deepcopy(policy))
    exact, stored = measure(here, examples, states), measure(here, examples, logps, weighted=False)  # type: ignore[arg-type]
    np.testing.assert_allclose(exact.margins, stored.margins, atol=1e-3)
    assert stored.kl is None
    assert stored.weighted_margins is None
    assert not any(name.startswith(("kl", "weighted")) for name in summarize(stored, beta=0.1, bootstrap=QUICK))


def test_the_reference_itself_is_at_no_distance(models: tuple[Any, Any]) -> None:
    """And stays what it was when the model that it came from is trained on: its head is a copy."""
    model = TokenLogps(copy.deepcopy(models[1]))
    examples = make_examples(4)
    states = ReferenceStates.of(model, examples)
    found = summarize(measure(model, examples, states), beta=1.0, bootstrap=QUICK)
    assert found["kl_per_token"].value == pytest.approx(0.0, abs=1e-6)
    assert found["margin"].value == pytest.approx(0.0, abs=1e-5)
    with torch.no_grad():
        model.model.get_output_embeddings().weight.mul_(1.5)
    assert summarize(measure(model, examples, states), beta=1.0, bootstrap=QUICK)["kl_per_token"].value > 0.01


def make_figures() -> PairFigures:
    """Three pairs with numbers that can be followed by hand."""
    return PairFigures(
        hashes=("a", "b", "c"),
        chosen_ratios=np.array([3.0, -1.0, 0.0]),
        rejected_ratios=np.array([1.0, 1.0, 0.0]),
        weighted_chosen_ratios=np.array([1.0, 2.0, 5.0]),
        weighted_rejected_ratios=np.array([2.0, 1.0, 1.0]),
        chosen_logps=np.array([-3.0, -4.0, -5.0]),
        rejected_logps=np.array([-6.0, -7.0, -8.0]),
        chosen_tokens=np.array([4, 2, 3]),
        rejected_tokens=np.array([2, 4, 3]),
        chosen_kl=np.array([0.4, 0.2, 0.3]),
        rejected_kl=np.array([0.4, 0.8, 0.3]),
    )


def test_summary_by_hand() -> None:
    """Margins 2, −2 and 0; weighted −1, 1 and 4. The first chosen answer is longer, the second shorter."""
    found = {name: estimate.value for name, estimate in summarize(make_figures(), beta=0.5, bootstrap=QUICK).items()}
    assert found == pytest.approx(
        {
            "accuracy": 0.5,
            "accuracy_chosen_longer": 1.25 / 1.5,
            "accuracy_chosen_shorter": 0.25 / 1.5,
            "length_controlled_accuracy": 0.5,
            "margin": 0.0,
            "reward_margin": 0.0,
            "weighted_accuracy": 2 / 3,
            "weighted_accuracy_chosen_longer": 0.5 / 1.5,
            "weighted_accuracy_chosen_shorter": 1.0,
            "weighted_length_controlled_accuracy": 2 / 3,
            "weighted_margin": 4 / 3,
            "weighted_reward_margin": 2 / 3,
            "chosen_log_ratio": 2 / 3,
            "rejected_log_ratio": 2 / 3,
            "kl_per_token": 2.4 / 18,
            "kl_per_token_chosen": 0.9 / 9,
            "kl_per_token_rejected": 1.5 / 9,
            "kl_per_answer": 0.4,
        }
    )


def test_differences_are_paired() -> None:
    here, figures = make_figures(), make_figures().select([0, 1, 2])
    found = differences(here, figures, beta=(1.0, 0.5), bootstrap=QUICK)
    assert found["margin"].low == found["margin"].high == 0.0
    assert found["weighted_reward_margin"].value == pytest.approx(4 / 3 - 2 / 3)
    with pytest.raises(ValueError, match="same pairs"):
        differences(here, figures.select([1, 0, 2]), beta=(1.0, 1.0), bootstrap=QUICK)


def test_figures_go_through_json_and_together() -> None:
    figures = make_figures()
    again = PairFigures.from_plain(json.loads(json.dumps(figures.plain())))
    both = PairFigures.concatenate([again.select([0]), again.select([1, 2])])
    assert both.plain() == figures.plain()
    assert both.chosen_characters is None
    with pytest.raises(ValueError, match="one number a pair"):
        PairFigures.from_plain(figures.plain() | {"chosen_kl": [1.0]})


def test_no_examples(models: tuple[Any, Any]) -> None:
    policy = TokenLogps(copy.deepcopy(models[0]))
    figures = measure(policy, [], {})
    assert len(figures) == 0
    assert summarize(figures, beta=1.0, bootstrap=QUICK)["accuracy"].count == 0
