"""vLLM against eager attention and the transformers engine, on the embedded model and on tiny ones of many families."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.fixtures.tiny_models import save_tiny, tiny_model, tiny_tokenizer
from twdpo.errors import ModelError
from twdpo.pipeline.annotate.engines.base import Reading
from twdpo.pipeline.annotate.prompt import AnswerSpan, JudgePrompt, PromptBuilder, load_template
from twdpo.pipeline.annotate.weights import distribution, verdict_probability
from twdpo.preferences import Pair, resolve
from twdpo.preferences import load as load_pairs

LAYERS = (0, 6, 14, 21, 29)
PAIRS = 8
#: bfloat16 against float32: the largest difference of any token's p, and of a verdict's probability.
BF16_P, BF16_VERDICT = 0.06, 0.04


@dataclass(frozen=True)
class Asked:
    """The prompts of the pairs, and what the published way gives for them: rows of whole maps, and verdicts."""

    prompts: list[JudgePrompt]
    verdict_ids: tuple[int, int]
    rows: list[dict[int, NDArray[np.float32]]]
    verdicts: list[float]
    transformers: list[Reading]


def eager(model: Any, prompt: JudgePrompt, layers: Sequence[int]) -> tuple[dict[int, NDArray[np.float32]], Any]:
    with torch.no_grad():
        output = model(input_ids=torch.tensor(prompt.ids[None].astype(np.int64)), output_attentions=True)
    return {n: output.attentions[n][0, :, -1].float().mean(dim=0).numpy() for n in layers}, output.logits[0, -1].float()


def words(text: str) -> int:
    return len(text.split())


@pytest.fixture(scope="module")
def asked(embedded_model: str) -> Asked:
    from twdpo.pipeline.annotate.engines.transformers import TransformersEngine
    from twdpo.pipeline.models import load_model

    loaded = load_model(embedded_model, dtype="float32", device="cpu", attn_implementation="eager")
    builder = PromptBuilder(loaded.tokenizer, template=load_template(None))
    # Of a few words only, each has a large share, and its rounding too.
    pairs = [
        p for p in load_pairs(resolve("demo")) if isinstance(p, Pair) and min(map(words, (p.chosen, p.rejected))) > 9
    ]
    pairs = sorted(pairs, key=lambda pair: words(pair.chosen) + words(pair.rejected))[:PAIRS]
    assert len(pairs) == PAIRS
    prompts = [builder.build(pair, order) for pair in pairs for order in ("cr", "rc")]
    a, b = builder.verdict_ids()
    rows, verdicts = [], []
    for prompt in prompts:
        row, logits = eager(loaded.model, prompt, LAYERS)
        rows.append(row)
        verdicts.append(float(torch.sigmoid(logits[a] - logits[b])))
    readings = TransformersEngine(loaded.model).read(prompts, LAYERS, (a, b))
    return Asked(prompts=prompts, verdict_ids=(a, b), rows=rows, verdicts=verdicts, transformers=readings)


def probabilities(reading: Reading, layer: int) -> list[NDArray[np.float64]]:
    return [distribution(attention) for attention in reading.attention[layer]]


def worst(readings: list[Reading], asked: Asked) -> tuple[float, float, float]:
    """The largest difference of attention and of p from eager's, and of p from the transformers engine's."""
    attention = p = between = 0.0
    for prompt, reading, rows, other in zip(asked.prompts, readings, asked.rows, asked.transformers, strict=True):
        for layer in LAYERS:
            for got, span in zip(reading.attention[layer], (prompt.answer_a, prompt.answer_b), strict=True):
                expected = rows[layer][span.first : span.last]
                attention = max(attention, float(np.abs(got - expected).max()))
                p = max(p, float(np.abs(distribution(got) - distribution(expected)).max()))
            for mine, theirs in zip(probabilities(reading, layer), probabilities(other, layer), strict=True):
                between = max(between, float(np.abs(mine - theirs).max()))
    return attention, p, between


def verdicts(readings: list[Reading]) -> list[float]:
    assert all(reading.verdict_logits is not None for reading in readings)
    return [verdict_probability(*reading.verdict_logits) for reading in readings if reading.verdict_logits]


@pytest.mark.parametrize("chunked", [True, False])
@pytest.mark.parametrize("prefix_caching", [True, False])
def test_float32_equals_eager_and_transformers(
    asked: Asked, embedded_model: str, load: Callable[..., Any], prefix_caching: bool, chunked: bool
) -> None:
    engine = load(
        model=embedded_model, dtype="float32", prefix_caching=prefix_caching, chunked=chunked,
        step_tokens=200 if chunked else None,
    )  # fmt: skip
    cached: list[int] = []
    generate = engine._llm.generate

    def counting(*arguments: Any, **options: Any) -> Any:
        outputs = generate(*arguments, **options)
        cached.extend(output.num_cached_tokens or 0 for output in outputs)
        return outputs

    engine._llm.generate = counting
    readings = engine.read(asked.prompts, LAYERS, asked.verdict_ids)
    assert max(worst(readings, asked)) < 5e-6
    np.testing.assert_allclose(verdicts(readings), asked.verdicts, atol=2e-5)
    assert min(len(prompt.ids) for prompt in asked.prompts) > 200  # so every prompt is chunked, where prompts are
    assert (max(cached) > 100) == prefix_caching
    assert engine.num_layers == 30
    assert engine.global_layers == tuple(range(30))
    assert engine.window_tokens == 0


def test_bfloat16_within_its_rounding(asked: Asked, embedded_model: str, load: Callable[..., Any]) -> None:
    readings = load(model=embedded_model, dtype="bfloat16").read(asked.prompts, LAYERS, asked.verdict_ids)
    _, p, _ = worst(readings, asked)
    assert p < BF16_P
    np.testing.assert_allclose(verdicts(readings), asked.verdicts, atol=BF16_VERDICT)


#: What each family needs to run in vLLM, whose kernels know widths of 32 and more.
SIZES: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 64, "head_dim": 32, "initializer_range": 0.1}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 24},
    "qwen2": {},
    "qwen3": {},
    "gemma2": {"query_pre_attn_scalar": 32, "attn_logit_softcapping": 2.0},
    "gemma3": {"query_pre_attn_scalar": 32},
    "granite": {},
}
VERDICTS = (5, 9)


def random_prompt(length: int, seed: int) -> JudgePrompt:
    ids = np.random.default_rng(seed).integers(3, 400, size=length).astype(np.int32)
    ids[: length // 2] = np.random.default_rng(99).integers(3, 400, size=length // 2)  # a head that all share

    def span(first: int, last: int) -> AnswerSpan:
        places = np.arange(last - first, dtype=np.int32)
        return AnswerSpan(first=first, last=last, starts=places, ends=places + 1)

    third = length // 3
    return JudgePrompt(ids=ids, answer_a=span(2, third), answer_b=span(third + 1, length - 2), truncated=False)


def tiny(folder: Path, family: str) -> tuple[str, Any]:
    """A tiny model in a folder, and the same one to run eagerly."""
    options = SIZES | FAMILIES[family]
    save_tiny(folder, family, layers=4, **options)
    model = tiny_model(family, layers=4, **options)
    model.set_attn_implementation("eager")
    return str(folder), model


def check_tiny(engine: Any, model: Any) -> None:
    """All layers, in steps that cut prompts, twice: the second time from cached prefixes."""
    prompts = [random_prompt(length, seed) for seed, length in enumerate((61, 12, 40, 200, 133, 200))]
    for _ in range(2):
        readings = engine.read(prompts, range(4), VERDICTS)
        for prompt, reading in zip(prompts, readings, strict=True):
            rows, logits = eager(model, prompt, range(4))
            for layer in range(4):
                for got, span in zip(reading.attention[layer], (prompt.answer_a, prompt.answer_b), strict=True):
                    np.testing.assert_allclose(got, rows[layer][span.first : span.last], atol=5e-6, rtol=0)
            a, b = reading.verdict_logits
            assert a - b == pytest.approx(float(logits[VERDICTS[0]] - logits[VERDICTS[1]]), abs=2e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_of_a_family(tmp_path: Path, family: str, load: Callable[..., Any]) -> None:
    """Sliding windows and soft caps among them."""
    folder, model = tiny(tmp_path, family)
    engine = load(model=folder, dtype="float32", max_length=256, step_tokens=64)
    check_tiny(engine, model)
    if family in ("gemma2", "gemma3", "mistral"):
        assert engine.reach(0) is not None


def test_two_ranks_share_the_heads(tmp_path: Path, load: Callable[..., Any]) -> None:
    """Tensor parallel over two worker processes: half of the query heads and one of two key heads each."""
    folder, model = tiny(tmp_path, "llama")
    check_tiny(load(model=folder, dtype="float32", max_length=256, step_tokens=64, tensor_parallel=2), model)


def test_one_judge_after_another_and_what_is_refused(tmp_path: Path, load: Callable[..., Any]) -> None:
    import transformers

    config = transformers.BloomConfig(vocab_size=400, hidden_size=128, n_layer=2, n_head=4)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "alibi")
    tiny_tokenizer().save_pretrained(tmp_path / "alibi")
    first = load(model=str(tmp_path / "alibi"), dtype="float32", max_length=256)
    with pytest.raises(ModelError, match="layer 1 uses ALiBi; use --engine transformers"):
        first.read([random_prompt(30, 0)], [1], None)
    folder, model = tiny(tmp_path / "llama", "llama")
    second = load(model=folder, dtype="float32", max_length=256)
    with pytest.raises(ModelError, match="this engine was closed"):
        first.read([random_prompt(30, 0)], [1], None)
    # Prefixes cached while other layers were watched are of no use, and not used.
    prompt = random_prompt(250, 0)
    rows, _ = eager(model, prompt, range(4))
    for layers in ((3,), (3,), (0, 1)):
        (reading,) = second.read([prompt], layers, None)
        assert reading.verdict_logits is None
        for layer in layers:
            for got, span in zip(reading.attention[layer], (prompt.answer_a, prompt.answer_b), strict=True):
                np.testing.assert_allclose(got, rows[layer][span.first : span.last], atol=5e-6, rtol=0)
