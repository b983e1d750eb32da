"""The captured row equals what eager attention returns whole, in every family, however prompts are laid."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from tests.fixtures.tiny_models import tiny_model
from twdpo.errors import ModelError
from twdpo.pipeline.annotate.engines import transformers as transformers_engine
from twdpo.pipeline.annotate.engines.base import Reading
from twdpo.pipeline.annotate.engines.capture import NAME
from twdpo.pipeline.annotate.engines.passes import InARow, Padded
from twdpo.pipeline.annotate.engines.transformers import TransformersEngine
from twdpo.pipeline.annotate.prompt import AnswerSpan, JudgePrompt

Eager = tuple[dict[int, Any], list[float]]
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "gpt_neox", "cohere", "granite")
VERDICTS = (5, 9)


def prompt(length: int, seed: int) -> JudgePrompt:
    ids = np.random.default_rng(seed).integers(3, 400, size=length).astype(np.int32)

    def span(first: int, last: int) -> AnswerSpan:
        places = np.arange(last - first, dtype=np.int32)
        return AnswerSpan(first=first, last=last, starts=places, ends=places + 1)

    third = length // 3
    return JudgePrompt(ids=ids, answer_a=span(2, third), answer_b=span(third + 1, length - 2), truncated=False)


def check(
    prompts: Sequence[JudgePrompt], readings: Sequence[Reading], expected: Sequence[Eager], layers: range
) -> None:
    assert len(readings) == len(prompts)
    for asked, reading, (rows, logits) in zip(prompts, readings, expected, strict=True):
        for layer in layers:
            for got, span in zip(reading.attention[layer], (asked.answer_a, asked.answer_b), strict=True):
                np.testing.assert_allclose(got, rows[layer][span.first : span.last], atol=2e-6, rtol=0)
        assert reading.verdict_logits is not None
        np.testing.assert_allclose(reading.verdict_logits, logits, atol=2e-4)


def pair(shared: int, tails: tuple[int, int], seed: int, head: int = 24) -> list[JudgePrompt]:
    """Two prompts with a common head (the same for every seed) and question, as the two orders of a pair."""
    begin = np.concatenate([prompt(head, 1000).ids, prompt(shared, seed).ids])

    def with_tail(length: int, tail_seed: int) -> JudgePrompt:
        whole = prompt(len(begin) + length, tail_seed)
        return dataclasses.replace(whole, ids=np.concatenate([begin, whole.ids[len(begin) :]]))

    return [with_tail(length, seed + 1 + i) for i, length in enumerate(tails)]


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
    check(prompts, readings, expected, layers)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("budget", [1, 150, 10_000])
def test_shared_beginnings_change_nothing(family: str, budget: int) -> None:
    """Pairs as stage one sends them: a head for all, a stem a pair, two tails; also through a second call."""
    layers = range(4)
    prompts = [
        p
        for seed, (n, tails) in enumerate(((11, (30, 35)), (1, (9, 70)), (40, (2, 2))))
        for p in pair(n, tails, 50 * seed)
    ]
    reference = tiny_model(family, layers=4)
    expected = [eager(reference, asked, layers) for asked in prompts]
    engine = TransformersEngine(tiny_model(family, layers=4), token_budget=budget)
    for _ in range(2):
        readings = engine.read(prompts, layers, VERDICTS)
        assert isinstance(engine._way, InARow)
        check(prompts, readings, expected, layers)
    assert engine._way._head is not None
    assert len(engine._way._head.ids) == 24
    # One pair alone, and prompts that begin otherwise, with the head that is there.
    alone = [*prompts[2:4], prompt(50, 7)]
    check(alone, engine.read(alone, layers, VERDICTS), [*expected[2:4], eager(reference, alone[-1], layers)], layers)


def test_what_is_shared_is_computed_once() -> None:
    model = tiny_model()
    engine = TransformersEngine(model, token_budget=10_000)
    tokens: list[int] = []
    prompts = [*pair(11, (30, 35), 0), *pair(20, (9, 8), 50)]
    engine.read(prompts, [1], VERDICTS)
    model.get_input_embeddings().register_forward_hook(lambda _m, inputs, _o: tokens.append(inputs[0].numel()))
    engine.read(prompts, [1], VERDICTS)
    assert tokens == [11 + 30 + 35 + 20 + 9 + 8]


def test_without_verdict_the_pass_ends_at_the_deepest_layer() -> None:
    model = tiny_model(layers=4)
    engine = TransformersEngine(model)
    prompts = [*pair(11, (30, 35), 0), *pair(20, (9, 8), 50)]
    asked = engine.read(prompts, [0, 1], VERDICTS)
    ran: list[int] = []
    for i, layer in enumerate(model.model.layers):
        layer.mlp.register_forward_hook(lambda _m, _inputs, _o, i=i: ran.append(i))
    readings = engine.read(prompts, [0, 1], None)
    assert ran == [0]
    for one, other in zip(asked, readings, strict=True):
        assert other.verdict_logits is None
        for layer in (0, 1):
            for a, b in zip(one.attention[layer], other.attention[layer], strict=True):
                np.testing.assert_array_equal(a, b)


def test_the_last_layer_is_computed_where_it_is_read_only() -> None:
    model = tiny_model(layers=3)
    engine = TransformersEngine(model)
    prompts = [*pair(11, (30, 35), 0), *pair(20, (9, 8), 50)]
    engine.read(prompts, [1], VERDICTS)
    seen: list[tuple[int, int]] = []
    for i, layer in enumerate(model.model.layers):
        layer.mlp.up_proj.register_forward_hook(lambda _m, inputs, _o, i=i: seen.append((i, inputs[0].shape[1])))
    engine.read(prompts, [1], VERDICTS)
    assert seen == [(0, 113), (1, 113), (2, 4)]


def loop_over_sequences(  # as torch documents varlen_attn, one sequence at a time
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu_seq_q: torch.Tensor, cu_seq_k: torch.Tensor,
    max_q: int, max_k: int, *, scale: float, window_size: tuple[int, int], enable_gqa: bool,
) -> torch.Tensor:  # fmt: skip
    assert all(tensor.is_contiguous() for tensor in (q, k, v))
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert enable_gqa == (q.shape[1] != k.shape[1])
    assert max_q == int(cu_seq_q.diff().max())
    assert max_k == int(cu_seq_k.diff().max())
    outputs = []
    for i in range(len(cu_seq_q) - 1):
        one = q[cu_seq_q[i] : cu_seq_q[i + 1]].transpose(0, 1)
        keys, values = (tensor[cu_seq_k[i] : cu_seq_k[i + 1]].transpose(0, 1) for tensor in (k, v))
        n, m = one.shape[1], keys.shape[1]
        distance = torch.arange(m - n, m)[:, None] - torch.arange(m)
        mask = (distance >= -window_size[1]) & ((distance <= window_size[0]) | (window_size[0] < 0))
        outputs.append(
            torch.nn.functional.scaled_dot_product_attention(
                one[None], keys[None], values[None], attn_mask=mask, scale=scale, enable_gqa=enable_gqa
            )[0].transpose(0, 1)
        )
    return torch.cat(outputs)


@pytest.mark.parametrize("family", ["llama", "gemma3", "gemma2", "gpt_neox"])
def test_all_segments_in_one_kernel(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The way of NVIDIA GPUs; the kernel is stood in for, what it is given is ours. Soft caps take the other way."""
    calls = []

    def kernel(*arguments: Any, **options: Any) -> torch.Tensor:
        calls.append(1)
        return loop_over_sequences(*arguments, **options)

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", kernel)
    monkeypatch.setattr(transformers_engine, "has_varlen", lambda _device, _dtype: True)
    layers = range(4)
    prompts = [*pair(11, (30, 35), 0), *pair(20, (9, 8), 50)]
    reference = tiny_model(family, layers=4)
    expected = [eager(reference, asked, layers) for asked in prompts]
    engine = TransformersEngine(tiny_model(family, layers=4))
    check(prompts, engine.read(prompts, layers, VERDICTS), expected, layers)
    assert isinstance(engine._way, InARow)
    assert engine._way._at_once
    assert bool(calls) == (family != "gemma2")


