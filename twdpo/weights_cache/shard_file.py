"""A shard too large for memory, written a row group at a time.

Not for: shards that fit (`shards.write_shard`).
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import pyarrow as pa
import pyarrow.parquet as pq

from twdpo.weights_cache.durable import PendingFile
from twdpo.weights_cache.shards import ROW_GROUP_ROWS, parquet_options


class ShardFile:
    """A shard written a row group at a time, encoded as `write_shard` does it; use it as a context manager.

    Leaving the context before `publish` leaves nothing behind. Methods raise OSError (see `durable.storing`).
    """

    def __init__(self, data: Path, schema: pa.Schema, metadata: dict[str, str]) -> None:
        self._file = PendingFile(data)
        try:
            self._writer = pq.ParquetWriter(self._file, schema.with_metadata(metadata), **parquet_options(schema))
        except BaseException:
            self._file.close()
            raise

    @property
    def size(self) -> int:
        """The bytes of the row groups written so far."""
        return self._file.size

    def write(self, rows: pa.Table) -> None:
        """Write one row group: at most ROW_GROUP_ROWS rows of the shard's schema."""
        self._writer.write_table(rows, row_group_size=ROW_GROUP_ROWS)

    def publish(self, stamp: str) -> Path:
        """Finish the shard, durable under the name that `stamp` (its time, as names have it) and its bytes make."""
        self._writer.close()
        return self._file.publish(f"part-{stamp}-{self._file.digest}.parquet")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        # An unfinished writer writes its footer when it closes, which fails again where the disk is full.
        with suppress(OSError, pa.ArrowException):
            self._writer.close()
        self._file.close()
