"""Which checkpoints stay: the last ones, and the one with the best held-out loss.

Evaluations come after the checkpoint of their step. So what is the best is looked up each time a checkpoint has been
written; until then the last one is kept anyway. Not for: writing checkpoints (`checkpoint.py`).
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from twdpo.pipeline.train.checkpoint import complete_checkpoints
from twdpo.pipeline.train.metrics import Record


@dataclass(frozen=True, slots=True, kw_only=True)
class Best:
    """A checkpoint with a lower held-out loss than the last model's."""

    step: int
    checkpoint: Path


def best_step(evaluations: Mapping[int, Record], steps: Iterable[int]) -> int | None:
    """The evaluated one of `steps` with the lowest held-out loss, of equals the latest; None where none is.

    evaluations: step → record with `eval_loss`.
    """
    known = {step: evaluations[step]["eval_loss"] for step in steps if step in evaluations}
    finite = [step for step, loss in known.items() if math.isfinite(loss)]
    return min(finite, key=lambda step: (known[step], -step), default=None)


def drop_old(out: Path, keep: int, evaluations: Mapping[int, Record]) -> None:
    """Remove the checkpoints in `out` but for the last `keep` and the best."""
    found = complete_checkpoints(out)
    best = best_step(evaluations, found)
    for step in sorted(found)[:-keep]:
        if step != best:
            shutil.rmtree(found[step], ignore_errors=True)


def best_before(out: Path, last: int, evaluations: Mapping[int, Record]) -> Best | None:
    """The best checkpoint of a finished run; None where the model after step `last` is better, or nothing is known."""
    found = complete_checkpoints(out)
    best = best_step(evaluations, {*found, last})
    return None if best is None or best == last else Best(step=best, checkpoint=found[best])
