"""Which rows of a data set a run asks for. Not for: which of them need judging (`blocks.py`)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from twdpo.errors import DataError
from twdpo.pipeline.annotate.config import AnnotateConfig
from twdpo.preferences import Pair, PairStream, Reject, draw_rows, load, resolve


class Selection:
    """The rows of a stream that a run asks for, in the stream's order; iterating again starts again."""

    def __init__(self, stream: PairStream, limit: int | None, seed: int | None) -> None:
        self._stream = stream
        self._rows = None if limit is None else draw_rows(stream, limit, seed)
        self.total = stream.total
        if self._rows is not None:
            self.total = len(self._rows) if stream.total is None else min(len(self._rows), stream.total)

    @classmethod
    def of(cls, config: AnnotateConfig) -> Selection:
        """What `config` asks for. Raises DataError where that is nothing, and what opening a data set raises."""
        stream = load(resolve(config.dataset, config.split, config.dataset_revision))
        rows = cls(stream, config.limit, config.seed)
        if next(iter(rows), None) is None:
            raise DataError(f"{config.dataset} holds no rows; pass a data set that has some")
        return rows

    def describe(self, config: AnnotateConfig) -> dict[str, Any]:
        """The data set for the manifest, with what of it was asked for: stage two then knows which pairs must be there.

        The part of `--shard` is not in it: all parts together are asked for what one run would be.
        """
        described = asdict(self._stream.source) | {"limit": config.limit, "seed": config.seed}
        return {key: value for key, value in described.items() if value is not None}

    def __iter__(self) -> Iterator[Pair | Reject]:
        if self._rows is None:
            yield from self._stream
            return
        last = max(self._rows)
        for row, item in enumerate(self._stream):
            if row in self._rows:
                yield item
            if row == last:
                return
