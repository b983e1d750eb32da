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
from twdpo.evaluate.generation import GenerationSettings, generate
from twdpo.evaluate.reward import RewardModel
from twdpo.evaluate.statistics import Floats
from twdpo.pipeline.models import LoadedModel, pick_device
from twdpo.preferences import Message, Pair, load, resolve


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
        return cls(
            model=RewardModel.load(config.reward_model, device=pick_device(device), trust_remote_code=trust),
            prompts=prompts,
            places=[numbers[found[key]] for key in hashes],
            settings=GenerationSettings(max_new_tokens=config.max_new_tokens, temperature=config.temperature),
        )

    def of(self, policy: LoadedModel) -> Floats:
        """The reward of the policy's answer to each held-out pair's prompt."""
        rewards = self.model.score(self.prompts, generate(policy, self.prompts, self.settings))
        return np.asarray(rewards[list(self.places)], np.float64)
