"""Runs whose disk is full, fails or may not be written: one line, nothing lost, and on they go when it is mended.

What is random is drawn anew each time; the seed is in the message of whatever fails. The tests marked slow draw more.
"""

from __future__ import annotations

import errno
import os
import random
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.weights_cache.fault_server import Outcome, Server
from tests.weights_cache.states import Whole, assert_state, shards, strays

NOBODY = 65534
#: What the system says to who may not write at all.
REFUSALS = (errno.EROFS, errno.EACCES)


def many(some: int, lots: int) -> pytest.MarkDecorator:
    """So many tries by default, and so many where there is time."""
    return pytest.mark.parametrize("tries", [some, pytest.param(lots, marks=pytest.mark.slow)])


def assert_one_line(outcome: Outcome, note: object) -> None:
    """The run ended with what a user is told when a disk does not take what is written."""
    assert (outcome.status, outcome.error) == (1, "StorageError"), f"{note}: {outcome.message}"
    assert re.fullmatch(r"cannot write [^\n]+: [^\n]+; [^\n]+", outcome.message), f"{note}: {outcome.message}"


def run_into(
    faults: Server, whole: Whole, root: Path, tries: int, fault: Callable[[Path, random.Random], dict[str, Any]]
) -> None:
    """Let `tries` runs fail of faults that `fault` draws, most in caches that earlier ones began.

    Each says so in one line, leaves no stray and loses nothing; when a run gets through, the cache is as it must be.
    """
    seed = secrets.randbits(32)
    rng = random.Random(seed)
    failed = 0
    for number in range(20 * tries):
        folder = root / str(number)
        while failed < tries:
            finished, left = shards(folder), strays(folder)
            drawn = fault(folder, rng)
            (outcome,) = faults.run(replace(whole.job, out=str(folder), **drawn))
            for shut in drawn.get("shut", ()):
                if Path(shut).exists():
                    Path(shut).chmod(0o755)
            if outcome.status == 0:
                break
            failed += 1
            assert_one_line(outcome, (seed, drawn))
            # Who may not write may not clean up either.
            if not drawn.get("shut") and drawn.get("number") not in REFUSALS:
                assert set(strays(folder)) <= set(left), (seed, drawn)
            assert finished.items() <= shards(folder).items(), (seed, drawn)
            if rng.random() < 0.4:
                break
        assert faults.run(replace(whole.job, out=str(folder), user=drawn.get("user")))[0].status == 0, (seed, drawn)
        assert_state(folder, whole.state, (seed, drawn))
        shutil.rmtree(folder)
        if failed >= tries:
            return
    raise AssertionError(f"only {failed} of {tries} runs failed")


@many(40, 240)
def test_a_disk_that_fills_up(faults: Server, brief: Whole, tmp_path: Path, tries: int) -> None:
    """After so many bytes in all a write is cut short, and then there is no room for any."""

    def fault(_: Path, rng: random.Random) -> dict[str, Any]:
        return {"fault": "full", "at": rng.randrange(brief.outcome.written)}

    run_into(faults, brief, tmp_path, tries, fault)


@many(10, 60)
def test_files_that_may_not_grow(faults: Server, brief: Whole, tmp_path: Path, tries: int) -> None:
    """RLIMIT_FSIZE: real partial writes, by the kernel."""

    def fault(_: Path, rng: random.Random) -> dict[str, Any]:
        return {"file_size": rng.choice([rng.randrange(600), rng.randrange(12_000)])}

    run_into(faults, brief, tmp_path, tries, fault)


@many(20, 120)
def test_a_disk_that_refuses_from_some_call_on(faults: Server, brief: Whole, tmp_path: Path, tries: int) -> None:
    """Syncing, renaming and making folders may fail as well as writing."""

    def fault(_: Path, rng: random.Random) -> dict[str, Any]:
        number = rng.choice([errno.ENOSPC, errno.EDQUOT, *REFUSALS])
        return {"fault": "fail", "at": rng.randint(1, brief.outcome.calls), "number": number}

    run_into(faults, brief, tmp_path, tries, fault)


