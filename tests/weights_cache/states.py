"""What a cache says, to the bit, in a form that compares with ==. Not for: how it was brought about."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.weights_cache.fault_server import Job, Outcome
from twdpo.weights_cache import Manifest, WeightRow, WeightsCache, read_rejects, verify

NAME = re.compile(r"part-\d{8}T\d{12}Z-[0-9a-f]{16}\.parquet")


@dataclass(frozen=True, slots=True)
class State:
    """All that a cache says, but for how its rows are spread over shards; `names`: its files, shards apart."""

    rows: dict[str, tuple[object, ...]]
    rejects: list[tuple[object, ...]]
    counts: dict[str, int]
    names: list[str]


@dataclass(frozen=True, slots=True)
class Whole:
    """An undisturbed run: the job without its folder, how it went, and what it left."""

    job: Job
    outcome: Outcome
    state: State


def exact(row: WeightRow) -> tuple[object, ...]:
    """All that a row says, to the bit, types included."""
    arrays = [
        (values.dtype.str, values.tobytes())
        for side in (row.chosen, row.rejected)
        for values in (side.starts, side.ends, *side.weights.values())
    ]
    shares = (row.attention_share_chosen, row.attention_share_rejected)
    agreement = (row.order_agreement_chosen, row.order_agreement_rejected)
    floats = np.array([row.judge_prob_cr, row.judge_prob_rc, *shares, *agreement], dtype=np.float32).tobytes()
    texts = (row.prompt, row.chosen_text, row.rejected_text)
    return row.example_hash, arrays, list(row.chosen.weights), floats, row.truncated, texts


def state(folder: Path) -> State:
    """What the cache in `folder` says."""
    with WeightsCache.open(folder) as cache:
        rows = {row.example_hash: exact(row) for row in cache.rows()}
    rejects = [(reject.row, reject.example_hash, reject.reason) for reject in read_rejects(folder)]
    counts = {name: count for name, count in Manifest.load(folder).counts.items() if name != "shards"}
    names = [str(path.relative_to(folder)) for path in folder.rglob("*") if not NAME.fullmatch(path.name)]
    return State(rows, sorted(rejects, key=str), counts, sorted(names))


def shards(folder: Path) -> dict[str, int]:
    """The finished shards and their sizes."""
    return {path.name: path.stat().st_size for path in folder.glob("data/*.parquet")}


def strays(folder: Path) -> list[Path]:
    """The temporary files, wherever they lie."""
    return list(folder.rglob(".tmp-*"))


def assert_state(folder: Path, expected: State, note: object) -> None:
    """The folder is sound, holds no stray, and says what is expected; `note` is shown with a failure."""
    report = verify(folder)
    assert (report.problems, report.strays, strays(folder)) == ((), 0, []), note
    assert state(folder) == expected, note


def assert_weights_agree(folder: Path, expected: Path) -> None:
    """The same pairs with the same weights, to how they are rounded: batches differ, and the last bits with them."""
    with WeightsCache.open(folder) as ours, WeightsCache.open(expected) as theirs:
        rows = {row.example_hash: row for row in theirs.rows()}
        assert sorted(row.example_hash for row in ours.rows()) == sorted(rows)
        for row in ours.rows():
            other = rows[row.example_hash]
            for side, its in ((row.chosen, other.chosen), (row.rejected, other.rejected)):
                assert (side.starts.tolist(), side.ends.tolist()) == (its.starts.tolist(), its.ends.tolist())
                for layer, weights in side.weights.items():
                    np.testing.assert_allclose(weights, its.weights[layer], rtol=2**-11)
