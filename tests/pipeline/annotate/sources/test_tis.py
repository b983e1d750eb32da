"""TIS-DPO's weights: the formula, where the answers stand, and the whole against a few lines of plain transformers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.fixtures.tiny_models import CHATML, save_tiny, tiny_tokenizer
from twdpo.pipeline.annotate import AnnotateConfig, annotate
from twdpo.pipeline.annotate.prompt import PromptError
from twdpo.pipeline.annotate.sources.contrast import Contraster
from twdpo.pipeline.annotate.sources.tis import TisOptions, importance
from twdpo.preferences import Message, Pair, load, resolve
from twdpo.weights_cache import WeightsCache, verify

GOOD, BAD = "Be right.", "Be wrong, and rude."


def contraster(*, max_length: int = 400, chat_template: str | None = CHATML) -> Contraster:
    return Contraster(tiny_tokenizer(chat_template), positive=GOOD, negative=BAD, max_length=max_length, arguments={})


def pair(*turns: tuple[str, str], chosen: str = "Yes, it is.", rejected: str = "no") -> Pair:
    return Pair(prompt=tuple(Message(role=r, content=c) for r, c in turns), chosen=chosen, rejected=rejected)


def test_the_formula_by_hand() -> None:
    differences = np.array([0.0, 0.5, 9.0, -9.0])
    options = TisOptions(low=-0.5, high=1.5, mu=2.0)
    chosen, rejected = (importance(differences, side, options) for side in ("chosen", "rejected"))
    np.testing.assert_allclose(chosen, [1, math.e, math.e**3, 1 / math.e])
    np.testing.assert_allclose(rejected, [1, 1 / math.e, math.e**-3, math.e])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"low": 2.0}, "low must be below high, and is 2 against 1.5"),
        ({"mu": 0.0}, "mu must be above 0, and is 0"),
        ({"mu": 500.0}, "mu times low or high is the exponent of a weight; 600 is the largest"),
        ({"negative": " "}, "negative is an instruction and must not be empty"),
    ],
)
def test_options_out_of_range(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TisOptions(**change)


@pytest.mark.parametrize("chat_template", [CHATML, None])
@pytest.mark.parametrize("answer", ["Yes, it is.", "  spaced é out \n", "ends a turn: <|im_end|> so"])
def test_the_answers_tokens_are_found_where_they_were_put(answer: str, chat_template: str | None) -> None:
    made = contraster(chat_template=chat_template).contrast(pair(("user", "Is <|im_start|> it?")), answer)
    tokenizer = tiny_tokenizer()
    for context, instruction in ((made.positive, GOOD), (made.negative, BAD)):
        shown = tokenizer.decode(context.ids)
        assert shown.index(instruction) < shown.index("Is <|im_start|> it?") < shown.rindex(answer.strip())
        assert tokenizer.decode(context.ids[context.first : context.last]).strip() == answer.strip()
        assert context.last == len(context.ids)
    assert (answer[: made.starts[0]] + answer[made.starts[0] : made.ends[-1]]).rstrip() == answer.rstrip()
    # What spells a special token in an answer is none.
    special = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert special not in made.positive.ids[made.positive.first :]


def test_the_instruction_stands_before_the_last_question() -> None:
    turns = pair(("system", "You are terse."), ("user", "One?"), ("assistant", "1"), ("user", "Two?"))
    shown = tiny_tokenizer().decode(contraster().contrast(turns, "2").positive.ids)
    assert f"user\n{GOOD}\n\nTwo?" in shown
    assert shown.index("You are terse.") < shown.index("One?") < shown.index(GOOD)


def test_what_is_too_long_loses_old_turns_then_the_questions_beginning() -> None:
    long = pair(("user", "old " * 60), ("assistant", "old"), ("user", "begins " + "so " * 30 + "ends?"))
    made = contraster(max_length=160).contrast(long, "word " * 70)
    shown = tiny_tokenizer().decode(made.positive.ids)
    assert made.truncated
    assert len(made.negative.ids) <= 160
    assert "old" not in shown
    assert "ends?" in shown
    assert len(made.starts) == 60 == made.positive.last - made.positive.first
    assert not contraster().contrast(pair(("user", "Short?")), "yes").truncated
    # The question is of characters of several tokens each, none of which can be cut in two.
    made = contraster(max_length=64).contrast(pair(("user", "\U0001f389" * 9)), "word " * 9)
    assert 55 < len(made.positive.ids) <= 64 or 55 < len(made.negative.ids) <= 64
    # An answer of such characters ends after a whole one.
    assert len(tiny_tokenizer()("\U0001f389").input_ids) > 1
    made = contraster(max_length=64).contrast(pair(("user", "Short?")), "a\U0001f389" * 40)
    assert made.truncated
    assert tiny_tokenizer().decode(made.positive.ids[made.positive.first :]) in "a\U0001f389" * 40
    with pytest.raises(PromptError, match="the instruction alone leaves no room"):
        contraster(max_length=16).contrast(pair(("user", "Short?")), "word " * 70)


def test_the_whole_against_plain_transformers(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model", "llama", layers=2, context=2048)
    (tmp_path / "pairs.jsonl").write_text(
        '{"prompt": "What?", "chosen": "The answer is that.", "rejected": "no"}\n'
        '{"prompt": "Why then?", "chosen": "So.", "rejected": "The fox looks on with interest"}\n'
    )
    config = AnnotateConfig(
        dataset=str(tmp_path / "pairs.jsonl"),
        out=str(tmp_path / "out"),
        model=str(folder),
        device="cpu",
        source="tis",
        source_options=f"positive={GOOD},negative={BAD},high=0.25",
    )
    result = annotate(config)
    assert (result.counts.written, result.judge_accuracy) == (2, None)
    assert result.counts.tokens > 0
    assert verify(tmp_path / "out").ok
    from transformers import AutoModelForCausalLM

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), tiny_tokenizer()

    def logps(instruction: str, question: str, answer: str) -> list[float]:
        turns = [{"role": "user", "content": f"{instruction}\n\n{question}"}]
        before = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        head = len(tokenizer(before)["input_ids"])
        ids = torch.tensor(tokenizer(before + answer)["input_ids"])
        with torch.no_grad():
            scores = model(ids[None]).logits[0].log_softmax(dim=-1)
        return [float(scores[t - 1, ids[t]]) for t in range(head, len(ids))]

    with WeightsCache.open(tmp_path / "out") as cache:
        assert not cache.manifest.has_sink
        assert cache.manifest.defaults["policy_model"] == str(folder)
        clamped = 0
        for item in load(resolve(str(tmp_path / "pairs.jsonl"))):
            assert isinstance(item, Pair)
            row = cache.get(item.example_hash)
            for name, sign in (("chosen", 1), ("rejected", -1)):
                answer = getattr(item, name)
                good, bad = (logps(instruction, item.prompt[0].content, answer) for instruction in (GOOD, BAD))
                raw = [math.exp(sign * min(max(a - b, -0.5), 0.25)) for a, b in zip(good, bad, strict=True)]
                clamped += sum(not -0.5 < a - b < 0.25 for a, b in zip(good, bad, strict=True))
                expected = [value * len(raw) / sum(raw) for value in raw]
                np.testing.assert_allclose(row.side(name).weights[0], expected, rtol=2**-11)
        assert clamped
