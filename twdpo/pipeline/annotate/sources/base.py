"""What stage one asks of a weight source: a pair in, a row of the cache out, in three steps.

`TokenSource` (`tokens.py`) is the short way for a source that needs nothing but the answers' tokens. Not for: which
sources there are (`registry.py`), or the run (`twdpo.pipeline.annotate.judging`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

from twdpo.pipeline.annotate.config import AnnotateConfig
from twdpo.preferences import Pair
from twdpo.weights_cache import Recipe, WeightRow

Item = TypeVar("Item")
Found = TypeVar("Found")


@dataclass(frozen=True, slots=True, kw_only=True)
class NoOptions:
    """The options of a source that has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What a source is made from.

    options: an instance of the source's `Options`. template: the judge template. engine, tokenizer: given by tests in
    place of what `config` names, else None.
    """

    config: AnnotateConfig
    options: Any
    template: str
    engine: Any = None
    tokenizer: Any = None


class WeightSource(ABC, Generic[Item, Found]):
    """Where token weights come from. A subclass is made once a run, from a `Setup`, and loads what it needs.

    For each window of pairs `prepare` runs ahead of the device, `read` on it in the run's own thread, and `row` behind
    it, each in a thread of its own. But for rounding, weights must follow from the pair and the recipe alone: not from
    the order of the pairs, the windows, or what a run did before, since runs are cut into parts, stopped and gone on
    with.
    """

    #: The dataclass of what `--source-options` can say. Its `__post_init__` raises ValueError where a value is wrong.
    Options: ClassVar[type] = NoOptions
    #: Whether `--engine vllm` can read it.
    runs_on_vllm: ClassVar[bool] = False
    #: Whether a cache that `--base` names can take the judge's place.
    takes_base: ClassVar[bool] = False
    #: Whether it runs a model; without one, `--device`, `--dtype` and `--batch-size` have no effect.
    needs_model: ClassVar[bool] = True
    #: Options of stage one that say nothing to it and are refused rather than ignored.
    refuses: ClassVar[tuple[str, ...]] = ()
    #: Whether weight collects on an answer's first token for no reason of content, which stage two's sink fix undoes.
    has_sink: bool = False

    #: All that decides the numbers; its `source` is the name under which this class is registered.
    recipe: Recipe
    #: What stage two trains where it is not told: a model's name, or None.
    policy_model: str | None

    @abstractmethod
    def __init__(self, setup: Setup) -> None:
        """Load what the source needs. Raises UsageError where the options do not go together, and ModelError."""

    @abstractmethod
    def prepare(self, pair: Pair) -> Item:
        """What `read` wants of a pair. Raises PromptError with the reason, where this pair cannot be weighed."""

    @abstractmethod
    def read(self, items: Sequence[Item]) -> Sequence[Found]:
        """What the model, if there is one, says of each item."""

    @abstractmethod
    def row(self, pair: Pair, item: Item, found: Found) -> WeightRow:
        """The row of one pair, without texts. Figures that the source does not have stay NaN."""

    def size(self, item: Item) -> int:
        """How many tokens are run for an item; 0 without a model."""
        return 0

    @property
    def window_tokens(self) -> int:
        """How many tokens `read` wants at once, at the least, to be fast."""
        return 0

    @property
    def peak_flops(self) -> float | None:
        """Floating-point operations that the device can do in a second, None where that is not known."""
        return None

    def flops(self, items: Sequence[Item]) -> float | None:
        """Floating-point operations that `read` needs for these items, None where it does not say."""
        return None
