"""Runs that are killed, run out of disk, or run side by side: the cache is the one an undisturbed run leaves."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.weights_cache.samples import RECIPE, SOURCE, content, make_row
from twdpo.weights_cache import CacheWriter, Manifest, WeightsCache, read_rejects, verify

ROOT = Path(__file__).resolve().parents[2]
KILLS = 10
NUMBERS = range(120)

LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
from pathlib import Path
from tests.weights_cache.samples import RECIPE, make_row
from twdpo.errors import StorageError
from twdpo.weights_cache import CacheWriter
try:
    with CacheWriter.open(Path(sys.argv[1]), RECIPE, shard_rows=4) as writer:
        for number in range(60):
            if number % 7 == 0:
                writer.reject(number, "every seventh is left out " * 9, make_row(number).example_hash, "demo")
            else:
                writer.add(make_row(number))
except StorageError as error:
    print(error)
    sys.exit(1)
"""

# Dies inside the n-th of the calls that make files durable, a write half done.
KILLED_IN_CALL = """
import os, signal, sys
from pathlib import Path
from tests.weights_cache.samples import RECIPE, SOURCE, make_row
from twdpo.weights_cache import CacheWriter
calls = 0
def dying(real, halfway):
    def call(*arguments):
        global calls
        calls += 1
        if calls == int(sys.argv[2]):
            halfway(*arguments)
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments)
    return call
write = os.write
os.write = dying(write, lambda descriptor, content: write(descriptor, content[: len(content) // 2]))
os.fsync = dying(os.fsync, lambda *_: None)
os.replace = dying(os.replace, lambda *_: None)
with CacheWriter.open(Path(sys.argv[1]), RECIPE, dataset=SOURCE, shard_rows=2) as writer:
    for number in range(8):
        if number % 7 == 0:
            writer.reject(number, "every seventh is left out", make_row(number).example_hash, "demo")
        else:
            writer.add(make_row(number))
"""


def start(*arguments: object, code: str | None = None) -> subprocess.Popen[str]:
    program = ["-c", code] if code else ["-m", "tests.weights_cache.samples"]
    command = [sys.executable, *program, *(str(argument) for argument in arguments)]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ}
    )


def assert_complete(folder: Path) -> None:
    """The folder is what one undisturbed run over NUMBERS leaves."""
    expected = {make_row(number).example_hash: content(make_row(number)) for number in NUMBERS if number % 7}
    with WeightsCache.open(folder) as cache:
        assert {row.example_hash: content(row) for row in cache.rows()} == expected
        assert len(cache) == len(expected)
    rejected = [reject.row for reject in read_rejects(folder)]
    assert sorted(rejected) == [number for number in NUMBERS if number % 7 == 0]
    report = verify(folder)
    assert report.problems == ()
    assert report.strays == 0
    counts = Manifest.load(folder).counts
    assert (counts["pairs"], counts["rejected"]) == (len(expected), len(rejected))
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["README.md", "data", "manifest.json", "rejects.jsonl"]


def finish(folder: Path, stop: int = NUMBERS.stop) -> None:
    """Go on, undisturbed, from whatever is in the folder."""
    with CacheWriter.open(folder, RECIPE, dataset=SOURCE, shard_rows=16) as writer:
        for number in range(NUMBERS.start, stop):
            row = make_row(number)
            if number % 7:
                writer.add(row)
            else:
                writer.reject(number, "every seventh is left out", row.example_hash, "demo")


def wait_for(process: subprocess.Popen[str], rows: int) -> None:
    """Wait until the writer is open and has taken so many new rows: a clock would measure the machine's load."""
    assert process.stdout is not None
    assert process.stdout.readline() == "open\n"
    for _ in range(rows):
        assert process.stdout.readline()


