"""One of n parts of a data set, for runs side by side that know nothing of each other.

A pair's part follows from its text: duplicates fall together, and a new order of the rows changes nothing. Not for:
which rows a run asks for in the first place (`selection.py`), or the cache's files, which are called shards as well.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from twdpo.errors import UsageError

#: Hex digits of the hash that decide; 64 bits leave no part larger than another.
_DIGITS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """Part `index` (from 0) of `count`."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """What `--shard` was given, such as 0/3. Raises UsageError."""
        match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text.strip(), re.ASCII)
        if match is None:
            raise UsageError(f"--shard {text!r} is not understood; give which part of how many, from 0: 0/3, 1/3, 2/3")
        index, count = int(match[1]), int(match[2])
        if index >= count:
            last = f"{count - 1}/{count}" if count else "0/1"
            raise UsageError(f"--shard {text}: there is no such part; parts are counted from 0, so the last is {last}")
        return cls(index=index, count=count)

    def takes(self, example_hash: str | None, row: int) -> bool:
        """Whether a row is of this part; one that made no pair goes by its number."""
        number = row if example_hash is None else int(example_hash[:_DIGITS], 16)
        return number % self.count == self.index

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"
