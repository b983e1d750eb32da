"""Sources that need nothing but the answers' tokens: `uniform`, `position`, and the base class for others like them.

The tokens are those of the judge prompt, so that such a cache compares with one of attention token for token; only the
tokenizer is loaded. Not for: sources that run a model.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from twdpo.errors import ModelError
from twdpo.pipeline.annotate.judge import builder_of, recipe_of
from twdpo.pipeline.annotate.prompt import AnswerSpan, JudgePrompt
from twdpo.pipeline.annotate.sources.base import Setup, WeightSource
from twdpo.preferences import Pair
from twdpo.weights_cache import SideWeights, WeightRow

_Prompts = tuple[JudgePrompt, JudgePrompt]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One answer of a pair and its n judged tokens.

    side: chosen or rejected. starts, ends: int32[n], the characters of `text` that each token covers.
    """

    pair: Pair
    side: str
    starts: NDArray[np.int32]
    ends: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def text(self) -> str:
        """The answer as the data set has it."""
        return self.pair.chosen if self.side == "chosen" else self.pair.rejected

    def tokens(self) -> list[str]:
        """The text of each token; several tokens may share a character."""
        return [self.text[start:end] for start, end in zip(self.starts, self.ends, strict=True)]


class TokenSource(WeightSource[_Prompts, None]):
    """A source of which `weigh` is all there is to write. `options` holds an instance of its `Options`."""

    needs_model = False
    refuses = ("device_map", "layers", "verdict")

    def __init__(self, setup: Setup) -> None:
        from twdpo.pipeline.model_files import locate
        from twdpo.pipeline.models import load_tokenizer

        config = setup.config
        tokenizer, revision = setup.tokenizer, None
        if tokenizer is None:
            _, identity, _ = locate(config.model, config.revision, config.trust_remote_code)
            revision = identity or config.revision
            tokenizer = load_tokenizer(
                config.model, revision=config.revision, trust_remote_code=config.trust_remote_code
            )
        self.options = setup.options
        self._builder, arguments = builder_of(config, setup.template, tokenizer)
        self.recipe = recipe_of(
            config,
            setup.template,
            self._builder,
            arguments,
            revision=revision,
            dtype="none",
            layers=(0,),
            source_options=asdict(self.options),
        )
        self.policy_model = config.model

    @abstractmethod
    def weigh(self, answer: Answer) -> ArrayLike:
        """A number for each token of an answer, none negative, on any scale: they are brought to mean 1.

        Where all are zero, every token weighs 1.
        """

    def prepare(self, pair: Pair) -> _Prompts:
        """Both judge prompts, for where the answers' tokens are. Raises PromptError."""
        return self._builder.build(pair, "cr"), self._builder.build(pair, "rc")

    def read(self, items: Sequence[_Prompts]) -> list[None]:
        """Nothing: there is no model."""
        return [None] * len(items)

    def row(self, pair: Pair, item: _Prompts, found: None) -> WeightRow:
        """The weights on the tokens that `attention` would weigh."""
        return WeightRow(
            example_hash=pair.example_hash,
            chosen=self._side(pair, "chosen", item[0].answer_a),
            rejected=self._side(pair, "rejected", item[0].answer_b),
            truncated=item[0].truncated or item[1].truncated,
        )

    def _side(self, pair: Pair, side: str, span: AnswerSpan) -> SideWeights:
        answer = Answer(pair=pair, side=side, starts=span.starts, ends=span.ends)
        weights = mean_one(self.weigh(answer), len(answer), self.recipe.source)
        return SideWeights(starts=span.starts, ends=span.ends, weights={0: weights})


def mean_one(values: ArrayLike, n: int, source: str) -> NDArray[np.float32]:
    """`values` as weights float32[n] of mean 1. Raises ModelError where they are not n numbers, none of them negative.

    The mean is 1 in exact arithmetic; where all are zero, every weight is 1.
    """
    exact: NDArray[Any] = np.asarray(values, dtype=np.float64)
    if exact.shape != (n,):
        raise ModelError(f"--source {source} gave weights of shape {exact.shape} for an answer of {n} tokens")
    if not np.all(np.isfinite(exact)) or np.any(exact < 0):
        raise ModelError(f"--source {source} gave a weight that is negative or not a number")
    if largest := exact.max(initial=0.0):
        exact = exact / largest  # on any scale: the sum of huge numbers is none, and of tiny ones it is rough
    total = exact.sum()
    return (exact * (n / total) if total > 0 else np.ones(n)).astype(np.float32)


class UniformSource(TokenSource):
    """w_t = 1: with the end of turn counted (`--uncovered one`), plain DPO where the policy has the same tokens."""

    def weigh(self, answer: Answer) -> ArrayLike:
        """All ones."""
        return np.ones(len(answer))


@dataclass(frozen=True, slots=True, kw_only=True)
class PositionOptions:
    """gamma: the decay from one token to the next; 0.98 is that of the published configuration."""

    gamma: float = 0.98

    def __post_init__(self) -> None:
        if not 0 < self.gamma <= 1:
            raise ValueError(f"gamma must be above 0 and at most 1, not {self.gamma:g}")


class PositionSource(TokenSource):
    """w_t ∝ γ^t, t the token's place in the answer from 0: D²PO (arXiv 2502.14340), brought to mean 1."""

    Options = PositionOptions

    def weigh(self, answer: Answer) -> ArrayLike:
        """The powers of gamma."""
        options: PositionOptions = self.options
        return options.gamma ** np.arange(len(answer), dtype=np.float64)
