"""A log of rows that survives its process: JSON lines, appended and synced as they come, one run's and no other's.

Beside the rows lies `run.json`, what decides them; another run is refused, with what differs. A line that a crash cut
off is dropped. Not for: what the rows hold.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from twdpo.errors import DataError, UsageError
from twdpo.weights_cache.durable import fsync_folder, hold, make_folder, remove_strays, storing, write_all, write_file

RUN_FILE, ROWS_FILE = "run.json", "rows.jsonl"
Row = dict[str, Any]


class RowLog:
    """The rows of one run by their `key`, and the file that keeps them. Use as a context manager."""

    def __init__(self, folder: Path, rows: dict[str, Row], descriptor: int, held: int) -> None:
        self.folder, self.rows, self._descriptor, self._held = folder, rows, descriptor, held

    @classmethod
    def open(cls, folder: Path, run: Mapping[str, Any], *, instead: str) -> RowLog:
        """Begin a log in `folder`, or go on with it. instead: what to do about a folder of another run.

        Raises UsageError where it is another run's, DataError where it is damaged or in use, and what writing raises.
        """
        make_folder(folder)
        held = hold(folder)
        if held is None:
            raise DataError(f"{folder} is in use by another run; wait for it, or {instead}")
        try:
            remove_strays(folder)
            _check(folder, json.loads(json.dumps(run)), instead)
            with storing(folder / ROWS_FILE):
                descriptor = os.open(folder / ROWS_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
                rows = _read(descriptor, folder / ROWS_FILE)
                fsync_folder(folder)
        except BaseException:
            os.close(held)
            raise
        return cls(folder, rows, descriptor, held)

    def append(self, rows: Iterable[Row]) -> None:
        """Keep rows, each with its `key`; they are on the disk when this returns."""
        new = list(rows)
        content = "".join(json.dumps(row) + "\n" for row in new).encode()
        with storing(self.folder / ROWS_FILE):
            write_all(self._descriptor, content)
            os.fsync(self._descriptor)
        self.rows |= {row["key"]: row for row in new}

    def close(self) -> None:
        """Let go of the file and the folder."""
        os.close(self._descriptor)
        os.close(self._held)

    def __enter__(self) -> RowLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _check(folder: Path, run: dict[str, Any], instead: str) -> None:
    """Write what the run is, or compare it with what is there."""
    file = folder / RUN_FILE
    if not file.exists():
        if (folder / ROWS_FILE).exists():
            raise DataError(f"{folder} holds rows but no {RUN_FILE} that says of which run; {instead}")
        write_file(file, (json.dumps(run, indent=2) + "\n").encode())
        return
    try:
        there = json.loads(file.read_bytes())
    except (OSError, ValueError):
        there = None
    if not isinstance(there, dict):
        raise DataError(f"{file} is damaged; remove {folder}, or {instead}")
    fields = [name for name in {**there, **run} if there.get(name) != run.get(name)]
    if fields:
        differ = "; ".join(f"{name}: {_show(there.get(name))} there, {_show(run.get(name))} now" for name in fields)
        raise UsageError(f"{folder} is of another run ({differ}); {instead}")


def _show(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _read(descriptor: int, file: Path) -> dict[str, Row]:
    """The rows of an open file, which ends behind the last whole one afterwards."""
    content = file.read_bytes()
    whole = content.rfind(b"\n") + 1
    rows: dict[str, Row] = {}
    for number, line in enumerate(content[:whole].split(b"\n")[:-1], start=1):
        try:
            row = json.loads(line)
            rows[row["key"]] = row
        except (ValueError, KeyError, TypeError):
            raise DataError(f"{file} is damaged in line {number}; remove that line, or the file's folder") from None
    if whole < len(content):
        os.ftruncate(descriptor, whole)
    os.lseek(descriptor, 0, os.SEEK_END)
    return rows