def test_killed_at_any_instant_and_resumed(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    rng = np.random.default_rng(time.time_ns())
    done = 0
    for attempt in range(KILLS):
        # The kill falls into the pause or the rows after it; there are far more rows than all runs get through.
        process = start(folder, NUMBERS.start, NUMBERS.stop, 0.01)
        wait_for(process, attempt % 6)
        time.sleep(float(rng.random()) * 0.03)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        # Whatever was seen finished stays, and is whole.
        report = verify(folder)
        assert report.problems == ()
        assert report.pairs >= done
        done = report.pairs
    assert done > 0
    finish(folder)
    assert_complete(folder)


def test_killed_inside_every_call_of_a_write(tmp_path: Path) -> None:
    """Manifest, card, reject and shard, each at every step: random instants seldom meet these short windows."""
    folder = tmp_path / "cache"
    strays = 0
    for call in range(1, 15):
        process = start(folder, call, code=KILLED_IN_CALL)
        errors = process.communicate()[1]
        assert process.returncode == -signal.SIGKILL, errors
        strays += len(list(folder.rglob(".tmp-*")))
        if (folder / "manifest.json").exists():
            assert verify(folder).problems == ()
        # Each from an empty folder, so that the manifest's first write is met as well.
        finish(folder, 12)
        assert verify(folder).problems == ()
        assert not list(folder.rglob(".tmp-*"))
        shutil.rmtree(folder)
    assert strays > 0


def test_an_interrupt_keeps_what_is_done(tmp_path: Path) -> None:
    process = start(tmp_path / "cache", 1, 2_000, 0.01)
    wait_for(process, 5)
    process.send_signal(signal.SIGINT)
    errors = process.communicate()[1]
    assert "KeyboardInterrupt" in errors
    report = verify(tmp_path / "cache")
    assert report.ok
    assert Manifest.load(tmp_path / "cache").counts["pairs"] == report.pairs > 0


@pytest.mark.parametrize("killed", [0, 1])
def test_workers_side_by_side(tmp_path: Path, killed: int) -> None:
    folder = tmp_path / "cache"
    # Their ranges overlap, and both begin at once in a folder that is not there yet.
    # The one to be killed is slow, so that it is still at work when it is.
    pauses = (0.1 if killed else 0.005, 0.005, 0.005)
    ranges = ((0, 40), (20, 60), (10, 50))
    workers = [start(folder, *numbers, pause) for numbers, pause in zip(ranges, pauses, strict=True)]
    for worker in workers[:killed]:
        wait_for(worker, 3)
        worker.kill()
    for number, worker in enumerate(workers):
        errors = worker.communicate()[1]
        assert worker.returncode == (0 if number >= killed else -signal.SIGKILL), errors
    assert verify(folder).ok
    finish(folder)
    assert_complete(folder)


def test_a_disk_that_fills_up_is_one_line_and_can_go_on(tmp_path: Path) -> None:
    failures = 0
    for limit in (0, 200, 1_000, 2_500, 6_000, 9_000, 12_000):
        folder = tmp_path / str(limit)
        process = start(folder, limit, code=LIMITED)
        output, errors = process.communicate()
        assert process.returncode in (0, 1), errors
        if process.returncode == 1:
            failures += 1
            assert output.startswith("cannot write ")
            assert len(output.splitlines()) == 1
            assert not list(folder.rglob(".tmp-*"))
        if (folder / "manifest.json").exists():
            assert verify(folder).ok
        finish(folder)
        assert_complete(folder)
    assert failures >= 4


@pytest.mark.skipif(os.geteuid() == 0, reason="needs a user whom file rights bind")
def test_a_folder_turned_read_only_is_one_line(tmp_path: Path) -> None:
    finish(tmp_path / "cache")
    (tmp_path / "cache").chmod(0o555)
    process = start(tmp_path / "cache", 100_000, code=LIMITED)
    output, errors = process.communicate()
    (tmp_path / "cache").chmod(0o755)
    assert (process.returncode, errors) == (1, "")
    assert "permission denied" in output
