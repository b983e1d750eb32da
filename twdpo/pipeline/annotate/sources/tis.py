"""`tis`: importance weights of TIS-DPO (arXiv 2410.04350) in its prompt-based form.

A model scores an answer's tokens behind an instruction to answer well and behind one to answer badly; what the first
makes likelier is taken for what is good. Not for: published weights (`twdpo.pipeline.importing.tis`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from twdpo.pipeline.annotate.judge import chat_template_arguments, require_context
from twdpo.pipeline.annotate.sources.base import Setup, WeightSource
from twdpo.pipeline.annotate.sources.contrast import Contrasted, Contraster
from twdpo.pipeline.annotate.sources.tokens import mean_one
from twdpo.pipeline.answer_logps import answer_logps
from twdpo.preferences import Pair
from twdpo.weights_cache import Recipe, SideWeights, WeightRow

Floats = NDArray[np.float64]
#: The answers of a pair, and for each the difference of log-probs of its tokens.
Both = tuple[Contrasted, Contrasted]
Differences = tuple[Floats, Floats]
#: Its power of e, and that of its negative, are numbers of float64, with room for a sum.
_LARGEST_EXPONENT = 600


@dataclass(frozen=True, slots=True, kw_only=True)
class TisOptions:
    """positive, negative: the instructions. low, high: where differences of log-probs are clamped. mu: their factor."""

    positive: str = "Give the answer that a careful expert would give: correct, helpful, honest and harmless."
    negative: str = "Give the answer that a careless liar would give: wrong, unhelpful, dishonest and harmful."
    low: float = -0.5
    high: float = 1.5
    mu: float = 1.0

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"low must be below high, and is {self.low:g} against {self.high:g}")
        if self.mu <= 0:
            raise ValueError(f"mu must be above 0, and is {self.mu:g}")
        if self.mu * max(abs(self.low), abs(self.high)) > _LARGEST_EXPONENT:
            raise ValueError(f"mu times low or high is the exponent of a weight; {_LARGEST_EXPONENT} is the largest")
        for name in ("positive", "negative"):
            if not getattr(self, name).strip():
                raise ValueError(f"{name} is an instruction and must not be empty")


def importance(difference: Floats, side: str, options: TisOptions) -> Floats:
    """exp(± mu · clamp(difference, low, high)), float64[n]: plus for a chosen answer, minus for a rejected one.

    difference: log π⁺ − log π⁻ of each token. The published constant factor k cancels, since weights have mean 1.
    """
    sign = 1.0 if side == "chosen" else -1.0
    weights: Floats = np.exp(sign * options.mu * np.clip(difference, options.low, options.high))
    return weights


class TisSource(WeightSource[Both, Differences]):
    """Weights by a model that reads each answer behind two instructions."""

    Options = TisOptions
    refuses = ("layers", "judge_template", "verdict")

    def __init__(self, setup: Setup) -> None:
        from twdpo.pipeline.models import load_model

        config = setup.config
        loaded = load_model(
            config.model,
            dtype=config.dtype,
            device=config.device,
            device_map=config.device_map,
            revision=config.revision,
            trust_remote_code=config.trust_remote_code,
        )
        require_context(loaded.model.config, config.max_length)
        self._model, self._batch_size = loaded.model, config.batch_size
        self._options: TisOptions = setup.options
        arguments = chat_template_arguments(loaded.tokenizer, config)
        self._contraster = Contraster(
            loaded.tokenizer,
            positive=self._options.positive,
            negative=self._options.negative,
            max_length=config.max_length,
            arguments=arguments,
        )
        self.policy_model = config.model
        self.recipe = Recipe(
            source=config.source,
            source_options=asdict(self._options),
            judge_model=config.model,
            judge_revision=loaded.revision,
            dtype=loaded.dtype,
            judge_template="",
            chat_template_hash=self._contraster.frame_hash,
            chat_template_kwargs=arguments,
            max_length=config.max_length,
            answer_tokens=self._contraster.answer_tokens,
            template_tokens=0,
            orders=(),
            layers=(0,),
        )

    def prepare(self, pair: Pair) -> Both:
        """Both answers behind both instructions. Raises PromptError."""
        return self._contraster.contrast(pair, pair.chosen), self._contraster.contrast(pair, pair.rejected)

    def read(self, items: Sequence[Both]) -> list[Differences]:
        """log π⁺ − log π⁻ of the tokens of both answers."""
        sequences = [each for both in items for side in both for each in (side.positive, side.negative)]
        logps = iter(answer_logps(self._model, sequences, batch_size=self._batch_size))
        differences = [next(logps).astype(np.float64) - next(logps) for _ in range(2 * len(items))]
        return list(zip(differences[::2], differences[1::2], strict=True))

    def row(self, pair: Pair, item: Both, found: Differences) -> WeightRow:
        """The weights on the tokens of the answers as the model would give them."""
        chosen, rejected = (
            SideWeights(
                starts=side.starts,
                ends=side.ends,
                weights={0: mean_one(importance(difference, name, self._options), len(difference), "tis")},
            )
            for name, side, difference in zip(("chosen", "rejected"), item, found, strict=True)
        )
        truncated = item[0].truncated or item[1].truncated
        return WeightRow(example_hash=pair.example_hash, chosen=chosen, rejected=rejected, truncated=truncated)

    def size(self, item: Both) -> int:
        """Tokens of the four sequences."""
        return sum(len(each.ids) for side in item for each in (side.positive, side.negative))
