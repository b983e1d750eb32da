"""Killed again and again and gone on with, a run ends in the bits of one that was left alone."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from tests.pipeline.train.conftest import World
from tests.pipeline.train.runs import same_weights
from twdpo.pipeline.train import TrainConfig, TrainProgress, TrainResult, train

BOTH = pytest.mark.parametrize("streaming", [False, True], ids=["resident", "streamed"])

#: A run that may kill one of its processes at a random time in what is left of it: at a step drawn from the next half,
#: and up to 50 ms later. A time in seconds would be over before it comes on a fast machine.
#: argv: configuration, seed or nothing.
SCRIPT = """
import json, os, random, signal, sys, threading
from twdpo.pipeline.train import TrainConfig, TrainProgress, train

class Kill(TrainProgress):
    chance = random.Random(int(sys.argv[2])) if len(sys.argv) > 2 else None
    step = total = at = None
    def start(self, task, total):
        if task == "training":
            self.total = total
    def advance(self, task, items=1):
        if task != "training" or self.chance is None:
            return
        if self.step is None:
            self.step, self.victim = items, self.chance.randrange(int(os.environ.get("WORLD_SIZE", "1")))
            self.at = self.step + self.chance.randint(2, max(2, (self.total - self.step) // 2))
            return
        done = self.step
        self.step += items
        if done < self.at <= self.step and self.victim == int(os.environ.get("RANK", "0")):
            timer = threading.Timer(self.chance.uniform(0, 0.05), os.kill, (os.getpid(), signal.SIGKILL))
            timer.daemon = True
            timer.start()

if __name__ == "__main__":
    train(TrainConfig(**json.loads(sys.argv[1])), Kill())
"""


class Killed(BaseException):
    """Nothing in the program catches this, as nothing can catch a SIGKILL."""


class KillAt(TrainProgress):
    """Ends the run in the middle of things, at its n-th step."""

    def __init__(self, steps: int) -> None:
        self._left = steps

    def advance(self, task: str, items: int = 1) -> None:
        """Count down."""
        self._left -= task == "training" and items > 0
        if self._left == 0:
            raise Killed


def run_config(world: World, name: str, streaming: bool, **changes: Any) -> TrainConfig:
    """39 steps, a checkpoint every third."""
    values: dict[str, Any] = {"batch_size": 4, "epochs": 3.0, "save_every": 3, "eval_every": 0, "shuffle_block": 16}
    return world.config(out=str(world.folder / name), streaming=streaming, **(values | changes))


@BOTH
def test_stopped_anywhere_it_ends_in_the_same_bits(world: World, streaming: bool) -> None:
    whole, parts = (run_config(world, name, streaming) for name in ("whole", "parts"))
    expected = train(whole)
    stops = random.Random(7)
    for _ in range(4):
        with pytest.raises(Killed):
            train(parts, KillAt(stops.randint(4, 9)))
    result = train(parts)
    assert result.resumed_at
    assert same_weights(Path(whole.out), Path(parts.out))

    def facts(result: TrainResult) -> tuple[Any, ...]:
        return result.steps, result.pairs, result.heldout, result.skipped, result.truncated

    assert facts(result) == facts(expected)


@BOTH
@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_killed_at_random_times_it_ends_in_the_same_bits(world: World, streaming: bool, processes: int) -> None:
    script = world.folder / "run.py"
    script.write_text(SCRIPT, "utf-8")
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)] if processes > 1 else []
    environment = os.environ | {"PYTHONPATH": str(Path.cwd()), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}

    def run(config: TrainConfig, *seed: str) -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, *launcher, str(script), json.dumps(asdict(config)), *seed]
        return subprocess.run(command, check=False, capture_output=True, env=environment)

    changes = {"batch_size": 5, "epochs": 5.0, "save_every": 2}
    whole, parts = (run_config(world, name, streaming, **changes) for name in ("whole", "parts"))
    done = run(whole)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    kills = 0
    for seed in range(4):
        killed = run(parts, str(seed))
        kills += killed.returncode != 0
        if processes == 1:
            assert killed.returncode in (0, -signal.SIGKILL), killed.stderr.decode()[-2000:]
        if killed.returncode == 0:
            break
    else:
        done = run(parts)
        assert done.returncode == 0, done.stderr.decode()[-2000:]
    assert kills >= 2
    assert same_weights(Path(whole.out), Path(parts.out))
