"""What a step that cannot be used says: which pairs are to blame, and what is kept.

Not for: stopping the processes of a run together (`ranks.py`, `loop.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from twdpo.errors import TrainingError
from twdpo.pipeline.train.checkpoint import last_checkpoint
from twdpo.pipeline.train.data import Example


def not_finite(losses: Tensor, group: Sequence[Example]) -> list[Example]:
    """The pairs of a micro-batch whose loss is NaN or infinite."""
    finite = torch.isfinite(losses.detach()).tolist()
    return [example for example, good in zip(group, finite, strict=True) if not good]


def unlearnable(what: str, examples: Sequence[Example], out: str) -> TrainingError:
    """The error that says what is wrong, with which pairs, and where the run in `out` can go on."""
    rows = ", ".join(f"row {e.row} ({e.example_hash})" for e in examples[:3])
    more = f" and {len(examples) - 3} more" if len(examples) > 3 else ""
    last = last_checkpoint(Path(out))
    kept = f"{last} is kept" if last else "no checkpoint was written yet"
    return TrainingError(f"{what} with {rows}{more}; {kept}; try a smaller --learning-rate or --dtype float32")
