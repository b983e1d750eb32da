"""Rows on their way to the engine, a block at a time: what needs judging, and what became of the rest.

Not for: judging them (`judging.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from twdpo.pipeline.annotate.prompt import PromptError
from twdpo.pipeline.annotate.shard import Shard
from twdpo.pipeline.annotate.sources.base import WeightSource
from twdpo.preferences import Pair, Reject

#: Pairs that are tokenized together and handed to the engine at once: so many at least, and more where it wants more.
WINDOW = 32
#: Rows in a block at the most, whatever becomes of them, and pairs in a window.
_ROWS_MOST, _PAIRS_MOST = 1024, 1024


@dataclass(slots=True, kw_only=True)
class Block:
    """Some rows: pairs to judge, once prepared each with its item for the weight source; rejects; the rest."""

    pairs: list[Pair] = field(default_factory=list)
    items: list[Any] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)
    cached: int = 0
    duplicates: int = 0
    elsewhere: int = 0

    @property
    def rows(self) -> int:
        """All rows that are accounted for here."""
        return len(self.pairs) + len(self.rejects) + self.cached + self.duplicates + self.elsewhere


def blocks(
    rows: Iterable[Pair | Reject], *, size: int, done: Collection[str], shard: Shard | None = None
) -> Iterator[Block]:
    """`rows` in blocks of about `size` pairs to judge: those of `shard` that are not `done` and were not met before."""
    met: set[str] = set()
    block = Block()
    for row in rows:
        _sort(row, block, done, shard, met)
        if len(block.pairs) >= size or block.rows >= _ROWS_MOST:
            yield block
            block = Block()
    if block.rows:
        yield block


def _sort(row: Pair | Reject, block: Block, done: Collection[str], shard: Shard | None, met: set[str]) -> None:
    """Put a row where it belongs."""
    key = row.example_hash
    if shard is not None and not shard.takes(key, row.row):
        block.elsewhere += 1
    elif isinstance(row, Reject):
        block.rejects.append(row)
    elif row.example_hash in met:
        block.duplicates += 1
    else:
        met.add(row.example_hash)
        if row.example_hash in done:
            block.cached += 1
        else:
            block.pairs.append(row)


def windows(blocks: Iterable[Block], source: WeightSource[Any, Any], *, least: int, enough: int) -> Iterator[Block]:
    """Blocks prepared and put together: at least `least` pairs a window, and more while they have not `enough` tokens.

    A window without pairs says what became of rows that need no judging.
    """
    window, tokens = Block(), 0
    for block in blocks:
        window.rejects += block.rejects
        window.cached += block.cached
        window.duplicates += block.duplicates
        window.elsewhere += block.elsewhere
        for pair in block.pairs:
            try:
                item = source.prepare(pair)
            except PromptError as error:
                window.rejects.append(Reject(row=pair.row, reason=str(error), example_hash=pair.example_hash))
                continue
            window.pairs.append(pair)
            window.items.append(item)
            tokens += source.size(item)
            if len(window.pairs) >= least and (tokens >= enough or len(window.pairs) >= _PAIRS_MOST):
                yield window
                window, tokens = Block(), 0
        if window.rows and not window.pairs:
            yield window
            window = Block()
    if window.rows:
        yield window
