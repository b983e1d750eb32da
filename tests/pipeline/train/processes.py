"""Runs of several processes for the tests: as a command, with a fault built into some of the processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from twdpo.pipeline.train import TrainConfig

ROOT = Path(__file__).parents[3]

#: What a fault's code can use: `rank`, and the loop's class and module, where `step` is the number of steps done.
_FAULT = """\
import os, signal, time
rank = os.environ.get("RANK")
if rank is not None:
    from twdpo.pipeline.train import loop
    Loop = loop._Loop
    train_step, losses, save_checkpoint = Loop._train_step, Loop._losses, loop.save_checkpoint
"""


def environment(folder: Path, fault: str | None = None) -> dict[str, str]:
    """The environment of a run; `fault` is code that every worker runs when it starts."""
    paths = [str(ROOT)]
    if fault is not None:
        folder.mkdir(exist_ok=True)
        indented = "".join(f"    {line}\n" for line in fault.strip().split("\n"))
        (folder / "sitecustomize.py").write_text(_FAULT + indented, "utf-8")
        paths.insert(0, str(folder))
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}


def command(config: TrainConfig) -> list[str]:
    """`twdpo train` with this configuration."""
    flags = []
    for name, value in asdict(config).items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        elif value is not None:
            flags += [f"--{flag}", str(value)]
    return [sys.executable, "-m", "twdpo", "train", *flags]


def run(config: TrainConfig, folder: Path, fault: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run to its end."""
    return subprocess.run(
        command(config), check=False, capture_output=True, text=True, env=environment(folder, fault), timeout=300
    )


@contextmanager
def running(config: TrainConfig, folder: Path, fault: str | None = None) -> Iterator[subprocess.Popen[str]]:
    """A run in the background; it does not outlive the block."""
    process = subprocess.Popen(
        command(config), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(folder, fault)
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def complaints(stderr: str) -> list[str]:
    """The lines that are neither progress nor metrics."""
    known = ("reading pairs", "reference log-probs", "training", "step ", "stopping", "going on")
    return [line for line in stderr.splitlines() if line.strip() and not line.startswith(known)]
