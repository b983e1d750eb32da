"""Where the loop gets its pairs: one interface, and the choice between its two implementations.

Resident (`resident.py`): all pairs are joined before training, and their order is a function of seed and step. Streamed
(`streamed.py`): pairs are read as they are needed, in memory that does not grow with their number. With several
processes each renders and holds only the pairs that fall to it. Not for: what is done with the pairs (`loop.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from twdpo.errors import DataError, UsageError
from twdpo.pipeline.train.batches import Plan
from twdpo.pipeline.train.config import TrainConfig
from twdpo.pipeline.train.data import Example
from twdpo.pipeline.train.layouts import Logps
from twdpo.pipeline.train.processes import Processes, together
from twdpo.pipeline.train.progress import TrainProgress
from twdpo.pipeline.train.render import Renderer
from twdpo.weights_cache import WeightsCache

if TYPE_CHECKING:
    from twdpo.pipeline.train.reference import Reference


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Portion:
    """What falls to this process of the pairs of a step, or of those held out.

    mine may be empty; spare is then there for a forward pass whose result does not count. reference: hash → log-probs
    of all of these, zeros for the spare one. count, tokens: of all processes together.
    """

    mine: list[Example]
    spare: Example
    reference: Mapping[str, Logps]
    count: int
    tokens: int = 0


@dataclass(slots=True, kw_only=True)
class Counts:
    """What became of the pairs of a run, over all processes; skipped: reason → pairs.

    A stream counts a pair when training first comes to it.
    """

    pairs: int = 0
    heldout: int = 0
    truncated: int = 0
    uniform: int = 0
    skipped: Counter[str] = field(default_factory=Counter)

    def add(self, other: Counts) -> None:
        """Count those of `other`, too."""
        for name in ("pairs", "heldout", "truncated", "uniform"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.skipped.update(other.skipped)

    def copy(self) -> Counts:
        """The same, on its own."""
        return replace(self, skipped=self.skipped.copy())

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return {**{f.name: getattr(self, f.name) for f in fields(self)}, "skipped": dict(self.skipped)}

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Counts:
        """Undo `plain`."""
        return cls(**{**plain, "skipped": Counter(plain["skipped"])})


class Feed(Protocol):
    """The pairs of a run. In order: go through `lacking`, `begin`, then `heldout` and `step` as often as need be."""

    plan: Plan
    counts: Counts
    #: An example that every process has, for forward passes whose results do not count.
    spare: Example

    def lacking(self, store: Container[str]) -> Iterator[list[Example]]:
        """This process's part of the examples whose reference log-probs `store` lacks, as they are to be computed.

        All processes get as many lists, some of them maybe empty. Tells the progress how many there are.
        """

    def begin(self, store: Reference, step: int = 0, state: Mapping[str, Any] | None = None) -> None:
        """Be ready for `step`, with all that was lacking in `store`; `state` is what a checkpoint has."""

    @property
    def digest(self) -> str:
        """16 hex digits over the pairs that are trained on, whatever the number of processes; after `lacking`."""

    def state(self, step: int) -> dict[str, Any]:
        """Where the feed stands before `step`, as plain numbers: what `begin` needs beside the step."""

    @property
    def heldout(self) -> Portion:
        """The held-out pairs."""

    def step(self, number: int) -> Portion:
        """The pairs of step `number` (0-based); all processes ask for the same."""

    def close(self) -> None:
        """Let go of files and threads."""


@contextmanager
def open_feed(
    config: TrainConfig, layers: tuple[int, ...], renderer: Renderer, processes: Processes, progress: TrainProgress
) -> Iterator[Feed]:
    """The feed that `config` asks for.

    Raises MissingRows where pairs have no weights (with `missing: error`), UsageError where the held-out part cannot
    be had, DataError where nothing is left to train on, and CacheError.
    """
    from twdpo.pipeline.train.resident import ResidentFeed
    from twdpo.pipeline.train.streamed import StreamedFeed

    make = StreamedFeed if config.streaming else ResidentFeed
    with WeightsCache.open(config.weights, layers=layers) as cache:
        feed: Feed = make(config, cache, renderer, processes, progress)
        try:
            yield feed
        finally:
            feed.close()


def no_reference(spare: Example) -> dict[str, Logps]:
    """Zeros for an example whose result does not count."""
    chosen, rejected = (np.zeros(len(side.weights), np.float32) for side in (spare.chosen, spare.rejected))
    return {spare.example_hash: (chosen, rejected)}


def nothing_left(counts: Counts) -> DataError:
    """The error where there is no pair to train on, with the reasons; every process comes to it."""
    reasons = [f"{count} {reason}" for reason, count in counts.skipped.items()]
    reasons += [f"{counts.heldout} held out"] if counts.heldout else []
    return together(DataError(f"no pair is left to train on: {'; '.join(reasons) or 'the data set is empty'}"))


def none_held_out(config: TrainConfig) -> UsageError:
    """The error where a split was named to be held out and gave no pair; every process comes to it."""
    return together(
        UsageError(
            f"--eval-split {config.eval_split}: no pair of that split can be used; name another, or pass "
            "--eval-split none"
        )
    )
