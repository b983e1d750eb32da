"""Writing files so that a crash, a full disk or another worker never leaves half a file under a real name.

A file is written under a temporary name in its folder, fsynced, renamed, and the folder is fsynced. A writer holds a
lock on its temporary file, so that a file left by a dead writer can be told from one still being written: the kernel
lets go of the lock when its process ends, however it ends. Some file systems of clusters know locks within one machine
only: another machine's file, told by its name, must also have lain still for long. Works on POSIX systems. Not for:
what the files hold.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from twdpo.errors import CacheError, storage_error

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

TEMPORARY_PREFIX = ".tmp-"
#: This machine in the names of temporary files.
_HOST = hashlib.sha256(os.uname().nodename.encode()).hexdigest()[:8]
_NAME = re.compile(rf"{re.escape(TEMPORARY_PREFIX)}(?P<host>[0-9a-f]{{8}})-\d+-[0-9a-f]{{12}}")
#: Seconds that another machine's temporary file must have lain still before it is taken for one of the dead.
_STILL = 3600.0


@contextmanager
def storing(path: Path) -> Iterator[None]:
    """Report a failure to write `path` as StorageError; other OSErrors pass."""
    try:
        yield
    except OSError as error:
        known = storage_error(error, path)
        if known is None:
            raise
        raise known from error


def make_folder(folder: Path) -> None:
    """Make `folder` and those above it; raises CacheError where a file is in the way, or StorageError."""
    try:
        with storing(folder):
            missing = [path for path in (folder, *folder.parents) if not path.exists()]
            folder.mkdir(parents=True, exist_ok=True)
            for path in missing:
                fsync_folder(path.parent)
    except (FileExistsError, NotADirectoryError):
        raise CacheError(f"{folder} cannot be made: a file is in the way; choose another folder") from None


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold `folder` against the other workers on this host; not re-entrant.

    Where the file system has no locks, the body runs unlocked.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def hold(folder: Path) -> int | None:
    """Hold `folder` until the descriptor that is returned is closed, or this process ends; None where another has it.

    Where the file system has no locks, nothing is held.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError:
        pass
    return descriptor


def write_file(path: Path, content: bytes | memoryview) -> None:
    """Write `path` as a whole or not at all; raises StorageError where the disk or the rights do not allow it."""
    with storing(path), PendingFile(path.parent) as file:
        file.write(content)
        file.publish(path.name)


class PendingFile(io.RawIOBase):
    """A new file in `folder`: `publish` gives it its name, once; closing it before that removes it.

    `size` counts the bytes written so far. Its methods raise OSError (see `durable.storing`).
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._temporary, self._descriptor = _open_temporary(folder)
        self._digest = hashlib.sha256()
        self._published = False
        self.size = 0

    @property
    def digest(self) -> str:
        """The first 16 hex digits of the SHA-256 of what is written so far."""
        return self._digest.hexdigest()[:16]

    def writable(self) -> bool:
        """Whether it can be written: yes, as the libraries that write into it ask."""
        return True

    def write(self, content: ReadableBuffer, /) -> int:
        """Write all of `content`."""
        view = memoryview(content).cast("B")
        write_all(self._descriptor, view)
        self._digest.update(view)
        self.size += view.nbytes
        return view.nbytes

    def publish(self, name: str) -> Path:
        """Make what is written durable under `name` in its folder."""
        path = self._temporary.with_name(name)
        os.fsync(self._descriptor)
        os.replace(self._temporary, path)
        self._published = True
        fsync_folder(path.parent)
        return path

    def close(self) -> None:
        """Let go of the file, and remove it unless it was published."""
        if not self.closed:
            super().close()
            try:
                if not self._published:
                    self._temporary.unlink(missing_ok=True)
            finally:
                os.close(self._descriptor)


def write_all(descriptor: int, content: bytes | memoryview) -> None:
    """Write every byte of `content`, in as many calls as the system wants."""
    left = memoryview(content)
    while left.nbytes:
        left = left[os.write(descriptor, left) :]


def fsync_folder(folder: Path) -> None:
    """Make the names in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_strays(folder: Path) -> int:
    """Remove temporary files of dead writers from `folder`; those of living writers stay. Returns how many went."""
    return sum(_remove_if_dead(path) for path in sorted(folder.glob(f"{TEMPORARY_PREFIX}*")))


def _open_temporary(folder: Path) -> tuple[Path, int]:
    while True:
        path = folder / f"{TEMPORARY_PREFIX}{_HOST}-{os.getpid()}-{secrets.token_hex(6)}"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        # Between creation and lock, another worker may have taken the file for a stray and removed it.
        if os.fstat(descriptor).st_nlink:
            return path, descriptor
        os.close(descriptor)


def _remove_if_dead(path: Path) -> bool:
    name = _NAME.fullmatch(path.name)
    try:
        if name and name["host"] != _HOST and time.time() - path.stat().st_mtime < _STILL:
            return False
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        # Refused while its writer lives; also where the file system has no locks, and then we can't tell: it stays.
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True
