"""Rollout carried down block by block equals the product of full maps, in every way of making scores."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.fixtures.tiny_models import tiny_model
from tests.pipeline.annotate.engines.test_transformers import prompt
from twdpo.errors import ModelError
from twdpo.pipeline.annotate.engines import rollout
from twdpo.pipeline.annotate.engines.kernels import Scores
from twdpo.pipeline.annotate.engines.rollout import Kept, RolloutEngine, rollout_rows

VERDICTS = (5, 9)


# Grouped heads; windows with soft caps; its own scale.
@pytest.mark.parametrize("family", ["llama", "gemma2", "granite"])
def test_rows_are_those_of_the_product_of_full_maps(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Blocks of 7 queries of the shorter prompt.
    monkeypatch.setattr(rollout, "_SCORES_ON_CPU", 4 * 40 * 7)
    prompts = [prompt(40, 1), prompt(57, 2)]
    eager = tiny_model(family, layers=4)
    eager.set_attn_implementation("eager")
    for asked, reading in zip(
        prompts, RolloutEngine(tiny_model(family, layers=4)).read(prompts, (1, 3), VERDICTS), strict=True
    ):
        with torch.no_grad():
            whole = eager(input_ids=torch.tensor(asked.ids[None].astype(np.int64)), output_attentions=True)
        flow, expected = torch.eye(len(asked.ids)), {}
        for layer, maps in enumerate(whole.attentions):
            flow = (maps[0].mean(dim=0) + torch.eye(len(asked.ids))) / 2 @ flow
            expected[layer] = flow[-1].numpy()
        for layer in (1, 3):
            for got, span in zip(reading.attention[layer], (asked.answer_a, asked.answer_b), strict=True):
                np.testing.assert_allclose(got, expected[layer][span.first : span.last], atol=1e-6, rtol=0)
        assert reading.verdict_logits == pytest.approx(whole.logits[0, -1, list(VERDICTS)].tolist(), abs=2e-4)


def test_without_the_verdict_it_stops_early_with_the_same_rows() -> None:
    asked = [prompt(30, 3)]
    model, ran = tiny_model("llama", layers=4), list[int]()
    model.model.layers[2].register_forward_hook(lambda *_: ran.append(2))
    engine = RolloutEngine(model)
    (early,) = engine.read(asked, (1,), None)
    assert not ran
    (late,) = engine.read(asked, (1,), VERDICTS)
    assert ran
    assert early.verdict_logits is None
    np.testing.assert_array_equal(early.attention[1][0], late.attention[1][0])


def test_two_layers_of_even_attention_by_hand() -> None:
    """Query t sees t + 1 keys evenly: A' of three positions, twice."""
    even = Kept(query_HTD=torch.zeros(1, 3, 2), key_KTD=torch.zeros(1, 3, 2), mask=None, scores=Scores(scale=1.0))
    rows = rollout_rows({0: even, 1: even}, (0, 1), scores_at_once=3)
    # A' has the rows (1, 0, 0), (1/4, 3/4, 0) and (1/6, 1/6, 2/3).
    np.testing.assert_allclose(rows[0].numpy(), [1 / 6, 1 / 6, 2 / 3], rtol=1e-6)
    np.testing.assert_allclose(rows[1].numpy(), [1 / 6 + 1 / 24 + 1 / 9, 1 / 8 + 1 / 9, 4 / 9], rtol=1e-6)


def test_a_learned_sink_takes_its_part() -> None:
    """A sink of score 0 beside one key of score 0 leaves half."""
    kept = Kept(
        query_HTD=torch.zeros(1, 1, 2),
        key_KTD=torch.zeros(1, 1, 2),
        mask=None,
        scores=Scores(scale=1.0, sinks=torch.zeros(1)),
    )
    assert rollout_rows({0: kept}, (0,), scores_at_once=8)[0].tolist() == [0.75]


def test_a_layer_without_attention_is_said() -> None:
    kept = Kept(query_HTD=torch.zeros(1, 2, 2), key_KTD=torch.zeros(1, 2, 2), mask=None, scores=Scores(scale=1.0))
    with pytest.raises(ModelError, match="layer 0 gave no attention, so there is no rollout through it"):
        rollout_rows({1: kept}, (1,), scores_at_once=8)
