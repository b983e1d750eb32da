"""The captured row equals what eager attention returns whole, in every family, alone and in padded batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.fixtures.tiny_models import tiny_model
from twdpo.errors import ModelError
from twdpo.pipeline.annotate.engines.capture import NAME
from twdpo.pipeline.annotate.engines.transformers import TransformersEngine
from twdpo.pipeline.annotate.prompt import AnswerSpan, JudgePrompt

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "gpt_neox", "cohere", "granite")
VERDICTS = (5, 9)


def prompt(length: int, seed: int) -> JudgePrompt:
    ids = np.random.default_rng(seed).integers(3, 400, size=length).astype(np.int32)

    def span(first: int, last: int) -> AnswerSpan:
        places = np.arange(last - first, dtype=np.int32)
        return AnswerSpan(first=first, last=last, starts=places, ends=places + 1)

    third = length // 3
    return JudgePrompt(ids=ids, answer_a=span(2, third), answer_b=span(third + 1, length - 2), truncated=False)


def eager(model: Any, asked: JudgePrompt, layers: range) -> tuple[dict[int, Any], list[float]]:
    """The published way: the whole map of every layer, all logits, one prompt at a time."""
    model.set_attn_implementation("eager")
    with torch.no_grad():
        output = model(input_ids=torch.tensor(asked.ids[None].astype(np.int64)), output_attentions=True)
    rows = {layer: output.attentions[layer][0, :, -1].float().mean(dim=0).numpy() for layer in layers}
    return rows, output.logits[0, -1, list(VERDICTS)].tolist()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("batch_size", [1, 3, None])
def test_equals_eager_attention(family: str, batch_size: int | None) -> None:
    layers = range(4)
    prompts = [prompt(length, seed) for seed, length in enumerate((61, 12, 40, 61, 33))]
    reference = tiny_model(family, layers=4)
    expected = [eager(reference, asked, layers) for asked in prompts]
    engine = TransformersEngine(tiny_model(family, layers=4), batch_size=batch_size)
    readings = engine.read(prompts, layers, VERDICTS)
    assert len(readings) == len(prompts)
    for asked, reading, (rows, logits) in zip(prompts, readings, expected, strict=True):
        for layer in layers:
            for got, span in zip(reading.attention[layer], (asked.answer_a, asked.answer_b), strict=True):
                np.testing.assert_allclose(got, rows[layer][span.first : span.last], atol=2e-6, rtol=0)
        np.testing.assert_allclose(reading.verdict_logits, logits, atol=2e-4)


def test_sliding_layers_see_their_window_only() -> None:
    engine = TransformersEngine(tiny_model("gemma2", layers=4))
    asked = prompt(60, 0)
    sliding = [layer for layer in range(4) if engine.reach(layer) is not None]
    assert sliding
    assert set(engine.global_layers).isdisjoint(sliding)
    reading = engine.read([asked], range(4), VERDICTS)[0]
    assert reading.attention[sliding[0]][0].sum() == 0  # answer A lies more than a window back
    assert reading.attention[engine.global_layers[0]][0].sum() > 0


def test_the_mask_function_is_registered_with_the_attention_function() -> None:
    from transformers import AttentionMaskInterface

    TransformersEngine(tiny_model())
    assert NAME in AttentionMaskInterface.valid_keys(AttentionMaskInterface())


def test_a_padding_mask_is_honoured() -> None:
    """A user of the attention function who pads on the left gets the numbers of the text alone."""
    model = tiny_model()
    TransformersEngine(model)
    ids = torch.arange(5, 25)[None]
    padded = torch.cat([torch.zeros(1, 7, dtype=torch.long), ids], dim=1)
    mask = torch.cat([torch.zeros(1, 7, dtype=torch.long), torch.ones_like(ids)], dim=1)
    with torch.no_grad():
        alone = model(input_ids=ids).logits[0, -1]
        position_ids = (mask.cumsum(-1) - 1).clamp(min=0)
        beside = model(input_ids=padded, attention_mask=mask, position_ids=position_ids).logits[0, -1]
    torch.testing.assert_close(alone, beside, atol=1e-5, rtol=1e-5)


def test_only_one_position_reaches_the_head() -> None:
    model = tiny_model()
    engine = TransformersEngine(model, batch_size=2)
    seen: list[tuple[int, ...]] = []
    model.get_output_embeddings().register_forward_hook(lambda _m, inputs, _o: seen.append(tuple(inputs[0].shape)))
    engine.read([prompt(30, 1), prompt(20, 2)], [1], VERDICTS)
    assert seen == [(2, 1, 32)]


def test_same_prompts_same_bits() -> None:
    engine = TransformersEngine(tiny_model())
    prompts = [prompt(length, length) for length in (30, 20, 25)]
    first, second = engine.read(prompts, [0, 1], VERDICTS), engine.read(prompts, [0, 1], VERDICTS)
    for a, b in zip(first, second, strict=True):
        assert all(
            np.array_equal(x, y)
            for layer in (0, 1)
            for x, y in zip(a.attention[layer], b.attention[layer], strict=True)
        )


def test_a_model_out_of_reach_is_refused_by_name() -> None:
    import transformers

    config = transformers.MambaConfig(vocab_size=400, hidden_size=16, num_hidden_layers=2, state_size=4)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(ModelError, match="MambaForCausalLM does not use transformers' attention interface"):
        TransformersEngine(model).read([prompt(20, 0)], [1], VERDICTS)
