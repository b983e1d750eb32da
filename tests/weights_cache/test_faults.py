"""Runs that are killed, interrupted or side by side: the cache is that of an undisturbed run.

Instants are drawn at random, anew each time; the seed is in the message of whatever fails. The tests marked slow draw
many more. What was met is printed: pytest -rP shows it.
"""

from __future__ import annotations

import os
import random
import re
import secrets
import shutil
import signal
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.weights_cache.fault_server import Server
from tests.weights_cache.samples import RECIPE, make_row
from tests.weights_cache.states import Whole, assert_state, exact, shards, strays
from twdpo.weights_cache import CacheWriter, WeightsCache, read_rejects, verify


def many(some: int, lots: int) -> pytest.MarkDecorator:
    """So many tries by default, and so many where there is time."""
    return pytest.mark.parametrize("tries", [some, pytest.param(lots, marks=pytest.mark.slow)])


def test_the_library_reads_what_pyarrow_reads(faults: Server, brief: Whole, tmp_path: Path) -> None:
    """An oracle that shares no code with the reader: the values that the other tests compare are those in the files."""
    faults.run(replace(brief.job, out=str(tmp_path / "cache")))
    rows = {row["example_hash"]: row for row in pq.read_table(tmp_path / "cache" / "data").to_pylist()}
    assert rows.keys() == brief.state.rows.keys()
    with WeightsCache.open(tmp_path / "cache") as cache:
        for row in cache.rows():
            plain = rows[row.example_hash]
            for name, side in (("chosen", row.chosen), ("rejected", row.rejected)):
                assert (side.starts.tolist(), side.ends.tolist()) == (plain[f"{name}_starts"], plain[f"{name}_ends"])
                for layer, weights in side.weights.items():
                    assert weights.tolist() == plain[f"{name}_weights_{layer}"]
            assert (row.judge_prob_cr, row.truncated) == (plain["judge_prob_cr"], plain["truncated"])


@many(30, 240)
def test_killed_at_random_instants(faults: Server, whole: Whole, tmp_path: Path, tries: int) -> None:
    """SIGKILLs at instants drawn evenly over the length of a run, resumed and killed again until a run gets through."""
    seed = secrets.randbits(32)
    rng = random.Random(seed)
    met: Counter[str] = Counter()
    caches = 0
    while sum(met.values()) < tries:
        folder = tmp_path / str(caches)
        finished: dict[str, int] = {}
        for _ in range(1000):
            kill = (rng.uniform(0, whole.outcome.seconds), "kill")
            (outcome,) = faults.run(replace(whole.job, out=str(folder), events=(kill,)))
            if outcome.status == 0:
                break
            assert outcome.status == -signal.SIGKILL, (seed, outcome.message)
            met[_where(folder, whole)] += 1
            # What was seen finished stays as it is.
            assert finished.items() <= shards(folder).items(), seed
            finished = shards(folder)
            if (folder / "manifest.json").exists() and rng.random() < 0.2:
                assert verify(folder).problems == (), seed
        assert_state(folder, whole.state, seed)
        shutil.rmtree(folder)
        caches += 1
    print(f"{sum(met.values())} kills, {caches} caches: {dict(met)}")
    assert met["within a write"] >= tries / 40
    assert met["within a write"] + met["between shards"] >= tries / 4


def _where(folder: Path, whole: Whole) -> str:
    rows = sum(pq.read_metadata(path).num_rows for path in folder.glob("data/*.parquet"))
    if strays(folder):
        return "within a write"
    if not rows:
        return "before the first shard"
    return "between shards" if rows < len(whole.state.rows) else "after the last shard"


def test_killed_inside_every_call(faults: Server, brief: Whole, tmp_path: Path) -> None:
    """Each call that changes the disk, a write half done: random instants seldom meet these short windows."""
    left = 0
    for call in range(1, brief.outcome.calls + 1):
        folder = tmp_path / str(call)
        (outcome,) = faults.run(replace(brief.job, out=str(folder), fault="kill", at=call))
        assert outcome.status == -signal.SIGKILL, (call, outcome.message)
        left += bool(strays(folder))
        if (folder / "manifest.json").exists():
            assert verify(folder).problems == (), call
        (outcome,) = faults.run(replace(brief.job, out=str(folder)))
        assert outcome.status == 0, (call, outcome.message)
        assert_state(folder, brief.state, call)
    print(f"{brief.outcome.calls} kills, {left} of them left a stray")
    assert left >= brief.outcome.calls / 4


@many(6, 60)
def test_interrupted_keeps_what_was_judged(faults: Server, whole: Whole, tmp_path: Path, tries: int) -> None:
    seed = secrets.randbits(32)
    rng = random.Random(seed)
    kept = 0
    for number in range(tries):
        folder = tmp_path / str(number)
        stop = (rng.uniform(0.2, 1) * whole.outcome.seconds, "interrupt")
        (outcome,) = faults.run(replace(whole.job, out=str(folder), events=(stop,)))
        if outcome.error == "Interrupted":
            assert verify(folder).ok, seed
            said = re.match(r"stopped; (\d+) pairs of this run are kept in ", outcome.message)
            assert said, outcome.message
            # One more where it came between a row's being taken and its being counted.
            assert 0 <= verify(folder).pairs - int(said[1]) <= 1, (seed, outcome.message)
            kept += verify(folder).pairs
        else:
            assert outcome.error in ("", "KeyboardInterrupt"), (seed, outcome.message)
        assert faults.run(replace(whole.job, out=str(folder)))[0].status == 0, seed
        assert_state(folder, whole.state, seed)
    assert kept > 0


