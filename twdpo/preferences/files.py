"""Rows of local files and folders: Parquet, JSON lines, JSON arrays, Arrow and Feather, `save_to_disk` folders.

Every reader streams: memory does not grow with the file (a JSON array alone is read whole). Not for: making pairs of
rows (`formats.py`), or the hub (`hub.py`).
"""

from __future__ import annotations

import codecs
import gzip
import json
import re
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from twdpo.errors import DataError
from twdpo.preferences.formats import COLUMNS, check_columns
from twdpo.preferences.sources import SUFFIXES, pick_split

if TYPE_CHECKING:
    import pyarrow as pa

Row = Mapping[str, Any]

#: Rows decoded at a time: few enough for rows of long conversations.
_BATCH = 256

#: Names in which a folder's files say their split, as the hub's own rules have them.
_SHARD = re.compile(r"(\w+)-\d{5}-of-\d{5}")
_SPLIT_WORD = re.compile(r"(?:^|[^a-z])(train|test|validation|valid|val|dev|eval)(?:[^a-z]|$)", re.IGNORECASE)
_SPLIT_SYNONYMS = {"valid": "validation", "val": "validation", "dev": "validation"}
_NO_SPLITS = {"data", "part", "shard"}


class Rows(ABC):
    """The rows of one source, as often as they are asked for, in order."""

    @property
    @abstractmethod
    def total(self) -> int | None:
        """How many there are, where that can be known without decoding them."""

    @abstractmethod
    def __iter__(self) -> Iterator[Row]: ...


class DatasetRows(Rows):
    """Rows of a `datasets.Dataset`, only the columns that are read here."""

    def __init__(self, dataset: Any, where: str) -> None:
        check_columns(dataset.column_names, where)
        columns = [name for name in dataset.column_names if name in COLUMNS]
        self._dataset = dataset.select_columns(columns).with_format(None)

    @property
    def total(self) -> int:
        return len(self._dataset)

    def __iter__(self) -> Iterator[Row]:
        for batch in self._dataset.iter(batch_size=_BATCH):
            yield from (dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True))


class _TableRows(Rows):
    """Rows of a file that pyarrow reads in batches."""

    def __init__(self, path: Path) -> None:
        self._path = path
        check_columns(self._schema.names, str(path))
        self._columns = [name for name in self._schema.names if name in COLUMNS]

    @property
    @abstractmethod
    def _schema(self) -> pa.Schema: ...

    @abstractmethod
    def _batches(self) -> Iterator[pa.RecordBatch]: ...

    def __iter__(self) -> Iterator[Row]:
        with readable(self._path):
            for batch in self._batches():
                yield from batch.to_pylist()


class _ParquetRows(_TableRows):
    @cached_property
    def _schema(self) -> pa.Schema:
        import pyarrow.parquet as pq

        with readable(self._path):
            return pq.read_schema(self._path)

    @cached_property
    def total(self) -> int:  # type: ignore[override]  # computed once
        import pyarrow.parquet as pq

        with readable(self._path):
            return int(pq.read_metadata(self._path).num_rows)

    def _batches(self) -> Iterator[pa.RecordBatch]:
        import pyarrow.parquet as pq

        # Without buffering ahead, so that one huge row group does not come into memory whole.
        with pq.ParquetFile(self._path, memory_map=True, pre_buffer=False) as file:
            yield from file.iter_batches(batch_size=_BATCH, columns=self._columns)


class _ArrowRows(_TableRows):
    """Arrow files in either form: `datasets` writes streams, Feather and most others write files."""

    @cached_property
    def _schema(self) -> pa.Schema:
        with readable(self._path), self._open() as reader:
            return reader.schema

    @cached_property
    def total(self) -> int:  # type: ignore[override]  # computed once
        with readable(self._path):
            return sum(batch.num_rows for batch in self._raw_batches())

    @contextmanager
    def _open(self) -> Iterator[Any]:
        import pyarrow as pa

        with pa.memory_map(str(self._path)) as mapped:
            is_file = mapped.read(6) == b"ARROW1"
            mapped.seek(0)
            yield pa.ipc.open_file(mapped) if is_file else pa.ipc.open_stream(mapped)

    def _raw_batches(self) -> Iterator[pa.RecordBatch]:
        with self._open() as reader:
            if hasattr(reader, "get_batch"):
                yield from (reader.get_batch(i) for i in range(reader.num_record_batches))
            else:
                yield from reader

    def _batches(self) -> Iterator[pa.RecordBatch]:
        for batch in self._raw_batches():
            selected = batch.select(self._columns)
            yield from (selected.slice(start, _BATCH) for start in range(0, batch.num_rows, _BATCH))
