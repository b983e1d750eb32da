"""What a training run tells whoever watches it, and how long it will take.

Not for: showing it; the command line has its own subclass.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping


class TrainProgress:
    """Receives the course of a run; this one keeps silent. Subclasses override what they show.

    The tasks are, in order: "pairs", "reference", then "training" with "evaluation" in between.
    """

    def start(self, task: str, total: int | None) -> None:
        """A task begins; `total` is how many items it has, None where that is not known."""

    def advance(self, task: str, items: int = 1) -> None:
        """So many items of a task are done."""

    def finish(self, task: str) -> None:
        """A task is done."""

    def record(self, metrics: Mapping[str, float]) -> None:
        """A line of metrics.jsonl was written."""

    def note(self, text: str) -> None:
        """Something that a person should know, in one line."""


class Pace:
    """How long a task of `total` items still takes, by the pace since the second report.

    The first one says what an interrupted run did before; what lies between the two holds all that happens once.
    """

    def __init__(self, total: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.total, self.done = total, 0
        self._clock, self._now, self._reports = clock, 0.0, 0
        self._since: tuple[int, float] | None = None

    def advance(self, items: int) -> None:
        """So many items more are done."""
        self.done += items
        self._reports += 1
        self._now = self._clock()
        if self._reports == 2:
            self._since = (self.done, self._now)

    def left(self) -> float | None:
        """Seconds to the end, None as long as there is nothing to tell it by."""
        if self._since is None or self.done == self._since[0]:
            return None
        done, since = self._since
        return (self.total - self.done) * (self._now - since) / (self.done - done)