@many(4, 30)
def test_workers_side_by_side(faults: Server, whole: Whole, tmp_path: Path, tries: int) -> None:
    """Rounds of two to four workers, over all pairs or some drawn at random, some of them killed, in one cache."""
    seed = secrets.randbits(32)
    rng = random.Random(seed)
    killed = 0
    for number in range(tries):
        folder = tmp_path / str(number)
        finished: dict[str, int] = {}
        for _ in range(2):
            jobs = [
                replace(
                    whole.job,
                    out=str(folder),
                    limit=rng.choice([None, 30]),
                    events=((rng.uniform(0, 2 * whole.outcome.seconds), "kill"),) if rng.random() < 0.5 else (),
                )
                for _ in range(rng.randint(2, 4))
            ]
            jobs = [replace(job, seed=rng.randrange(9) if job.limit else None) for job in jobs]
            for job, outcome in zip(jobs, faults.run(*jobs), strict=True):
                assert outcome.status in ((0, -signal.SIGKILL) if job.events else (0,)), (seed, job, outcome)
                killed += outcome.status != 0
            assert finished.items() <= shards(folder).items(), seed
            finished = shards(folder)
        assert verify(folder).problems == (), seed
        assert faults.run(replace(whole.job, out=str(folder)))[0].status == 0, seed
        assert_state(folder, whole.state, seed)
        assert_repeated_rows_are_equal(folder)
    print(f"{killed} workers killed in {2 * tries} rounds")
    assert killed >= tries / 4


def test_reading_while_others_write(faults: Server, whole: Whole, tmp_path: Path) -> None:
    """What is there is right, whenever one looks, and stays there."""
    folder = tmp_path / "cache"
    met: list[int] = []
    with ThreadPoolExecutor(1) as asking:
        writing = asking.submit(faults.run, *[replace(whole.job, out=str(folder))] * 3)
        while not writing.done():
            if (folder / "data").exists():
                with WeightsCache.open(folder) as cache:
                    rows = {row.example_hash: exact(row) for row in cache.rows()}
                assert rows.items() <= whole.state.rows.items()
                assert {reject.row for reject in read_rejects(folder)} <= {row for row, _, _ in whole.state.rejects}
                met.append(len(rows))
        assert [outcome.status for outcome in writing.result()] == [0, 0, 0]
    assert met == sorted(met)
    assert len(set(met)) > 2
    assert_state(folder, whole.state, None)


def assert_repeated_rows_are_equal(folder: Path) -> None:
    met: dict[str, str] = {}
    for row in pq.read_table(folder / "data").to_pylist():
        assert met.setdefault(row["example_hash"], repr(row)) == repr(row)


def test_a_row_file_in_the_making(faults: Server, brief: Whole, tmp_path: Path) -> None:
    """Killed inside every call of it, or without room: it is made anew, and the cache is as it was."""
    folder = tmp_path / "cache"
    assert faults.run(replace(brief.job, out=str(folder)))[0].status == 0
    job = replace(brief.job, task="shuffle", out=str(folder))
    (outcome,) = faults.run(job)
    assert (outcome.status, outcome.calls > 3) == (0, True), outcome.message
    for call in range(1, outcome.calls + 1):
        shutil.rmtree(folder / ".rows")
        (killed,) = faults.run(replace(job, fault="kill", at=call))
        assert killed.status == -signal.SIGKILL, killed.message
        if call % 2:
            (full,) = faults.run(replace(job, fault="full", at=call * outcome.written // 20))
            assert full.status == 0 or (full.error, strays(folder)) == ("StorageError", []), full.message
        with WeightsCache.open(folder) as cache:
            cache.prepare_shuffled()
            assert {row.example_hash: exact(row) for row in cache.fetch(list(brief.state.rows))} == brief.state.rows
        assert len(list((folder / ".rows").iterdir())) == 1
        assert strays(folder) == []
    shutil.rmtree(folder / ".rows")
    assert_state(folder, brief.state, None)


def test_new_folders_outlive_a_power_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that was made is there after a power failure when the one above it was synced since."""
    unsynced: dict[int, str] = {}
    mkdir, fsync = os.mkdir, os.fsync

    def making(path: Path, *mode: int) -> None:
        mkdir(path, *mode)
        unsynced[Path(path).parent.stat().st_ino] = f"{path} may be lost"

    def syncing(descriptor: int) -> None:
        fsync(descriptor)
        unsynced.pop(os.fstat(descriptor).st_ino, None)

    monkeypatch.setattr(os, "mkdir", making)
    monkeypatch.setattr(os, "fsync", syncing)
    with CacheWriter.open(tmp_path / "new" / "cache", RECIPE, shard_rows=1) as writer:
        writer.add(make_row(1))
        assert len(shards(tmp_path / "new" / "cache")) == 1
        assert unsynced == {}
