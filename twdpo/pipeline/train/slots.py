"""The rows of a run's sources as one numbered sequence, which can be read from any number on.

Rows that stage one was not asked for are no part of it. Not for: what becomes of a row (`streamed.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from twdpo.errors import DataError, UsageError
from twdpo.pipeline.train.config import TrainConfig
from twdpo.pipeline.train.parts import Part, text_of
from twdpo.preferences import Pair, PairStream, Reject, draw_rows, load, parse_row
from twdpo.weights_cache import WeightsCache


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stretch:
    """Some rows of one source, by their numbers, which rise; source: a stream, or a cache that holds texts."""

    source: PairStream | WeightsCache
    rows: range | NDArray[np.int64]

    def read(self, start: int) -> Iterator[Pair | Reject]:
        """The rows from the `start`-th on."""
        first = int(self.rows[start])
        wanted = iter(self.rows[start:])
        number = next(wanted, None)
        if isinstance(self.source, WeightsCache):
            for place, row in enumerate(self.source.rows(first), first):
                yield text_of(row, place) or Reject(row=place, reason="the cache holds no text of this pair")
            return
        for place, raw in enumerate(self.source.rows_from(first), first):
            if number is None:
                return
            if place == number:
                yield parse_row(raw, place)
                number = next(wanted, None)


class Slots:
    """Rows numbered from 0 over all sources; reading on where the last reading ended opens no file again."""

    def __init__(self, stretches: Sequence[_Stretch], not_annotated: int = 0) -> None:
        self.not_annotated = not_annotated
        self._stretches = stretches
        self._items: Iterator[Pair | Reject] = iter(())
        self._at: int | None = None

    @classmethod
    def of(cls, config: TrainConfig, cache: WeightsCache, parts: Iterable[Part]) -> Slots:
        """The rows of `parts`. Raises UsageError where their number is not known and no --max-steps bounds it."""
        left = config.limit
        stretches, not_annotated = [], 0
        for part in parts:
            source = load(part.source) if part.source is not None else cache
            total = _count(config, source, None if part.heldout else left)
            rows = _asked(part, source, total) if part.asked and isinstance(source, PairStream) else range(total)
            not_annotated += total - len(rows)
            if not part.heldout and left is not None:
                left -= total
            if len(rows):
                stretches.append(_Stretch(source=source, rows=rows))
        return cls(stretches, not_annotated)

    def __len__(self) -> int:
        return sum(len(stretch.rows) for stretch in self._stretches)

    def again(self) -> Slots:
        """The same rows for another reader."""
        return Slots(self._stretches, self.not_annotated)

    def read(self, start: int, stop: int) -> list[Pair | Reject]:
        """The rows `start` to `stop`. Raises DataError where the sources hold fewer than they did at first."""
        if start != self._at:
            self._items = self._from(start)
        items = list(islice(self._items, stop - start))
        if len(items) < stop - start:
            raise DataError("the data set has become shorter since the run began; run again when nothing writes to it")
        self._at = stop
        return items

    def _from(self, start: int) -> Iterator[Pair | Reject]:
        for stretch in self._stretches:
            if start < len(stretch.rows):
                yield from stretch.read(start)
            start = max(0, start - len(stretch.rows))


def _count(config: TrainConfig, source: PairStream | WeightsCache, left: int | None) -> int:
    """How many rows of a source are read."""
    if isinstance(source, WeightsCache):
        return len(source) if left is None else min(len(source), left)
    total = source.total
    if total is None:
        if config.max_steps is None:
            raise UsageError(f"how many rows {source.source.name} has is not known beforehand; pass --max-steps")
        # No further than the run reads.
        most = config.max_steps * config.batch_size
        total = sum(1 for _ in islice(source.rows_from(0), most if left is None else min(most, left)))
    return total if left is None else min(total, left)


def _asked(part: Part, source: PairStream, total: int) -> range | NDArray[np.int64]:
    """The rows below `total` that stage one was asked for."""
    if all(seed is None for _, seed in part.asked):
        return range(min(total, max(limit for limit, _ in part.asked)))
    drawn = [np.fromiter(draw_rows(source, limit, seed), np.int64) for limit, seed in part.asked]
    rows = np.unique(np.concatenate(drawn))
    return rows[rows < total]
