"""What the tests of faults share: a program that runs stage one, and runs of it that nothing disturbed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.weights_cache.fault_server import Job, Server
from tests.weights_cache.states import Whole, state

#: Rows of the data set, of which some are rejected, one is met twice, and some are cut to the judge's length.
ROWS = 56
#: As many rows make a run that is short, yet has more than one shard and a reject.
FEW = 7


@pytest.fixture(scope="session")
def faults() -> Iterator[Server]:
    """The program that runs stage one and disturbs it."""
    with Server() as server:
        yield server


@pytest.fixture(scope="session")
def pairs_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of ROWS pairs."""
    rows = [
        {
            "prompt": f"question {i}",
            "chosen": f"good answer {i} " * (60 if i % 8 == 5 else 1 + i % 4),
            "rejected": "bad",
        }
        for i in range(ROWS - 1)
    ]
    for i in range(3, ROWS - 1, 9):
        rows[i]["chosen"] = " "
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[0]]))
    return path


def _undisturbed(server: Server, job: Job, folder: Path) -> Whole:
    outcomes = [server.run(replace(job, out=str(folder / str(i))))[0] for i in range(3)]
    assert [outcome.status for outcome in outcomes] == [0, 0, 0], outcomes
    found = state(folder / "0")
    assert found.counts["pairs"] == len(found.rows) > 0
    assert found.counts["rejected"] == len(found.rejects) > 0
    assert found.counts["truncated"] > 0
    return Whole(job, sorted(outcomes, key=lambda outcome: outcome.seconds)[1], found)


@pytest.fixture(scope="session")
def whole(faults: Server, pairs_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """The undisturbed run over all pairs."""
    return _undisturbed(faults, Job(dataset=str(pairs_file), out="", slow=0.005), tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="session")
def brief(faults: Server, pairs_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """The undisturbed run over a few pairs."""
    return _undisturbed(faults, Job(dataset=str(pairs_file), out="", limit=FEW), tmp_path_factory.mktemp("brief"))
