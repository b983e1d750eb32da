"""Rows of JSON files: one object a line (JSONL, NDJSON), or one array of objects; plain or gzipped.

Lines end at a line feed alone, since JSON strings may hold every other separator of lines. Errors name the line. An
array is read whole, lines are streamed. Not for: columnar files (`tables.py`).
"""

from __future__ import annotations

import codecs
import gzip
import json
from collections.abc import Collection, Generator, Iterator
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, Any, cast

from twdpo.errors import DataError, first_line
from twdpo.preferences.rows import Row, Rows, readable

#: What JSON holds to be white space.
_BLANK = b" \t\r\n"


class JsonRows(Rows):
    """Rows of one JSON file; `columns` are the keys of the first row."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.is_array = _begins_with_bracket(path)
        with closing(self._objects()) as objects:
            first = next(objects, None)
        self.columns: tuple[str, ...] | None = None if first is None else tuple(first)

    def count(self) -> int:
        """The number of rows, by counting lines without decoding them."""
        if self.is_array:
            return sum(1 for _ in self)
        with readable(self.path), _open(self.path) as file:
            return sum(1 for line in file if line.strip(_BLANK))

    def read(self, extra: Collection[str] = (), start: int = 0) -> Iterator[Row]:
        """The rows, all keys."""
        # A key that a row leaves out is a value that is missing, not another format.
        missing = dict.fromkeys(self.columns or ())
        for row in self._objects(start):
            yield {**missing, **row}

    def _objects(self, start: int = 0) -> Generator[dict[str, Any], None, None]:
        if self.is_array:
            with readable(self.path), _open(self.path) as file:
                content = file.read()
            for i, item in islice(enumerate(_decode(content, self.path, line=1), start=1), start, None):
                yield _object(item, f"item {i} of {self.path}")
            return
        for number, line in islice(_lines(self.path), start, None):
            yield _object(_decode(line, self.path, number), f"line {number} of {self.path}")


def _lines(path: Path) -> Generator[tuple[int, bytes], None, None]:
    """The lines that are not blank, with their numbers from 1."""
    with readable(path), _open(path) as file:
        for number, line in enumerate(file, start=1):
            if line.strip(_BLANK):
                yield number, line.strip(_BLANK)


@contextmanager
def _open(path: Path) -> Iterator[IO[bytes]]:
    """The bytes of the file, after a byte order mark if there is one."""
    with gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb") as file:
        if file.read(len(codecs.BOM_UTF8)) != codecs.BOM_UTF8:
            file.seek(0)
        yield cast(IO[bytes], file)


def _begins_with_bracket(path: Path) -> bool:
    with closing(_lines(path)) as lines:
        return any(line.startswith(b"[") for _, line in islice(lines, 1))


def _decode(content: bytes, path: Path, line: int) -> Any:
    try:
        return json.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        line += content.count(b"\n", 0, error.start)
        raise DataError(f"{path} is not UTF-8 text (line {line}): save it as UTF-8") from error
    except json.JSONDecodeError as error:
        line += error.lineno - 1
        raise DataError(f"line {line} of {path} is not valid JSON: {error.msg} (column {error.colno})") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"line {line} of {path} cannot be read as JSON: {first_line(error)}") from error


def _object(item: object, where: str) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise DataError(f"{where} is not a JSON object: every row must be one, with `chosen` and `rejected`")
    return item
