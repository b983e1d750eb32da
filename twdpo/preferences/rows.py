"""What every reader offers: rows in order, as often as asked, and their number where it comes cheaply.

Not for: making pairs of rows (`formats.py`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from twdpo.errors import DataError, first_line

Row = Mapping[str, Any]

#: Rows decoded at a time: few enough for rows of long conversations.
BATCH = 256


class Rows(ABC):
    """The rows of one source, in order; iterating again starts again.

    `columns` is None where the source holds no row to tell them from.
    """

    columns: tuple[str, ...] | None

    @abstractmethod
    def count(self) -> int | None:
        """How many rows there are; None where only reading them all would tell."""

    @abstractmethod
    def read(self, extra: Collection[str] = (), start: int = 0) -> Iterator[Row]:
        """The rows from number `start` on, with the columns that make pairs and those named in `extra`.

        There may be more columns, where they are free. Rows before `start` are passed over as cheaply as can be.
        """

    def __iter__(self) -> Iterator[Row]:
        return self.read()


class MemoryRows(Rows):
    """Rows that are in memory already."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.columns = tuple(rows[0]) if rows else None
        self._rows = rows

    def count(self) -> int:
        """How many rows there are."""
        return len(self._rows)

    def read(self, extra: Collection[str] = (), start: int = 0) -> Iterator[Row]:
        """The rows, all columns."""
        return iter(self._rows[start:])


@contextmanager
def readable(path: object) -> Iterator[None]:
    """Turn what a library raises while it reads `path` into a DataError of one line.

    Libraries raise nearly anything on broken files; the bodies that this wraps hold nothing but their calls.
    """
    try:
        yield
    except (DataError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise DataError(f"no such file or folder: {error.filename or path}") from error
    except PermissionError as error:
        raise DataError(f"cannot read {path}: permission denied") from error
    except Exception as error:
        what = "it is broken, or of another kind than its name says"
        raise DataError(f"cannot read {path}: {what} ({first_line(error)})") from error
