"""All pairs of a run in memory: the feed for data sets that fit.

The data set is read once for the hashes, to know what is missing before anything is rendered, and again for the text.
Each of several processes first renders an equal part. They tell each other what can be used and how long it is, so that
all know every step's deal, and each renders what falls to it and it has not got. Not for: the order (`batches.py`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Container, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from twdpo.pipeline.train.batches import Plan, share, step_indices
from twdpo.pipeline.train.config import TrainConfig
from twdpo.pipeline.train.data import WINDOW, Example, Joiner
from twdpo.pipeline.train.feed import Counts, Portion, no_reference, none_held_out, nothing_left
from twdpo.pipeline.train.layouts import Logps
from twdpo.pipeline.train.parts import parts_of, rows_of
from twdpo.pipeline.train.processes import Processes, in_accord
from twdpo.pipeline.train.progress import TrainProgress
from twdpo.pipeline.train.reference import Reference, read_reference
from twdpo.pipeline.train.render import Renderer
from twdpo.pipeline.train.survey import survey
from twdpo.preferences import Pair
from twdpo.weights_cache import WeightsCache


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    """What all processes know of an example that one of them has rendered; number: of its row, as read."""

    number: int
    example_hash: str
    longest: int
    tokens: int
    digest: bytes
    cut: bool


class ResidentFeed:
    """The feed of a run whose pairs fit; see `Feed`."""

    def __init__(
        self,
        config: TrainConfig,
        cache: WeightsCache,
        renderer: Renderer,
        processes: Processes,
        progress: TrainProgress,
    ) -> None:
        self._config, self._processes, self._progress = config, processes, progress
        self._cache, self._joiner = cache, Joiner(config, cache, renderer)
        progress.start("pairs", None)
        with in_accord(processes):
            self._parts = parts_of(config, cache)
            self._survey = survey(config, cache, self._parts)
            cache.prepare_for(self._survey.hashes, WINDOW)
            #: By the number of their row: the part of this process, and from `begin` on what it trains on.
            self.examples, reasons = self._render(self._survey.used[processes.rank :: processes.count])
        self._share_out(processes.collect(self._describe()), processes.collect(reasons))
        with in_accord(processes):
            shortest = min(self._train, key=lambda known: (known.longest, known.example_hash)).number
            self.spare = self.examples.get(shortest) or self._render([shortest])[0][shortest]
        progress.finish("pairs")
        self._reference: Mapping[str, Logps] = {}

    @property
    def train(self) -> list[Example]:
        """The examples to train on that are in this process's memory, in the order of the data set."""
        return [self.examples[known.number] for known in self._train if known.number in self.examples]

    @property
    def held_out(self) -> list[Example]:
        """The same of those that are held out."""
        return [self.examples[known.number] for known in self._heldout if known.number in self.examples]

    @property
    def digest(self) -> str:
        """16 hex digits over what is trained on: the pairs in their order, their tokens and weights."""
        return hashlib.sha256(b"".join(known.digest for known in self._train)).hexdigest()[:16]

    def state(self, step: int) -> dict[str, Any]:
        """Nothing: the step says it all."""
        return {}

    def lacking(self, store: Container[str]) -> Iterator[list[Example]]:
        """What `store` lacks of this process's part; see `Feed`."""
        both = self.train + self.held_out
        lacking = {example.example_hash: example for example in both if example.example_hash not in store}
        self._progress.start("reference", len(lacking))
        yield list(lacking.values())
        self._progress.finish("reference")

    def begin(self, store: Reference, step: int = 0, state: Mapping[str, Any] | None = None) -> None:
        """Hold exactly what this process will be asked for, with its reference log-probs."""
        rank, count = self._processes.rank, self._processes.count
        mine = {known.number for known in share(self._heldout, rank, count)}
        mine |= self._needed(step)
        with in_accord(self._processes):
            if lacks := mine - self.examples.keys():
                self.examples |= self._render(lacks)[0]
            self.examples = {number: example for number, example in self.examples.items() if number in mine}
            self._reference = no_reference(self.spare) | read_reference(list(self.examples.values()), store)

    @property
    def heldout(self) -> Portion:
        """The held-out pairs."""
        return self._portion(self._heldout)

    def step(self, number: int) -> Portion:
        """The pairs of a step."""
        return self._portion([self._train[i] for i in step_indices(self.plan, self._config.seed, number)])

    def close(self) -> None:
        """Nothing is open."""

    def _portion(self, pairs: list[_Known]) -> Portion:
        mine = share(pairs, self._processes.rank, self._processes.count)
        return Portion(
            mine=[self.examples[known.number] for known in mine],
            spare=self.spare,
            reference=self._reference,
            count=len(pairs),
            tokens=sum(known.tokens for known in pairs),
        )

    def _needed(self, first: int) -> set[int]:
        """The numbers of the examples that this process trains on from step `first` on."""
        if self._processes.count == 1:
            return {known.number for known in self._train}
        needed: set[int] = set()
        for step in range(first, self.plan.steps):
            pairs = [self._train[i] for i in step_indices(self.plan, self._config.seed, step)]
            needed |= {known.number for known in share(pairs, self._processes.rank, self._processes.count)}
            if len(needed) == len(self._train):
                break
        return needed

    def _render(self, wanted: Collection[int]) -> tuple[dict[int, Example], list[str]]:
        """The examples of the rows `wanted`, by their numbers, and the reasons why some cannot be had."""
        wanted = frozenset(wanted)
        found: dict[int, Example] = {}
        reasons: list[str] = []
        window: list[tuple[int, Pair, bool]] = []

        def render() -> None:
            joined = self._joiner.join([(pair, even) for _, pair, even in window])
            for (number, _, _), example in zip(window, joined, strict=True):
                if isinstance(example, Example):
                    found[number] = example
                else:
                    reasons.append(example)
            self._progress.advance("pairs", len(window))
            window.clear()

        for number, (_, pair) in enumerate(rows_of(self._config, self._cache, self._parts)):
            if number in wanted and isinstance(pair, Pair):
                window.append((number, pair, self._is_uniform(number)))
            if len(window) == WINDOW:
                render()
        render()
        return found, reasons

    def _describe(self) -> list[_Known]:
        return [
            _Known(
                number=number,
                example_hash=example.example_hash,
                longest=example.longest,
                tokens=example.tokens,
                digest=example.digest,
                cut=example.cut,
            )
            for number, example in self.examples.items()
        ]

    def _share_out(self, known: list[_Known], reasons: list[str]) -> None:
        """What there is to train on, given what all processes have found."""
        known.sort(key=lambda example: example.number)
        fates = self._survey.fates
        self._heldout = [example for example in known if "heldout" in str(fates[example.number])]
        self._train = [example for example in known if "heldout" not in str(fates[example.number])]
        self.counts = Counts(
            pairs=len(self._train),
            heldout=len(self._heldout),
            truncated=sum(example.cut for example in known),
            uniform=sum(self._is_uniform(example.number) for example in known),
            skipped=self._survey.skipped.copy(),
        )
        self.counts.skipped.update(reasons)
        if not self._train:
            raise nothing_left(self.counts)
        if not self._heldout and any(part.heldout for part in self._parts):
            raise none_held_out(self._config)
        config = self._config
        self.plan = Plan.of(len(self._train), config.batch_size, config.epochs, config.max_steps)

    def _is_uniform(self, number: int) -> bool:
        return "uniform" in str(self._survey.fates[number])