@pytest.mark.parametrize("wrong", ["raises", "other numbers"])
def test_a_kernel_that_does_not_do_is_not_used(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def kernel(q: torch.Tensor, *_arguments: Any, **_options: Any) -> torch.Tensor:
        if wrong == "raises":
            raise RuntimeError("FlashAttention only supports Ampere GPUs or newer.")
        return torch.ones_like(q)

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", kernel)
    monkeypatch.setattr(transformers_engine, "has_varlen", lambda _device, _dtype: True)
    prompts = [*pair(11, (30, 35), 0), *pair(20, (9, 8), 50)]
    engine = TransformersEngine(tiny_model(layers=4))
    reference = tiny_model(layers=4)
    readings = engine.read(prompts, range(4), VERDICTS)
    check(prompts, readings, [eager(reference, asked, range(4)) for asked in prompts], range(4))
    assert isinstance(engine._way, InARow)
    assert not engine._way._at_once


class Leaky(torch.nn.Module):
    """Mixes each position with the one before it, as a convolution or a recurrent state does."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        before = torch.nn.functional.pad(hidden, (0, 0, 1, 0))[:, :-1]
        return self.inner(hidden + before)


@pytest.mark.parametrize("layer", [0, 3])
def test_a_model_that_mixes_positions_runs_each_prompt_whole(layer: int) -> None:
    reference, model = tiny_model(layers=4), tiny_model(layers=4)
    for one in (reference, model):
        one.model.layers[layer].mlp = Leaky(one.model.layers[layer].mlp)
    prompts = [*pair(11, (30, 35), 0), *pair(20, (9, 8), 50)]
    engine = TransformersEngine(model)
    readings = engine.read(prompts, range(4), VERDICTS)
    assert isinstance(engine._way, Padded)
    check(prompts, readings, [eager(reference, asked, range(4)) for asked in prompts], range(4))
    # A whole prompt stops early as well.
    short = engine.read(prompts, [0, 1], None)
    np.testing.assert_array_equal(short[0].attention[1][0], readings[0].attention[1][0])


class Hungry:
    """Stands for a device whose memory holds `tokens` at a time."""

    def __init__(self, model: Any, tokens: int, error: Exception) -> None:
        self.passes: list[int] = []

        def look(_module: Any, _arguments: Any, options: dict[str, Any]) -> None:
            size = options["input_ids"].numel()
            self.passes.append(size)
            if size > tokens:
                raise error

        model.register_forward_pre_hook(look, with_kwargs=True)


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("DefaultCPUAllocator: can't allocate memory")],
)
@pytest.mark.parametrize("padded", [False, True])
def test_out_of_memory_halves_the_pass_and_loses_nothing(
    error: Exception, padded: bool, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny_model()
    if padded:
        model.model.layers[0].mlp = Leaky(model.model.layers[0].mlp)
    prompts = [p for seed in range(6) for p in pair(10, (20, 25), 50 * seed)]
    engine = TransformersEngine(model, token_budget=10_000)
    expected = engine.read(prompts, [0, 1], VERDICTS)
    memory = Hungry(model, 150, error)
    readings = engine.read(prompts, [0, 1], VERDICTS)
    assert max(memory.passes) > 150
    assert "out of memory on a pass of" in caplog.text
    for one, other in zip(expected, readings, strict=True):
        for a, b in zip(one.attention[1], other.attention[1], strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)
    failed = sum(size > 150 for size in memory.passes)
    memory.passes.clear()
    engine.read(prompts, [0, 1], VERDICTS)
    assert sum(size > 150 for size in memory.passes) < failed  # the budget stays small


def test_a_single_prompt_that_does_not_fit_is_said() -> None:
    model = tiny_model()
    prompts = pair(10, (20, 25), 0)
    engine = TransformersEngine(model)
    engine.read(prompts, [1], VERDICTS)
    Hungry(model, 20, torch.OutOfMemoryError("CUDA out of memory."))
    with pytest.raises(ModelError, match="out of memory on a single judge prompt of 54 tokens; use a smaller --max-le"):
        engine.read(prompts, [1], VERDICTS)


def test_other_errors_are_no_lack_of_memory() -> None:
    model = tiny_model()
    engine = TransformersEngine(model)
    engine.read([prompt(20, 0)], [1], VERDICTS)
    Hungry(model, 0, RuntimeError("a bug"))
    with pytest.raises(RuntimeError, match="a bug"):
        engine.read([prompt(20, 0)], [1], VERDICTS)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_neox"])
def test_half_precision(family: str, dtype: torch.dtype) -> None:
    """Close to the same model in float32: what its eager attention is away from that is no less."""
    layers = range(4)
    prompts = [*pair(11, (30, 35), 0), *pair(20, (9, 8), 50)]
    exact = [eager(tiny_model(family, layers=4), asked, layers)[0] for asked in prompts]
    half = [eager(tiny_model(family, layers=4).to(dtype), asked, layers)[0] for asked in prompts]
    engine = TransformersEngine(tiny_model(family, layers=4).to(dtype))
    readings = engine.read(prompts, layers, VERDICTS)
    assert isinstance(engine._way, InARow)
    ours, theirs = [], []
    for asked, reading, right, published in zip(prompts, readings, exact, half, strict=True):
        for layer in layers:
            a = asked.answer_a
            ours.append(np.abs(reading.attention[layer][0] - right[layer][a.first : a.last]).sum())
            theirs.append(np.abs(published[layer] - right[layer])[a.first : a.last].sum())
    assert np.mean(ours) < 1.2 * np.mean(theirs) + 1e-4


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
    assert seen[-1] == (2, 1, 32)
    assert {shape[1] for shape in seen} == {1}


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
