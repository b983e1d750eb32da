"""What a reward model says of a policy's own answers to the held-out prompts.

Not for: generating (`generation.py`) or scoring (`reward.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from twdpo.errors import DataError
from twdpo.evaluate.compare.config import CompareConfig
from twdpo.evaluate.generation import GenerationSettings, answer_all
from twdpo.evaluate.reward import RewardModel
from twdpo.pipeline.models import LoadedModel, pick_device
from twdpo.preferences import Message, Pair, load, resolve


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewarded:
    """rewards: one a held-out pair. answers: how many were given, one a prompt; cut: at the most tokens; empty ones."""

    rewards: Sequence[float]
    answers: int
    cut: int
    empty: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewarding:
    """A reward model, and the prompts that policies answer. places: of each held-out pair's prompt among them."""

    model: RewardModel
    prompts: Sequence[Sequence[Message]]
    places: Sequence[int]
    settings: GenerationSettings

    @classmethod
    def open(cls, config: CompareConfig, hashes: Sequence[str], device: str) -> Self | None:
        """For the held-out pairs with these hashes; None where no reward model is asked for. Raises ModelError."""
        if config.reward_model is None:
            return None
        wanted = set(hashes)
        found = {
            row.example_hash: row.prompt
            for row in load(resolve(config.dataset, config.split))
            if isinstance(row, Pair) and row.example_hash in wanted
        }
        if wanted - found.keys():
            raise DataError(f"{config.dataset} has changed while it was read; run the same command again")
        prompts = list(dict.fromkeys(found[key] for key in hashes))
        numbers = {prompt: number for number, prompt in enumerate(prompts)}
        trust = bool(config.train.get("trust_remote_code", False))
        model = RewardModel.load(config.reward_model, device=pick_device(device), trust_remote_code=trust)
        model.check(prompts)
        return cls(
            model=model,
            prompts=prompts,
            places=[numbers[found[key]] for key in hashes],
            settings=GenerationSettings(max_new_tokens=config.max_new_tokens, temperature=config.temperature),
        )

    def of(self, policy: LoadedModel) -> Rewarded:
        """What the policy answers each held-out pair's prompt, scored."""
        given = answer_all(policy, self.prompts, self.settings)
        rewards = self.model.score(self.prompts, [answer.text for answer in given])
        return Rewarded(
            rewards=np.asarray(rewards[list(self.places)], np.float64).tolist(),
            answers=len(given),
            cut=sum(answer.cut for answer in given),
            empty=sum(not answer.text for answer in given),
        )
