"""What becomes of the rows of a stream: trained on, held out, or left out with a reason.

Not for: data sets that fit, which are surveyed as a whole (`survey.py`).
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field
from threading import Event

from twdpo.errors import UsageError
from twdpo.pipeline.train.config import TrainConfig, heldout_count, parse_eval_split
from twdpo.pipeline.train.data import WINDOW, Example, Joiner
from twdpo.pipeline.train.feed import Counts
from twdpo.pipeline.train.render import Renderer
from twdpo.pipeline.train.survey import DROPPED, HELD_OUT, IN_SPLIT, LEFT_OUT, missing_rows, prompt_key
from twdpo.preferences import Pair, Reject
from twdpo.weights_cache import WeightsCache, read_rejects

#: A row's number and what it holds.
Row = tuple[int, Pair | Reject]


class Closed(Exception):
    """The feed was closed meanwhile."""


@dataclass(slots=True, kw_only=True)
class Sorted:
    """What became of some rows, by their numbers. even: of the examples or pairs, those with even weights."""

    examples: dict[int, Example] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)
    even: set[int] = field(default_factory=set)


class Sorter:
    """Sorts rows; what is held out is to be told first. Not for use by several threads at once."""

    def __init__(self, config: TrainConfig, cache: WeightsCache, renderer: Renderer) -> None:
        self.closing = Event()
        self._config, self._cache = config, cache
        self._joiner = Joiner(config, cache, renderer)
        self._left_out = frozenset(reject.example_hash for reject in read_rejects(cache.folder))
        self._hashes: frozenset[str] = frozenset()
        self._prompts: frozenset[bytes] = frozenset()

    def hold_out(self, hashes: Iterable[str], prompts: Iterable[bytes]) -> None:
        """From now on leave out pairs with one of `hashes` or `prompts`."""
        self._hashes, self._prompts = frozenset(hashes), frozenset(prompts)

    def prompt_key(self, pair: Pair) -> bytes:
        """What tells the prompt of a pair from others."""
        return prompt_key(self._config.holding_seed, pair.prompt)

    def usable(self, rows: Sequence[Row], known: Sorted) -> list[tuple[int, Pair, str]]:
        """The rows that can be rendered, with their hashes; `known` is told of the others, and of even weights.

        Raises MissingRows where pairs have no weights (with `missing: error`).
        """
        hashes = [item.example_hash or "" for _, item in rows]
        absent = set(self._cache.missing(hashes))
        found, missing = [], []
        for (number, item), key in zip(rows, hashes, strict=True):
            if isinstance(item, Reject):
                known.reasons[number] = item.reason
            elif key in self._hashes or (self._prompts and self.prompt_key(item) in self._prompts):
                known.reasons[number] = HELD_OUT if self._prompts else IN_SPLIT
            elif key not in absent:
                found.append((number, item, key))
            elif key in self._left_out:
                known.reasons[number] = LEFT_OUT
            elif self._config.missing == "drop":
                known.reasons[number] = DROPPED
            else:
                missing.append((key, item.row))
                known.even.add(number)
                found.append((number, item, key))
        if missing and self._config.missing == "error":
            raise missing_rows(self._config, self._cache, missing, sum(isinstance(item, Pair) for _, item in rows))
        return found

    def examples(self, rows: Sequence[Row]) -> Sorted:
        """Rows as examples, with their weights. Raises MissingRows, and Closed."""
        known = Sorted()
        usable = self.usable(rows, known)
        for window in (usable[i : i + WINDOW] for i in range(0, len(usable), WINDOW)):
            if self.closing.is_set():
                raise Closed
            joined = self._joiner.join([(pair, number in known.even) for number, pair, _ in window])
            self._take([number for number, _, _ in window], joined, known)
        return known

    def unreferenced(self, rows: Sequence[Row], store: Container[str]) -> tuple[list[Example], Sorted]:
        """Of the rows that can be used, those that `store` lacks, with even weights, for these do not matter.

        Also what became of the rows, those in `store` being known to be good.
        """
        known = Sorted()
        lacking = {key: (number, pair) for number, pair, key in self.usable(rows, known) if key not in store}
        joined = self._joiner.join([(pair, True) for _, pair in lacking.values()])
        rendered = Sorted()
        self._take([number for number, _ in lacking.values()], joined, rendered)
        known.reasons |= rendered.reasons
        return list(rendered.examples.values()), known

    def counts(self, known: Sorted, numbers: Iterable[int]) -> Counts:
        """Those of the rows `numbers`, as pairs to train on."""
        counts = Counts()
        for number in numbers:
            example = known.examples.get(number)
            if example is None:
                counts.skipped[known.reasons[number]] += 1
            else:
                counts.pairs += 1
                counts.uniform += number in known.even
                counts.truncated += example.cut
        return counts

    @staticmethod
    def _take(numbers: Sequence[int], joined: Sequence[Example | str], known: Sorted) -> None:
        for number, example in zip(numbers, joined, strict=True):
            if isinstance(example, Example):
                known.examples[number] = example
            else:
                known.reasons[number] = example


def first_pairs(config: TrainConfig, rows: int) -> int:
    """How many pairs at the beginning of a stream of so many rows are held out. Raises UsageError."""
    eval_split = parse_eval_split(config.eval_split)
    if isinstance(eval_split, float):
        raise UsageError(
            f"--eval-split {config.eval_split} is a share, which --streaming cannot draw; give a count, which takes "
            "the first pairs, or a split's name"
        )
    return heldout_count(eval_split, rows)
