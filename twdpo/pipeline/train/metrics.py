"""Metrics of training and evaluation: sums over pairs, their means under TRL's names, and metrics.jsonl.

Not for: showing them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from twdpo.pipeline.train.loss import PairLosses
from twdpo.weights_cache.durable import storing, write_file

#: What is averaged over pairs, in the order of `metric_sums`. `rewards/*` are β Σ ℓ, the weighted ones β Σ w ℓ.
NAMES = (
    "loss",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "rewards/accuracies",
    "rewards/weighted_chosen",
    "rewards/weighted_rejected",
    "rewards/weighted_margins",
    "rewards/weighted_accuracies",
    "logps/chosen",
    "logps/rejected",
    "logps/weighted_chosen",
    "logps/weighted_rejected",
)

Record = dict[str, float]


def metric_sums(pairs: PairLosses) -> Tensor:
    """The sum of every metric over the pairs; float32[len(NAMES)], without a gradient."""
    columns = (
        pairs.losses,
        *_side_by_side(pairs.chosen_rewards, pairs.rejected_rewards),
        *_side_by_side(pairs.weighted_chosen_rewards, pairs.weighted_rejected_rewards),
        pairs.chosen_logps,
        pairs.rejected_logps,
        pairs.weighted_chosen_logps,
        pairs.weighted_rejected_logps,
    )
    return torch.stack([column.detach().float() for column in columns]).sum(-1)


def _side_by_side(chosen: Tensor, rejected: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return chosen, rejected, chosen - rejected, (chosen > rejected).float()


def means(sums: Tensor, pairs: int, prefix: str = "") -> Record:
    """The metrics of so many pairs, each name with `prefix`."""
    return {prefix + name: value / pairs for name, value in zip(NAMES, sums.tolist(), strict=True)}


@dataclass(slots=True, kw_only=True)
class Window:
    """What has come together since the last line of metrics."""

    sums: torch.Tensor
    pairs: int = 0
    tokens: int = 0
    seconds: float = 0.0
    rate: float = 0.0
    norm: float = 0.0

    @classmethod
    def empty(cls) -> Window:
        """Nothing yet."""
        return cls(sums=torch.zeros(len(NAMES), dtype=torch.float64))

    def add(self, sums: torch.Tensor, pairs: int, tokens: int, seconds: float, rate: float, norm: float) -> None:
        """Add one optimizer step."""
        self.sums += sums.cpu().double()
        self.pairs, self.tokens, self.seconds = self.pairs + pairs, self.tokens + tokens, self.seconds + seconds
        self.rate, self.norm = rate, norm

    def record(self) -> Record:
        """Means over pairs; learning rate and gradient norm are those of the last step."""
        return means(self.sums, self.pairs) | {
            "learning_rate": self.rate,
            "grad_norm": self.norm,
            "tokens_per_second": self.tokens / max(self.seconds, 1e-9),
        }

    def state(self) -> dict[str, Any]:
        """All of it as JSON types, exactly."""
        names = ("pairs", "tokens", "seconds", "rate", "norm")
        return {"sums": self.sums.tolist(), **{name: getattr(self, name) for name in names}}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Window:
        """Undo `state`."""
        return cls(**{**state, "sums": torch.tensor(state["sums"], dtype=torch.float64)})


class MetricsFile:
    """metrics.jsonl: one JSON object a line, appended as the run goes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def begin(self, step: int) -> list[Record]:
        """Keep the records up to `step`, drop the others, and return those kept. Raises StorageError."""
        kept = [record for record in self.read() if record.get("step", 0) <= step] if step else []
        write_file(self.path, "".join(map(_line, kept)).encode())
        return kept

    def add(self, record: Mapping[str, float]) -> None:
        """Append a record. Raises StorageError."""
        with storing(self.path), self.path.open("a", encoding="utf-8") as stream:
            stream.write(_line(record))

    def read(self) -> list[Record]:
        """All records; a last line torn by a crash is passed over."""
        records: list[Record] = []
        if self.path.exists():
            for line in self.path.read_text("utf-8").split("\n"):
                try:
                    records.append(json.loads(line))
                except json.JSONDecodeError:
                    continue
        return records


def _line(record: Mapping[str, float]) -> str:
    return json.dumps(record) + "\n"
