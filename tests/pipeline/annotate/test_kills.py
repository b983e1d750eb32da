"""Kills of stage one with the real small model: what is there when it has been gone on with is what it always gives."""

from __future__ import annotations

import json
import random
import secrets
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.preferences.processes import environment
from tests.weights_cache.fault_server import ROOT, Job, Server
from tests.weights_cache.states import assert_state, shards, state, strays
from twdpo.weights_cache import WeightsCache, read_rejects, verify

pytestmark = [pytest.mark.model, pytest.mark.slow]

PAIRS = 8
KILLS = 8
#: The command as a person types it, but for small shards.
COMMAND = """
import sys
from tests.weights_cache.faults import shrink
from twdpo.cli import main
shrink(2, 4)
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Short questions of one kind, so that a pair takes a second; one has an empty answer."""
    rows = [
        {"prompt": f"What is {i} and {i + 1}?", "chosen": f"{i} and {i + 1} is {2 * i + 1}. 👍", "rejected": f"{i}."}
        for i in range(PAIRS)
    ]
    rows[3]["rejected"] = ""
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_killed_at_random_instants(embedded_model: str, pairs: Path, tmp_path: Path) -> None:
    """SIGKILLs over the length of a run, the model in memory; to the bit, as each prompt is a batch of its own."""
    seed = secrets.randbits(32)
    rng = random.Random(seed)
    with Server(judge=embedded_model) as server:
        job = Job(dataset=str(pairs), out=str(tmp_path / "whole"))
        (whole,) = server.run(job)
        assert whole.status == 0, whole.message
        expected = state(tmp_path / "whole")
        assert (len(expected.rows), len(expected.rejects)) == (PAIRS - 1, 1)
        killed = begun = number = 0
        while killed < KILLS:
            folder, number = tmp_path / str(number), number + 1
            finished: dict[str, int] = {}
            while killed < KILLS:
                kill = (rng.uniform(0, whole.seconds), "kill")
                (outcome,) = server.run(replace(job, out=str(folder), events=(kill,)))
                if outcome.status == 0:
                    break
                assert outcome.status == -signal.SIGKILL, (seed, outcome.message)
                assert finished.items() <= shards(folder).items(), seed
                finished = shards(folder)
                killed += 1
                begun += bool(finished)
            assert server.run(replace(job, out=str(folder)))[0].status == 0, seed
            assert_state(folder, expected, seed)
        assert begun >= KILLS / 8


def test_the_command_killed_and_typed_again(embedded_model: str, pairs: Path, tmp_path: Path) -> None:
    """Batches depend on where a run starts, and the last bits on the batches: weights agree as they are rounded."""
    rng = random.Random(seed := secrets.randbits(32))
    out = tmp_path / "killed"
    for wanted in (1, 2):
        process = start(pairs, out, embedded_model)
        while len(shards(out)) < wanted and process.poll() is None:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 1))
        process.kill()
        _, errors = process.communicate()
        assert process.returncode == -signal.SIGKILL, (seed, errors)
        assert verify(out).problems == (), seed
    for folder in (out, tmp_path / "whole"):
        process = start(pairs, folder, embedded_model)
        _, errors = process.communicate()
        assert process.returncode == 0, (seed, errors)
        assert (verify(folder).problems, strays(folder)) == ((), []), seed
        assert [reject.row for reject in read_rejects(folder)] == [3]
    with WeightsCache.open(out) as ours, WeightsCache.open(tmp_path / "whole") as theirs:
        expected = {row.example_hash: row for row in theirs.rows()}
        assert len(ours) == len(expected) == PAIRS - 1
        for row in ours.rows():
            other = expected[row.example_hash]
            for side, its in ((row.chosen, other.chosen), (row.rejected, other.rejected)):
                assert (side.starts.tolist(), side.ends.tolist()) == (its.starts.tolist(), its.ends.tolist())
                for layer, weights in side.weights.items():
                    np.testing.assert_allclose(weights, its.weights[layer], rtol=2**-10, err_msg=str(seed))
            np.testing.assert_allclose(row.judge_prob_cr, other.judge_prob_cr, atol=1e-5, err_msg=str(seed))


def start(dataset: Path, out: Path, model: str) -> subprocess.Popen[str]:
    options = {"dataset": dataset, "out": out, "model": model, "device": "cpu", "dtype": "float32"}
    arguments = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, "annotate", *arguments],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(HF_HUB_OFFLINE="1"),
    )
