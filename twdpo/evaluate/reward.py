"""Win rates by a reward model: one sampled answer of policy and reference to each held-out prompt, both scored.

Not for: reward models as judges of preference pairs, or benchmark answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from twdpo.errors import ModelError, first_line
from twdpo.evaluate.statistics import Bootstrap, Estimate, Floats, is_longer, is_right, length_controlled, mean
from twdpo.pipeline.chat import chat_template, render_chat
from twdpo.pipeline.model_files import loading, locate, quiet_progress
from twdpo.pipeline.models import context_length, input_device, load_tokenizer
from twdpo.pipeline.tokens import LiteralTokenizer
from twdpo.pipeline.train.render import plain_prompt
from twdpo.preferences import Message

#: Sequences scored together.
_BATCH = 8
_STAND_IN = "Answer"


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardModel:
    """A model with one number for a whole conversation."""

    name: str
    model: Any
    tokenizer: Any

    @classmethod
    def load(cls, name: str, *, device: str, trust_remote_code: bool = False) -> RewardModel:
        """Load it in float32. Raises ModelError where it gives anything but one number, or HubUnavailable."""
        from transformers import AutoModelForSequenceClassification

        folder, _, arguments = locate(name, None, trust_remote_code)
        with loading(name, "reward model"), quiet_progress():
            make: Any = AutoModelForSequenceClassification
            model, found = make.from_pretrained(folder, dtype=torch.float32, output_loading_info=True, **arguments)
        labels, missing = int(model.config.num_labels), found["missing_keys"]
        if labels != 1 or missing:
            what = f"gives {labels} numbers, not one" if not missing else "has no head that gives a reward"
            raise ModelError(f"{name} is no reward model: it {what}")
        tokenizer = load_tokenizer(name, trust_remote_code=trust_remote_code)
        return cls(name=name, model=model.to(device).eval(), tokenizer=tokenizer)

    def check(self, prompts: Sequence[Sequence[Message]]) -> None:
        """Raise ModelError where the chat template refuses one of the prompts with an answer."""
        literal = LiteralTokenizer(self.tokenizer)
        for prompt in prompts:
            _conversation_ids(self.tokenizer, literal, [*prompt, Message(role="assistant", content=_STAND_IN)])

    @torch.inference_mode()
    def score(
        self,
        prompts: Sequence[Sequence[Message]],
        answers: Sequence[str],
        advance: Callable[[int], None] | None = None,
    ) -> Floats:
        """The reward of each answer to its prompt. Sequences beyond the model's context lose their beginning.

        Raises ModelError where the chat template refuses a prompt, or a reward is not a number.
        """
        literal, context = LiteralTokenizer(self.tokenizer), context_length(self.model.config)
        sequences = [
            _conversation_ids(self.tokenizer, literal, [*p, Message(role="assistant", content=answer)])
            for p, answer in zip(prompts, answers, strict=True)
        ]
        sequences = [ids if context is None else ids[-context:] for ids in sequences]
        rewards = np.zeros(len(sequences))
        order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
        # A model that knows no padding takes its reward from the last token, whatever that is.
        size = _BATCH if self.model.config.pad_token_id is not None else 1
        for start in range(0, len(order), size):
            group = order[start : start + size]
            rewards[group] = self._forward([sequences[i] for i in group])
            if advance is not None:
                advance(len(group))
        if not np.isfinite(rewards).all():
            raise ModelError(f"rewards of {self.name} are not numbers; check that it is whole")
        return rewards

    def _forward(self, sequences: Sequence[Sequence[int]]) -> Floats:
        longest = max(map(len, sequences))
        pad = self.model.config.pad_token_id
        ids = np.full((len(sequences), longest), pad if pad is not None else 0, np.int64)
        mask = np.zeros_like(ids)
        for row, sequence in enumerate(sequences):
            ids[row, : len(sequence)] = sequence
            mask[row, : len(sequence)] = 1
        device = input_device(self.model)
        inputs = {"input_ids": torch.from_numpy(ids).to(device), "attention_mask": torch.from_numpy(mask).to(device)}
        logits_B1 = self.model(**inputs).logits
        return np.asarray(logits_B1[:, 0].double().cpu().numpy())


def _conversation_ids(tokenizer: Any, literal: LiteralTokenizer, messages: Sequence[Message]) -> list[int]:
    """A conversation that ends with an answer, as the chat template has it; what spells a special token stays text."""
    if chat_template(tokenizer) is None:
        text = plain_prompt(messages[:-1]) + messages[-1].content
        end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        return [*literal.bos_ids, *literal.encode(text).ids.tolist(), *end]
    shielded = [Message(role=m.role, content=literal.shield(m.content)) for m in messages]
    try:
        rendered = render_chat(tokenizer, shielded, add_generation_prompt=False)
    except Exception as error:  # templates are programs and raise what they like
        raise ModelError(f"the reward model's chat template refuses a conversation: {first_line(error)}") from None
    found: list[int] = literal.encode(literal.unshield(literal.mark(rendered))).ids.tolist()
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """Answers of one model to all prompts, and their rewards. cut: whether each reached the most tokens."""

    texts: Sequence[str]
    rewards: Floats
    cut: Sequence[bool]

    @property
    def characters(self) -> Floats:
        """How long each is."""
        return np.array([len(text) for text in self.texts], np.float64)

    @property
    def empty(self) -> int:
        """How many have not a character."""
        return sum(not text for text in self.texts)


def win_rates(policy: Answers, reference: Answers, bootstrap: Bootstrap) -> dict[str, Estimate]:
    """How often the policy's answer gets the higher reward (an equal one counts ½), and by what.

    length_controlled_win_rate: the mean of the win rates where the policy's answer is the longer one, and where it is
    the shorter one.
    """
    right = is_right(policy.rewards - reference.rewards)
    longer = is_longer(policy.characters, reference.characters)
    return {
        "win_rate": bootstrap.mean(right),
        "length_controlled_win_rate": bootstrap.estimate(length_controlled, right, longer),
        "reward": bootstrap.mean(policy.rewards),
        "reference_reward": bootstrap.mean(reference.rewards),
        "reward_difference": bootstrap.difference(mean, [policy.rewards], [reference.rewards]),
        "characters": bootstrap.mean(policy.characters),
        "reference_characters": bootstrap.mean(reference.characters),
    }


def answers_plain(prompts: Sequence[Sequence[Message]], policy: Answers, reference: Answers) -> list[Mapping[str, Any]]:
    """What was sampled and scored, as JSON has it."""
    rewards = zip(policy.rewards, reference.rewards, policy.cut, reference.cut, strict=True)
    rows = zip(prompts, policy.texts, reference.texts, rewards, strict=True)
    return [
        {
            "prompt": [{"role": m.role, "content": m.content} for m in prompt],
            "answer": answer,
            "reference_answer": other,
            "reward": float(reward),
            "reference_reward": float(other_reward),
            "cut": cut,
            "reference_cut": other_cut,
        }
        for prompt, answer, other, (reward, other_reward, cut, other_cut) in rows
    ]
