"""One shard: written durably under a name that carries its digest, and opened with every check that reading allows.

A shard's name is part-<UTC time>-<first 16 hex digits of the SHA-256 of its bytes>.parquet: it sorts by time, is
unique among workers, and lets any later damage be noticed. A shard that another tool renamed is still read, without
that check. Not for: what the columns mean (`rows.py`) or which row stands where (`index.py`).
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from twdpo.errors import CacheCorrupt, CacheError, SchemaTooNew, TwdpoError
from twdpo.weights_cache.durable import write_file
from twdpo.weights_cache.schema import SCHEMA_VERSION, SIDES, encodings, read_shard_metadata, same_type

#: A row group is what one read by hash decodes, and the unit in which `datasets` can split a shard.
ROW_GROUP_ROWS = 512
#: Costs 0.7 s for 512 pairs of five layers, and makes small shards 4 to 8 % smaller than level 9.
_ZSTD_LEVEL = 17
#: Bytes. Pages cut at content make edited shards share what is equal; cut finer, they compress 5 % worse.
_CHUNKING = {"min_chunk_size": 1 << 20, "max_chunk_size": 4 << 20}
_NAME = re.compile(r"part-\d{8}T\d{12}Z-([0-9a-f]{16})\.parquet")


def list_shards(data: Path) -> list[Path]:
    """The finished shards of a cache's data folder, in cache order; raises CacheError where it cannot be listed."""
    try:
        names = sorted(name for name in os.listdir(data) if name.endswith(".parquet") and not name.startswith("."))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CacheError(f"{data} cannot be read: {(error.strerror or str(error)).lower()}") from error
    return [data / name for name in names]


def parquet_options(schema: pa.Schema) -> dict[str, Any]:
    """How every shard is encoded, as arguments for pyarrow's writers."""
    return {
        "compression": "zstd",
        "compression_level": _ZSTD_LEVEL,
        "use_dictionary": False,
        "column_encoding": encodings(schema),
        "write_page_index": True,
        "write_page_checksum": True,
        "use_content_defined_chunking": _CHUNKING,
    }


def write_shard(data: Path, table: pa.Table, metadata: dict[str, str]) -> Path:
    """Write `table` as a new shard in `data`; raises StorageError, and then nothing is left behind."""
    sink = pa.BufferOutputStream()
    pq.write_table(
        table.replace_schema_metadata(metadata),
        sink,
        row_group_size=ROW_GROUP_ROWS,
        **parquet_options(table.schema),
    )
    content = memoryview(sink.getvalue())
    now = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%fZ")
    path = data / f"part-{now}-{hashlib.sha256(content).hexdigest()[:16]}.parquet"
    write_file(path, content)
    return path


def digest_matches(path: Path) -> bool:
    """Whether a shard's bytes are still those that its name was made of; True where its name carries no digest."""
    named = _NAME.fullmatch(path.name)
    return named is None or _digest(path) == named[1]


def content_digest(path: Path) -> str:
    """What identifies a shard's content: the digest in its name, else one of its bytes."""
    named = _NAME.fullmatch(path.name)
    return named[1] if named else _digest(path)


