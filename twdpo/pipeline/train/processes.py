"""The processes of a run as a feed sees them: which one this is, what all have, and failing together.

Not for: models and gradients (`ranks.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, TypeVar

from twdpo.errors import TwdpoError

Item = TypeVar("Item")
Failure = TypeVar("Failure", bound=TwdpoError)


class Processes(Protocol):
    """The processes of a run as one of them sees them: it is number `rank` of `count`."""

    @property
    def rank(self) -> int:
        """Which of them this is."""

    @property
    def count(self) -> int:
        """How many there are."""

    def collect(self, items: Sequence[Item]) -> list[Item]:
        """The items of all processes, in the order of their ranks; all must call this together."""


class Alone:
    """One process by itself."""

    rank, count = 0, 1

    def collect(self, items: Sequence[Item]) -> list[Item]:
        """The items."""
        return list(items)


@contextmanager
def in_accord(processes: Processes) -> Iterator[None]:
    """A block that one process may fail in alone: after it all go on, or all raise the first one's error.

    The block must not exchange anything itself.
    """
    failed: TwdpoError | None = None
    try:
        yield
    except TwdpoError as error:
        if processes.count == 1:
            raise
        failed = error
    if processes.count > 1 and (failures := processes.collect([failed] if failed else [])):
        raise together(failures[0]) from failed


def together(error: Failure) -> Failure:
    """Mark an error that every process raises, so that one of them reports it."""
    error.together = True
    return error
