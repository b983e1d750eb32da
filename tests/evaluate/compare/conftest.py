"""A comparison of a tiny model that has been run to its end, for tests of its parts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.evaluate.compare.world import PAIRS, settings
from tests.fixtures.tiny_models import save_tiny
from twdpo.evaluate.compare import CompareConfig, Comparison, compare


@pytest.fixture(scope="package")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, and pairs."""
    folder = tmp_path_factory.mktemp("compare")
    save_tiny(folder / "model", "llama")
    (folder / "template.txt").write_text("{question} A: {answer_a} B: {answer_b} The better one?")
    rows = [
        {"prompt": f"What is {i} plus {i}?", "chosen": f"It is {2 * i}, of course.", "rejected": f"Maybe {i}1 or so."}
        for i in range(PAIRS)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="package", autouse=True)
def one_thread_in_all() -> Iterator[None]:
    """Runs of this package are compared to the last bit, which the number of threads decides, too."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="package")
def done(world: Path, one_thread_in_all: None) -> Comparison:
    return compare(CompareConfig(**settings(world)))
