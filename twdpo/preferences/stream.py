"""A source as a stream of pairs and rejects.

Not for: what a name stands for (`sources.py`), how files are read (`files.py`), what a row means (`formats.py`).
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator
from dataclasses import replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from twdpo.errors import UsageError
from twdpo.preferences.formats import Reject, parse_row
from twdpo.preferences.pair import Pair
from twdpo.preferences.sources import Source

if TYPE_CHECKING:
    from twdpo.preferences.rows import Row, Rows


class PairStream:
    """Every row of a source, in its order, as a `Pair` or a `Reject`; iterating again starts again.

    `source` has the split (and, for the hub, the commit) that is read. Memory does not grow with the source.
    Iterating raises DataError where the source turns out to be broken further down.
    """

    def __init__(self, source: Source, rows: Rows, limit: int | None) -> None:
        self.source = source
        self._rows = rows
        self._limit = limit

    def __iter__(self) -> Iterator[Pair | Reject]:
        return (item for _, item in self.with_rows())

    def with_rows(self, extra: Collection[str] = ()) -> Iterator[tuple[Row, Pair | Reject]]:
        """Every pair or reject with the row that it was made of, in which the columns named in `extra` are there too.

        A column that a file does not have is left out of its rows.
        """
        for index, row in enumerate(islice(self._rows.read(extra), self._limit)):
            yield row, parse_row(row, index)

    def rows_from(self, start: int) -> Iterator[Row]:
        """The raw rows from number `start` on, for `parse_row`; those before are passed over without being parsed."""
        left = None if self._limit is None else max(0, self._limit - start)
        return islice(self._rows.read((), start), left)

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of all columns (of the first row, where rows may differ), also of those that are not read."""
        return self._rows.columns or ()

    @cached_property
    def total(self) -> int | None:
        """How many rows there are, usable or not, within the limit; None where that is not known beforehand."""
        count = self._rows.count()
        return count if count is None or self._limit is None else min(count, self._limit)


def load(source: Source, *, limit: int | None = None) -> PairStream:
    """Open `source` and check its columns; of its rows, the first `limit` are read.

    Raises DataError where it cannot be read or holds no preference pairs, HubUnavailable (a DataError) where it is on
    the hub and that does not answer, and UsageError for a limit below 1.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"--limit {limit}: give at least 1")
    if source.kind == "hub":
        from twdpo.preferences.hub import open_hub

        rows, source = open_hub(source)
        return PairStream(source, rows, limit)
    from twdpo.preferences.files import open_demo, open_path

    opened = open_demo(source.split) if source.kind == "demo" else open_path(Path(source.location), source.split)
    rows, split = opened
    return PairStream(replace(source, split=split), rows, limit)


def draw_rows(stream: PairStream, limit: int, seed: int | None) -> Collection[int]:
    """The rows that a run of `limit` pairs takes: the first, or as many drawn at random with `seed`.

    The same stream, limit and seed give the same rows, so that stage two knows what stage one was asked to do.
    """
    if seed is None:
        return range(limit)
    count = stream.total if stream.total is not None else sum(1 for _ in stream)
    return frozenset(random.Random(seed).sample(range(count), min(limit, count)))
