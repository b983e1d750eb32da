"""Another evaluation, from which one is compared: reading it, and what of the two can be compared.

Not for: the differences themselves (`figures.py`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from twdpo.errors import DataError, UsageError
from twdpo.evaluate.figures import PairFigures
from twdpo.evaluate.result import FILE, EvalResult
from twdpo.pipeline.train.data import Example

#: What may differ and is said; only the first two decide every figure.
_SAID = ("reference", "dtype", "weights", "weight_rules")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Evaluation:
    """What is needed of an evaluation that was written. place: as it was named. The others: as in `EvalResult`."""

    place: str
    figures: PairFigures
    beta: float | None
    reference: str
    dtype: str
    max_length: int
    weights: str | None
    weight_rules: Mapping[str, Any] | None

    def check(self, examples: Sequence[Example], max_length: int) -> None:
        """Refuse other pairs, or other tokens of them: sums over them cannot be compared. Raises UsageError."""
        if self.figures.hashes != tuple(example.example_hash for example in examples):
            raise UsageError(f"--against {self.place} was made on other pairs; evaluate both models on the same ones")
        counts = (self.figures.chosen_tokens.tolist(), self.figures.rejected_tokens.tolist())
        ours = ([len(e.chosen.weights) for e in examples], [len(e.rejected.weights) for e in examples])
        if counts != ours:
            why = (
                f"cut at --max-length {self.max_length}, these at {max_length}; evaluate both at the same one"
                if self.max_length != max_length
                else "by another tokenizer or chat template"
            )
            raise UsageError(f"--against {self.place} was made on other tokens of the same pairs: {why}")

    def unlike(self, result: EvalResult) -> dict[str, tuple[str, str]]:
        """What differs from `result` beside the model: name → there and here."""
        found = {name: (_shown(getattr(self, name)), _shown(getattr(result, name))) for name in _SAID}
        return {name: both for name, both in found.items() if both[0] != both[1]}

    def comparable(self, rules: Mapping[str, Any] | None) -> PairFigures:
        """The figures, without weighted ones where the weights are others, or were read by other rules."""
        if self.weight_rules == rules:
            return self.figures
        return replace(self.figures, weighted_chosen_ratios=None, weighted_rejected_ratios=None)


def read_evaluation(place: str) -> Evaluation:
    """An evaluation, from its file or the folder of its model.

    Raises UsageError where there is none, and DataError where it is damaged.
    """
    path = Path(place).expanduser()
    path = path / FILE if path.is_dir() else path
    try:
        content = json.loads(path.read_text("utf-8"))
        names = ("beta", "reference", "dtype", "max_length", "weights", "weight_rules")
        about = {name: content[name] for name in names}
        return Evaluation(place=place, figures=PairFigures.from_plain(content["per_pair"]), **about)
    except FileNotFoundError:
        raise UsageError(f"--against {place}: no such evaluation; run twdpo eval on that model first") from None
    except OSError as error:
        raise UsageError(f"--against {place}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{path} is no evaluation of this twdpo eval, or is damaged; run it again") from None


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {value[name]}" for name in sorted(value))
    return "none" if value is None else str(value)
