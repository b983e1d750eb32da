"""What a training run tells whoever watches it. Not for: showing it; the command line has its own subclass."""

from __future__ import annotations

from collections.abc import Mapping


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
