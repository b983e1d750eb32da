"""rejects.jsonl: every pair that was left out, with its row and the reason, one JSON object a line.

Each line carries a checksum of itself. Lines are added under a lock, and a torn last line, left by a crash or a full
disk, is cut off by whoever adds the next one. Not for: problems that stop a run, which are errors (`twdpo/errors.py`).
"""

from __future__ import annotations

import fcntl
import json
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twdpo.errors import CacheCorrupt, CacheError
from twdpo.weights_cache.durable import fsync_folder, storing, write_all
from twdpo.weights_cache.manifest import REJECTS
from twdpo.weights_cache.recipe import canonical_json

_TYPES = (int, str, str | None, str | None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reject:
    """A pair left out: `row` is its place in its data set (0-based), `example_hash` is None where it made no pair."""

    row: int
    dataset: str | None
    example_hash: str | None
    reason: str

    @property
    def key(self) -> str:
        """What tells this pair from others: see `reject_key`."""
        return reject_key(self.row, self.example_hash, self.dataset)

    def line(self) -> bytes:
        """The line of the file, its end included."""
        content = {"row": self.row, "dataset": self.dataset, "example_hash": self.example_hash, "reason": self.reason}
        text = json.dumps({**content, "crc32": _crc(content)}, ensure_ascii=False)
        return text.encode("utf-8", "backslashreplace") + b"\n"


def reject_key(row: int, example_hash: str | None, dataset: str | None) -> str:
    """A pair's key among the rejects: its hash, or where it has none its data set and row."""
    return example_hash or f"{dataset or ''}:{row}"


def read_rejects(folder: Path | str) -> list[Reject]:
    """The rejects of a cache; a torn last line is passed over. Raises CacheCorrupt naming a line that is damaged."""
    path = Path(folder) / REJECTS
    try:
        return _parse(path, path.read_bytes(), 0)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CacheError(f"{path} cannot be read: {(error.strerror or str(error)).lower()}") from error


class RejectLog:
    """The rejects of a cache open for adding; `keys` are those of all pairs listed so far, by whatever worker."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / REJECTS
        self._end = 0
        self._unsynced = False
        self.keys: set[str] = set()
        if self._path.exists():
            with storing(self._path), self._open():
                pass

    def add(self, reject: Reject) -> bool:
        """Append one pair, unless it is listed; raises StorageError, and then the file is as before."""
        if reject.key in self.keys:
            return False
        with storing(self._path), self._open() as descriptor:
            if reject.key in self.keys:
                return False
            line = reject.line()
            try:
                write_all(descriptor, line)
            except BaseException:
                os.ftruncate(descriptor, self._end)
                raise
            self._end += len(line)
            self.keys.add(reject.key)
            self._unsynced = True
        return True

    def sync(self) -> None:
        """Make what was added outlive a power failure."""
        if self._unsynced:
            with storing(self._path), self._open() as descriptor:
                os.fsync(descriptor)
                fsync_folder(self._path.parent)
            self._unsynced = False

    @contextmanager
    def _open(self) -> Iterator[int]:
        """The locked file, its torn last line cut off, and `keys` caught up with other workers' lines."""
        descriptor = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            new = b""
            while chunk := os.pread(descriptor, 1 << 20, self._end + len(new)):
                new += chunk
            whole = new[: new.rfind(b"\n") + 1]
            if len(whole) < len(new):
                os.ftruncate(descriptor, self._end + len(whole))
            self.keys.update(reject.key for reject in _parse(self._path, whole, self._end))
            self._end += len(whole)
            yield descriptor
        finally:
            os.close(descriptor)


def _crc(content: dict[str, Any]) -> str:
    return f"{zlib.crc32(canonical_json(content)):08x}"


def _checked(reject: Reject) -> Reject:
    values = (reject.row, reject.reason, reject.dataset, reject.example_hash)
    if not all(isinstance(value, kind) for value, kind in zip(values, _TYPES, strict=True)):
        raise ValueError("a field of another type")
    return reject


def _parse(path: Path, content: bytes, position: int) -> list[Reject]:
    found = []
    for line in content.split(b"\n")[:-1]:
        try:
            fields = json.loads(line)
            # A line without a checksum was written by a person.
            crc = fields.pop("crc32", None)
            if crc is not None and crc != _crc(fields):
                raise ValueError("checksum")
            found.append(_checked(Reject(**fields)))
        except (ValueError, TypeError, AttributeError, RecursionError):
            raise CacheCorrupt(
                f"{path} is damaged at byte {position}: not the line that was written; delete that line and run again"
            ) from None
        position += len(line) + 1
    return found
