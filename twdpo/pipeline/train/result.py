"""What a training run hands back. Not for: the curves, which are in metrics.jsonl."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """What a run did.

    out: the folder of the trained model. pairs, heldout: trained on, and held out. truncated: of those, cut to the
    maximal length. uniform: trained with even weights for want of a row. skipped: reason → pairs. before, after:
    evaluation metrics (`eval_loss`, …), empty without held-out pairs. resumed_at: the step gone on from, or None.
    best_step: the step whose model is in `best/`, None where the last is the best. pushed: the model's address on the
    hub. loss: its name. seconds: of each part (pairs, reference, training, saving).
    """

    out: Path
    model: str
    steps: int
    pairs: int
    heldout: int
    truncated: int = 0
    uniform: int = 0
    resumed_at: int | None = None
    best_step: int | None = None
    pushed: str | None = None
    loss: str = "twdpo"
    skipped: Mapping[str, int] = field(default_factory=dict)
    before: Mapping[str, float] = field(default_factory=dict)
    after: Mapping[str, float] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)


class Clock:
    """Seconds of each part of a run."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """The part `name` ends now."""
        now = time.perf_counter()
        self.laps[name], self._last = now - self._last, now
