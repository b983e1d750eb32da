"""What the processes of a run tell each other about their pairs.

Not for: gradients, which accelerate exchanges (`loop.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from accelerate import Accelerator  # type: ignore[import-untyped,unused-ignore]

from twdpo.errors import TwdpoError

Item = TypeVar("Item")


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


@dataclass(frozen=True, slots=True)
class Accelerated:
    """The processes that accelerate knows of."""

    accelerator: Accelerator

    @property
    def rank(self) -> int:
        """Which of them this is."""
        return int(self.accelerator.process_index)

    @property
    def count(self) -> int:
        """How many there are."""
        return int(self.accelerator.num_processes)

    def collect(self, items: Sequence[Item]) -> list[Item]:
        """The items of all processes, in the order of their ranks."""
        if self.count == 1:
            return list(items)
        import torch.distributed

        parts: list[Any] = [None] * self.count
        torch.distributed.all_gather_object(parts, list(items))
        return [item for part in parts for item in part]


@contextmanager
def in_accord(processes: Processes) -> Iterator[None]:
    """A block that one process may fail in alone: after it, all go on, or all raise what the first of them raised.

    The block must not exchange anything itself.
    """
    failed: list[TwdpoError] = []
    try:
        yield
    except TwdpoError as error:
        failed = [error]
    failures = processes.collect(failed)
    if failures:
        raise failed[0] if failed else failures[0]