def test_a_disk_that_fails(faults: Server, brief: Whole, tmp_path: Path) -> None:
    job = replace(brief.job, out=str(tmp_path / "cache"), fault="fail", at=brief.outcome.calls // 2, number=errno.EIO)
    assert_one_line(faults.run(job)[0], None)


@pytest.fixture
def home(tmp_path: Path, pairs_file: Path) -> Iterator[tuple[Path, int | None]]:
    """A folder, and a user whom file rights bind in it; None where that is who runs the tests."""
    if os.geteuid():
        yield tmp_path, None
        return
    # Folders of pytest's own are closed to other users.
    with tempfile.TemporaryDirectory() as name:
        if not all(above.stat().st_mode & 0o001 for above in Path(name).parents):
            pytest.skip(f"needs a folder for temporary files that other users reach; {name} is not")
        os.chown(name, NOBODY, NOBODY)
        shutil.copy(pairs_file, name)
        (Path(name) / pairs_file.name).chmod(0o644)
        yield Path(name), NOBODY


@many(12, 60)
def test_folders_that_turn_read_only(faults: Server, brief: Whole, home: tuple[Path, int | None], tries: int) -> None:
    folder, user = home
    job = replace(brief.job, dataset=str(folder / "pairs.jsonl") if user else brief.job.dataset, user=user)

    def fault(folder: Path, rng: random.Random) -> dict[str, Any]:
        shut = rng.choice([[folder], [folder / "data"], [folder, folder / "data"]])
        at = rng.randint(1, brief.outcome.calls)
        return {"fault": "shut", "at": at, "shut": tuple(str(each) for each in shut), "user": user}

    run_into(faults, replace(brief, job=job), folder, tries, fault)


def test_rejects_that_may_not_be_written_are_one_line(
    faults: Server, brief: Whole, home: tuple[Path, int | None]
) -> None:
    folder, user = home
    job = replace(brief.job, dataset=str(folder / "pairs.jsonl"), out=str(folder / "cache"), user=user)
    shutil.copy(brief.job.dataset, folder)
    assert faults.run(job)[0].status == 0
    (outcome,) = faults.run(replace(job, fault="shut", at=1, shut=(str(folder / "cache" / "rejects.jsonl"),)))
    assert_one_line(outcome, None)


def test_shards_that_may_not_be_listed_are_one_line(
    faults: Server, brief: Whole, home: tuple[Path, int | None]
) -> None:
    folder, user = home
    job = replace(brief.job, dataset=str(folder / "pairs.jsonl"), out=str(folder / "cache"), user=user)
    shutil.copy(brief.job.dataset, folder)
    assert faults.run(job)[0].status == 0
    (folder / "cache" / "data").chmod(0)
    (outcome,) = faults.run(replace(job, task="shuffle"))
    (folder / "cache" / "data").chmod(0o755)
    assert (outcome.status, outcome.error) == (1, "CacheError"), outcome.message
    assert "permission denied" in outcome.message


@pytest.fixture(scope="module")
def mounter() -> Iterator[Server]:
    """A server that may mount."""
    try:
        with Server(mounts=True) as mounter, tempfile.TemporaryDirectory() as folder:
            mounter.mount(Path(folder), "size=64k")
            mounter.unmount(Path(folder))
            yield mounter
    except OSError as error:
        pytest.skip(f"needs the right to mount a file system: {error}")


@many(6, 60)
@pytest.mark.parametrize("how", ["small", "filled", "read-only"])
def test_a_file_system_of_its_own(mounter: Server, brief: Whole, tmp_path: Path, how: str, tries: int) -> None:
    """A tmpfs that is too small, that something else fills up, or that turns read-only."""
    seed = secrets.randbits(32)
    rng = random.Random(seed)
    mount = tmp_path / "mount"
    mount.mkdir()
    job = replace(brief.job, out=str(mount / "cache"), mount=str(mount))
    failed = 0
    for number in range(20 * tries):
        at = rng.uniform(0, brief.outcome.seconds)
        event = {"filled": (at, "fill"), "read-only": (at, "freeze")}.get(how)
        mounter.mount(mount, f"size={rng.randrange(4, 60) if how == 'small' else 1024}k")
        (outcome,) = mounter.run(replace(job, events=(event,) if event else ()))
        if outcome.status:
            assert_one_line(outcome, (seed, number))
            failed += 1
        mounter.copy(mount, tmp_path / "then")
        mounter.mount(mount, "remount,rw,size=4m")
        (outcome,) = mounter.run(job)
        assert outcome.status == 0, (seed, number, outcome.message)
        mounter.copy(mount / "cache", tmp_path / str(number))
        assert shards(tmp_path / "then" / "cache").items() <= shards(tmp_path / str(number)).items(), (seed, number)
        assert_state(tmp_path / str(number), brief.state, (seed, number))
        mounter.unmount(mount)
        shutil.rmtree(tmp_path / "then")
        if failed >= tries:
            return
    raise AssertionError(f"only {failed} of {tries} runs failed")
