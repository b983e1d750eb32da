"""Rows of columnar files: Parquet, Arrow, Feather, and data sets that `datasets` has loaded.

Memory does not grow with the file: batches are decoded one at a time, and only the columns that are used.
Not for: JSON (`json_files.py`), or finding the files of a folder (`files.py`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twdpo.preferences.formats import COLUMNS
from twdpo.preferences.rows import BATCH, Row, Rows, readable

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa


class TableRows(Rows):
    """Rows of a file that pyarrow reads in batches."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with readable(path):
            self.schema = self._read_schema()
            self._decode = _decoder(self.schema)
        self.columns: tuple[str, ...] | None = tuple(self.schema.names)

    @abstractmethod
    def _read_schema(self) -> pa.Schema: ...

    @abstractmethod
    def _batches(self, used: list[str], start: int) -> Iterator[pa.RecordBatch]:
        """Batches of the columns `used`, from row `start` on."""

    def read(self, extra: Collection[str] = (), start: int = 0) -> Iterator[Row]:
        """The rows, with the columns that make pairs and those named in `extra`."""
        batches = self._batches(_used(self.schema.names, extra), start)
        while True:
            with readable(self.path):
                batch = next(batches, None)
                rows = [self._decode(row) for row in batch.to_pylist()] if batch is not None else []
            if batch is None:
                return
            yield from rows


class ParquetRows(TableRows):
    """Rows of one Parquet file."""

    def _read_schema(self) -> pa.Schema:
        import pyarrow.parquet as pq

        return pq.read_schema(self.path)

    def count(self) -> int:
        """The number of rows, from the file's footer."""
        import pyarrow.parquet as pq

        with readable(self.path):
            return int(pq.read_metadata(self.path).num_rows)

    def _batches(self, used: list[str], start: int) -> Iterator[pa.RecordBatch]:
        import pyarrow.parquet as pq

        # No reading ahead: one huge row group would come into memory whole.
        with pq.ParquetFile(self.path, pre_buffer=False, buffer_size=1 << 20) as file:
            groups, first = range(file.num_row_groups), 0
            while first < len(groups) and start >= (rows := file.metadata.row_group(first).num_rows):
                first, start = first + 1, start - rows
            batches = file.iter_batches(batch_size=BATCH, columns=used, row_groups=list(groups[first:]))
            yield from _from_row(batches, start)


class ArrowRows(TableRows):
    """Rows of one Arrow file in either form: `datasets` writes streams; Feather and most others write files."""

    def _read_schema(self) -> pa.Schema:
        with self._open() as reader:
            return reader.schema

    def count(self) -> int:
        """The number of rows, from the headers of the record batches."""
        with readable(self.path):
            return sum(batch.num_rows for batch in self._stored())

    def _batches(self, used: list[str], start: int) -> Iterator[pa.RecordBatch]:
        for stored in _from_row(self._stored(), start):
            selected = stored.select(used)
            yield from (selected.slice(first, BATCH) for first in range(0, stored.num_rows, BATCH))

    def _stored(self) -> Iterator[pa.RecordBatch]:
        with self._open() as reader:
            if hasattr(reader, "get_batch"):
                yield from (reader.get_batch(i) for i in range(reader.num_record_batches))
            else:
                yield from reader

    @contextmanager
    def _open(self) -> Iterator[Any]:
        import pyarrow as pa

        with pa.memory_map(str(self.path)) as mapped:
            is_file = mapped.read(6) == b"ARROW1"
            mapped.seek(0)
            yield pa.ipc.open_file(mapped) if is_file else pa.ipc.open_stream(mapped)


class DatasetRows(Rows):
    """Rows of a data set that `datasets` holds, from the hub or from a `save_to_disk` folder."""

    def __init__(self, dataset: datasets.Dataset, where: str) -> None:
        self.columns: tuple[str, ...] | None = tuple(dataset.column_names)
        self.where = where
        self.dataset = dataset

    def count(self) -> int:
        """The number of rows."""
        return len(self.dataset)

    def read(self, extra: Collection[str] = (), start: int = 0) -> Iterator[Row]:
        """The rows, with the columns that make pairs and those named in `extra`."""
        used = _used(self.dataset.column_names, extra)
        if start >= len(self.dataset):
            return
        rest = self.dataset.skip(start) if start else self.dataset
        batches = iter(rest.select_columns(used).with_format(None).iter(batch_size=BATCH))
        while True:
            with readable(self.where):
                batch = next(batches, None)
            if batch is None:
                return
            yield from (dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True))


def _from_row(batches: Iterable[pa.RecordBatch], start: int) -> Iterator[pa.RecordBatch]:
    """`batches` from row `start` on; those before are not decoded further."""
    for batch in batches:
        if start < batch.num_rows:
            yield batch.slice(start) if start else batch
        start = max(0, start - batch.num_rows)


def _used(names: Iterable[str], extra: Collection[str]) -> list[str]:
    """The columns to decode: those that make pairs, and `extra`."""
    return [name for name in names if name in COLUMNS or name in extra]


def _decoder(schema: pa.Schema) -> Callable[[Row], Row]:
    """What undoes the encoding of columns that `datasets` stores as JSON, where messages are of mixed shapes."""
    if "arrow.json" not in str(schema):
        return lambda row: row
    import datasets

    features = datasets.Features.from_arrow_schema(schema.remove_metadata())
    return lambda row: features.decode_example(dict(row))
