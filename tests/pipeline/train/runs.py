"""What tests of whole runs share: stopping them, and comparing what they leave behind."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.pipeline.train.conftest import World
from twdpo.pipeline.train import TrainProgress
from twdpo.pipeline.train.metrics import MetricsFile, Record

#: What time decides in a run's metrics.
TIMES = ("tokens_per_second", "eval_seconds")


class StopAt(TrainProgress):
    """Presses Ctrl-C, as the operating system does, at a task's n-th advance; keeps the notes."""

    def __init__(self, task: str, times: int, number: int = signal.SIGINT) -> None:
        self.notes: list[str] = []
        self._task, self._left, self._number = task, times, number

    def advance(self, task: str, items: int = 1) -> None:
        """Count down."""
        if task == self._task and items:
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), self._number)

    def note(self, text: str) -> None:
        """Keep."""
        self.notes.append(text)


def out_of(world: World, name: str) -> str:
    """An output folder of its own."""
    return str(world.folder / name)


def records(out: Path) -> list[Record]:
    """The metrics of a run, without what time decides."""
    return [{k: v for k, v in r.items() if k not in TIMES} for r in MetricsFile(out / "metrics.jsonl").read()]


def weights_of(out: Path) -> Mapping[str, torch.Tensor]:
    """The parameters of a finished run."""
    return load_file(out / "model.safetensors")


def same_tensors(here: Mapping[str, torch.Tensor], there: Mapping[str, torch.Tensor]) -> bool:
    """Bit for bit."""
    return here.keys() == there.keys() and all(torch.equal(here[name], there[name]) for name in here)


def same_weights(a: Path, b: Path) -> bool:
    """Whether two runs ended in the same parameters."""
    return same_tensors(weights_of(a), weights_of(b))
