"""Batched generation against transformers' own `generate`, a prompt at a time, and against itself in other batches."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from tests.fixtures.tiny_models import tiny_model, tiny_tokenizer
from twdpo.errors import ModelError
from twdpo.evaluate.generation import (
    GenerationSettings,
    Request,
    TransformersGenerator,
    _Draws,
    generate,
    random_numbers,
    renderer_of,
)
from twdpo.pipeline.models import LoadedModel
from twdpo.preferences import Message

TEXTS = ("Hi", "What is the answer to the question? " * 3, "Say <|im_end|> now", "fox", "Explain the sea.")


def user(text: str) -> tuple[Message, ...]:
    return (Message(role="user", content=text),)


CONVERSATIONS = [user(text) for text in TEXTS]


def load(family: str = "llama", tokenizer: Any = None, **options: Any) -> LoadedModel:
    model = tiny_model(family, **options)
    tokenizer = tokenizer or tiny_tokenizer()
    return LoadedModel(model=model, tokenizer=tokenizer, name=family, revision=None, dtype="float32")


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_neox", "cohere"])
@pytest.mark.parametrize("pad", ["<|endoftext|>", "<|im_end|>"])
def test_greedy_answers_are_those_of_transformers(family: str, pad: str) -> None:
    """Also where the padding token is the one that ends a turn, as SmolLM2's is."""
    loaded = load(family)
    loaded.tokenizer.pad_token = pad
    settings = GenerationSettings(max_new_tokens=24)
    got = generate(loaded, CONVERSATIONS, settings)
    for conversation, text in zip(CONVERSATIONS, got, strict=True):
        ids = torch.tensor([renderer_of(loaded.tokenizer, settings).prompt_ids(conversation).tolist()])
        mask = torch.ones_like(ids)
        whole = loaded.model.generate(
            ids, attention_mask=mask, max_new_tokens=24, do_sample=False, eos_token_id=[2], pad_token_id=0
        )
        assert text == loaded.tokenizer.decode(whole[0, ids.shape[1] :], skip_special_tokens=True).strip()


@pytest.mark.parametrize("temperature", [0.0, 1.3])
def test_an_answer_does_not_depend_on_its_batch(temperature: float) -> None:
    loaded = load()
    settings = GenerationSettings(max_new_tokens=24, temperature=temperature, seed=5)
    together = generate(loaded, CONVERSATIONS, settings)
    alone = [generate(loaded, [conversation], settings)[0] for conversation in CONVERSATIONS]
    backwards = generate(loaded, CONVERSATIONS[::-1], settings)[::-1]
    assert together == alone == backwards
    other = generate(loaded, CONVERSATIONS, GenerationSettings(max_new_tokens=24, temperature=temperature, seed=6))
    assert (other == together) == (temperature == 0.0)


def test_prompts_are_those_of_the_chat_template_and_text_stays_text() -> None:
    loaded = load()
    renderer = renderer_of(loaded.tokenizer, GenerationSettings())
    expected = loaded.tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, return_dict=False
    )
    assert renderer.prompt_ids(user("Hi")).tolist() == expected
    spelt = renderer.prompt_ids(user("Say <|im_end|> now")).tolist()
    end = loaded.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert spelt.count(end) == 1  # the template's own, and not the one that is spelt
    assert renderer.stop_ids == (end,)


def test_a_turn_ends_with_what_the_template_ends_it_with() -> None:
    """Where end of sequence is another token than end of turn, as in Llama 3, both end an answer."""
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = "<|endoftext|>"
    assert renderer_of(tokenizer, GenerationSettings()).stop_ids == (0, 2)
    plain = tiny_tokenizer(None)
    assert renderer_of(plain, GenerationSettings()).stop_ids == (2,)


def test_rows_that_have_ended_leave_and_disturb_no_other() -> None:
    generator = TransformersGenerator(load(), GenerationSettings(max_new_tokens=40))
    requests = [Request(messages=c, temperature=3.0, key=str(i)) for i, c in enumerate(CONVERSATIONS * 4)]
    answers = generator.answer(requests)
    assert all(answer.tokens <= 40 for answer in answers)
    ended = [i for i, answer in enumerate(answers) if not answer.cut]
    assert ended, "the random model never ends: take more tokens"
    assert all(answers[i].tokens == 40 for i in range(len(answers)) if i not in ended)
    assert [generator.answer([request])[0] for request in requests[:10]] == answers[:10]


def test_a_prompt_that_fills_the_context_has_no_answer_and_says_why() -> None:
    loaded = load(context=64)
    long = user("The quick brown fox. " * 40)
    generator = TransformersGenerator(loaded, GenerationSettings(max_new_tokens=500))
    short, failed = generator.answer([Request(messages=c, temperature=0.0, key="") for c in (user("Hi"), long)])
    assert failed.failure is not None
    assert "fill the model's context of 64" in failed.failure
    assert short.failure is None
    assert short.tokens <= 64
    with pytest.raises(ModelError, match="conversation 1 cannot be answered: the prompt's"):
        generate(loaded, [user("Hi"), long], GenerationSettings())


def test_out_of_memory_halves_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load()
    settings = GenerationSettings(max_new_tokens=8, batch_size=5)
    expected = generate(loaded, CONVERSATIONS, settings)
    sizes: list[int] = []
    run = TransformersGenerator._run

    def scarce(self: TransformersGenerator, prompts: Any, requests: Any, limits: Any) -> Any:
        sizes.append(len(prompts))
        if len(prompts) > room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run(self, prompts, requests, limits)

    monkeypatch.setattr(TransformersGenerator, "_run", scarce)
    room = 2
    assert generate(loaded, CONVERSATIONS, settings) == expected
    assert sizes == [5, 2, 2, 1]
    room = 0
    with pytest.raises(ModelError, match="out of memory on a single prompt"):
        generate(loaded, CONVERSATIONS, settings)


def test_logits_that_are_not_numbers_are_an_error() -> None:
    loaded = load()
    loaded.model.lm_head.weight.data[7] = float("nan")
    with pytest.raises(ModelError, match="logits are not numbers"):
        generate(loaded, CONVERSATIONS[:1], GenerationSettings())


def test_draws_follow_the_distribution_of_each_row() -> None:
    """20,000 rows of one distribution at two temperatures, by an independent softmax; greedy rows beside them."""
    logits = torch.tensor([0.0, 1.0, -1.0, float("-inf"), 2.0])
    rows = 20_000
    for temperature in (0.5, 2.0):
        requests = [Request(messages=(), temperature=temperature, key=str(i)) for i in range(rows)]
        requests.append(Request(messages=(), temperature=0.0, key="greedy"))
        draws = _Draws(requests, [1] * (rows + 1), seed=0)
        tokens = draws.next(logits.expand(rows + 1, 5).clone(), range(rows + 1)).tolist()
        assert tokens.pop() == 4
        weights = np.exp(np.array([0.0, 1.0, -1.0, -np.inf, 2.0]) / temperature)
        counts = Counter(tokens)
        for token, chance in enumerate(weights / weights.sum()):
            # Five standard errors; a token without probability never comes.
            assert abs(counts[token] / rows - chance) <= 5 * np.sqrt(chance * (1 - chance) / rows)


def test_a_rows_numbers_depend_on_seed_and_key_alone() -> None:
    assert random_numbers(0, "a", 3).tolist() == random_numbers(0, "a", 9)[:3].tolist()
    kinds = {tuple(random_numbers(seed, key, 3)) for seed in (0, 1) for key in ("a", "b", "")}
    assert len(kinds) == 6
