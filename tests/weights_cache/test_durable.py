"""Whole files or none, whoever else is writing and whenever the process ends."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from twdpo.errors import CacheError, StorageError
from twdpo.weights_cache.durable import make_folder, remove_strays, write_file

HOLDER = """
import sys, time
from pathlib import Path
from twdpo.weights_cache.durable import PendingFile
held = PendingFile(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process in the middle of writing a file."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
    )
    assert process.stdout is not None
    with process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_file_is_written_and_replaced(tmp_path: Path) -> None:
    for content in (b"one", b"", b"x" * 5_000_000):
        write_file(tmp_path / "file", content)
        assert (tmp_path / "file").read_bytes() == content
        assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_living_writer_keeps_its_file_and_a_killed_one_loses_it(
    tmp_path: Path, holder: subprocess.Popen[str]
) -> None:
    (stray,) = tmp_path.iterdir()
    assert remove_strays(tmp_path) == 0
    assert stray.exists()
    holder.kill()
    holder.wait()
    assert remove_strays(tmp_path) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_another_machine_is_left_alone_until_it_has_lain_still(
    tmp_path: Path, holder: subprocess.Popen[str]
) -> None:
    """Where locks hold within one machine only, a file of another one looks like a dead writer's."""
    (stray,) = tmp_path.iterdir()
    holder.kill()
    holder.wait()
    here, _, rest = stray.name.removeprefix(".tmp-").partition("-")
    other = stray.rename(tmp_path / f".tmp-{'0' * 8 if here != '0' * 8 else '1' * 8}-{rest}")
    assert remove_strays(tmp_path) == 0
    an_hour_ago = os.stat(other).st_mtime - 3700
    os.utime(other, (an_hour_ago, an_hour_ago))
    assert remove_strays(tmp_path) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_file_taken_for_a_stray_before_its_lock_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The instant between creating and locking a temporary file: the first lock comes after another worker's cleaning.
    calls: list[int] = []
    real = fcntl.flock

    def flock(descriptor: int, operation: int) -> None:
        calls.append(operation)
        if len(calls) == 1:
            next(tmp_path.glob(".tmp-*")).unlink()
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    write_file(tmp_path / "file", b"content")
    assert (tmp_path / "file").read_bytes() == b"content"
    assert len(calls) == 2


@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: BaseException
) -> None:
    write_file(tmp_path / "file", b"old")

    def fail(*_: object) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(os, step, fail)
        with pytest.raises((StorageError, KeyboardInterrupt)) as caught:
            write_file(tmp_path / "file", b"new")
    if isinstance(error, OSError):
        assert str(caught.value).startswith(f"cannot write {tmp_path / 'file'}: the disk is full")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"old"


def test_an_error_that_is_no_failure_to_write_passes(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_file(tmp_path / "none" / "file", b"")


def test_a_file_in_the_way_of_a_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(CacheError, match="a file is in the way; choose another folder"):
            make_folder(folder)