def _digest(path: Path) -> str:
    with reading(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def damaged(path: Path, why: str) -> CacheCorrupt:
    """The error for a shard that does not hold what it must."""
    return CacheCorrupt(f"{path} is damaged: {why}; delete that file and run twdpo annotate again to redo its pairs")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Report whatever goes wrong while a shard is read as one line."""
    try:
        yield
    except (TwdpoError, ImportError):
        raise
    except FileNotFoundError as error:
        raise CacheError(f"{path} has gone; was the cache changed meanwhile? open it again") from error
    except Exception as error:
        # Damage is what pyarrow finds by itself. What the system says is trouble of the machine: too many open files.
        if isinstance(error, OSError) and error.errno is not None:
            raise CacheError(f"{path} cannot be read: {(error.strerror or str(error)).lower()}") from error
        # A damaged size asks for more memory than there is; a sound file does so where there is too little.
        if isinstance(error, MemoryError) and digest_matches(path):
            raise
        # A damaged file makes pyarrow raise nearly anything: OSError, ValueError, OverflowError, MemoryError.
        raise damaged(path, " ".join(str(error).split())[:200] or type(error).__name__) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardKind:
    """What a folder's shards must say of themselves: `kind` "weights" or "reference", and the fingerprint."""

    kind: str
    fingerprint: str

    def open(self, path: Path) -> pq.ParquetFile:
        """Open a shard with page checksums on; raises CacheCorrupt or SchemaTooNew naming it. The caller closes it."""
        with reading(path):
            file = pq.ParquetFile(path, page_checksum_verification=True)
            try:
                self._check(path, read_shard_metadata(file.metadata.metadata))
            except TwdpoError:
                file.close()
                raise
            return file

    def _check(self, path: Path, said: dict[str, str]) -> None:
        if int(said.get("schema_version", SCHEMA_VERSION)) > SCHEMA_VERSION:
            raise SchemaTooNew(
                f"{path} was written by a newer twdpo (cache schema {int(said['schema_version'])}, this one reads "
                f"{SCHEMA_VERSION}); upgrade twdpo"
            )
        if said.get("kind") != self.kind or said.get("fingerprint") != self.fingerprint:
            raise CacheCorrupt(
                f"{path} does not belong here: it says {said.get('kind')!r} of {said.get('fingerprint')!r}, "
                f"the manifest says {self.kind} of {self.fingerprint}; move that file away"
            )


class Block:
    """A decoded row group: its columns as numpy arrays (list columns as offsets and values) or Python lists."""

    __slots__ = ("_lists", "_values", "nbytes", "rows")

    def __init__(self, table: pa.Table, wanted: Sequence[str]) -> None:
        self.rows: int = table.num_rows
        self.nbytes: int = table.nbytes
        self._lists: dict[str, tuple[npt.NDArray[np.int32], npt.NDArray[Any]]] = {}
        self._values: dict[str, list[Any]] = {}
        for name in wanted:
            column = table.column(name).combine_chunks()
            if column.null_count:
                raise ValueError(f"column {name} has empty entries")
            if _is_number_list(column.type):
                self._lists[name] = (column.offsets.to_numpy(), column.values.to_numpy())
            elif pa.types.is_floating(column.type):
                self._values[name] = column.to_numpy().tolist()
            else:
                self._values[name] = column.to_pylist()

    def check_lengths(self) -> None:
        """Raise ValueError where the lists of one side differ in length in some row."""
        for side in SIDES:
            ours = [name for name in self._lists if name.startswith(f"{side}_")]
            for name in ours[1:]:
                if not np.array_equal(self._lists[name][0], self._lists[ours[0]][0]):
                    raise ValueError(f"{name} and {ours[0]} differ in length")

    def has(self, column: str) -> bool:
        return column in self._lists or column in self._values

    def value(self, column: str, row: int) -> Any:
        """One entry of a column that is no list of numbers."""
        return self._values[column][row]

    def entry(self, column: str, row: int) -> npt.NDArray[Any]:
        """One entry of a list column, as a view that cannot be written."""
        offsets, values = self._lists[column]
        return values[offsets[row] : offsets[row + 1]]

    def entries(self, column: str, rows: npt.NDArray[np.int64], *, copy: bool) -> list[Any]:
        """Some entries of a column; those of a list column are views that cannot be written, or copies."""
        if column in self._values:
            known = self._values[column]
            return [known[row] for row in rows.tolist()]
        offsets, values = self._lists[column]
        bounds = zip(offsets[rows].tolist(), offsets[rows + 1].tolist(), strict=True)
        if copy:
            return [values[first:last].copy() for first, last in bounds]
        return [values[first:last] for first, last in bounds]

    def lists(self, column: str) -> tuple[npt.NDArray[np.int32], npt.NDArray[Any]]:
        """Offsets [rows + 1] and values of a whole list column."""
        return self._lists[column]


def _is_number_list(kind: pa.DataType) -> bool:
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return is_list and bool(pa.types.is_primitive(kind.value_type))


def check_columns(file: pq.ParquetFile, path: Path, schema: pa.Schema) -> None:
    """Raise CacheCorrupt where a column of `schema` is not there, or is of a type that cannot serve as it."""
    for field in schema:
        place = file.schema_arrow.get_field_index(field.name)
        if place < 0:
            raise damaged(path, f"it has no column {field.name}")
        if not same_type(found := file.schema_arrow.field(place).type, field.type):
            raise damaged(path, f"column {field.name} is {found}, not {field.type}")


def read_groups(file: pq.ParquetFile, path: Path, groups: range, schema: pa.Schema) -> pa.Table:
    """Decode the columns of `schema` of some row groups; call within `reading`."""
    table = file.read_row_groups(list(groups), columns=schema.names, use_threads=False)
    rows = sum(file.metadata.row_group(group).num_rows for group in groups)
    if table.num_rows != rows:
        raise damaged(path, f"row groups {groups[0]} to {groups[-1]} have {table.num_rows} rows, not {rows}")
    # In the thread that decodes: to make one piece of several takes as long as to make rows of them.
    return table.combine_chunks()


def read_columns(path: Path, kind: ShardKind, columns: Sequence[str]) -> pa.Table:
    """Some columns of a whole shard; raises CacheCorrupt where one is missing or damaged."""
    with reading(path), kind.open(path) as file:
        return file.read(columns=list(columns)).select(list(columns))


class ShardBuffer:
    """Rows waiting to become a shard: at most `shard_rows`, for about `shard_seconds` (looked at when one comes)."""

    def __init__(self, *, shard_rows: int, shard_seconds: float) -> None:
        self._limit, self._seconds = shard_rows, shard_seconds
        self._since = 0.0
        self.rows: dict[str, Any] = {}

    def add(self, example_hash: str, row: Any) -> bool:
        """Take a row; returns whether it is time to write."""
        if not self.rows:
            self._since = time.monotonic()
        self.rows[example_hash] = row
        return len(self.rows) >= self._limit or time.monotonic() - self._since >= self._seconds
