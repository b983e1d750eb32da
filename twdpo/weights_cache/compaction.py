"""Compacting a cache: many small shards become few of publishing size, and duplicates go.

New shards are durable before the old ones that they hold go, so that a kill at any instant leaves every row there, and
the next run cleans up. Their names keep the cache's order. No stored value changes. Workers may add shards meanwhile;
those are left alone. Not for: which shards are rewritten (`compaction_plan.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa

from twdpo.errors import UsageError
from twdpo.weights_cache.compaction_plan import Run, Shard, plan, stamp_text, survey
from twdpo.weights_cache.counts import refresh_counts, save_changes
from twdpo.weights_cache.durable import fsync_folder, locked, make_folder, remove_strays, storing
from twdpo.weights_cache.manifest import DATA, Manifest
from twdpo.weights_cache.rowfile import remove_row_files
from twdpo.weights_cache.schema import SCHEMA_VERSION, shard_metadata
from twdpo.weights_cache.shard_file import ShardFile
from twdpo.weights_cache.shards import ROW_GROUP_ROWS, ShardKind, damaged, reading

#: Called with what is done and all there is to do.
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class CompactResult:
    """What a compaction made of the shards that it found; those added meanwhile do not count.

    `rows`: different pairs, all of them kept. `duplicates`: rows dropped since their hash was met before.
    """

    shards_before: int
    shards_after: int
    rows: int
    duplicates: int
    bytes_before: int
    bytes_after: int


def compact(folder: Path | str, *, shard_bytes: int = 256 << 20, progress: Progress | None = None) -> CompactResult:
    """Rewrite the small shards of the cache in `folder` into shards of about `shard_bytes`, without duplicates.

    A shard of half that size or more stays as it is, unless it holds duplicates or was renamed. `progress` is called
    with the rows rewritten and all to rewrite. Waits for another compaction of the same cache to end. Raises
    CacheError, CacheCorrupt (and then no shard goes), SchemaTooNew, StorageError or UsageError.
    """
    if shard_bytes < 1:
        raise UsageError(f"a shard of {shard_bytes} bytes cannot be written; give at least 1")
    folder = Path(folder)
    manifest = Manifest.load(folder)
    data = folder / DATA
    make_folder(data)
    with storing(data), locked(data):
        remove_strays(folder)
        remove_strays(data)
        shards = survey(folder, manifest)
        runs = plan(shards, shard_bytes)
        rewriting = _Rewriting(folder, manifest, shard_bytes, progress)
        rewriting.replace([run for run in runs if not run.stays])
        rewriting.remove([shard for shard in shards if not shard.kept])
        if rewriting.outputs:
            remove_row_files(folder)
        refresh_counts(folder)
        after = [shard.size for run in runs if run.stays for shard in run.shards]
        after += [path.stat().st_size for path in rewriting.outputs]
    rows = sum(shard.kept for shard in shards)
    return CompactResult(
        shards_before=len(shards),
        shards_after=len(after),
        rows=rows,
        duplicates=sum(len(shard.first) for shard in shards) - rows,
        bytes_before=sum(shard.size for shard in shards),
        bytes_after=sum(after),
    )


class _Rewriting:
    """Runs of shards on their way into new ones: `outputs`, each of them durable."""

    def __init__(self, folder: Path, manifest: Manifest, shard_bytes: int, progress: Progress | None) -> None:
        self._folder, self._shard_bytes, self._progress = folder, shard_bytes, progress
        self._kind = ShardKind(kind="weights", fingerprint=manifest.fingerprint)
        self._done = self._total = 0
        self.outputs: list[Path] = []

    def replace(self, runs: Sequence[Run]) -> None:
        """Write new shards for `runs`; each old one goes once all its rows are in durable ones."""
        self._total = sum(run.rows for run in runs)
        if runs:
            with storing(self._folder), locked(self._folder):
                # From here on an older program, which would misread the new shards, must refuse.
                save_changes(self._folder, schema_version=SCHEMA_VERSION)
        for run in runs:
            ends = np.cumsum([shard.kept for shard in run.shards])
            gone = 0
            for rows in self._write(run):
                whole = int(np.searchsorted(ends, rows, side="right"))
                self.remove(run.shards[gone:whole])
                gone = whole

    def remove(self, shards: Collection[Shard]) -> None:
        """Remove old shards."""
        # A run killed before may have left a shard that is, to the name, one that was written now.
        paths = [shard.path for shard in shards if shard.path not in self.outputs]
        if paths:
            # Under the lock that workers hold while they count, so that no shard goes from under them.
            with storing(self._folder), locked(self._folder):
                for path in paths:
                    path.unlink(missing_ok=True)
                fsync_folder(self._folder / DATA)

    def _write(self, run: Run) -> Iterator[int]:
        """Write the new shards of a run; after each, how many of the run's rows are durable."""
        bits = max(shard.mantissa_bits for shard in run.shards)
        metadata = shard_metadata(kind="weights", fingerprint=self._kind.fingerprint, mantissa_bits=bits)
        groups = _groups(chain.from_iterable(_kept_rows(shard, run.schema, self._kind) for shard in run.shards))
        rows, stamp = 0, run.stamp
        for first in groups:
            with ShardFile(self._folder / DATA, run.schema, metadata) as output:
                begun = stamp
                for group in chain([first], groups):
                    output.write(group)
                    rows += group.num_rows
                    stamp += 1
                    self._advance(group.num_rows)
                    if output.size >= self._shard_bytes:
                        break
                self.outputs.append(output.publish(stamp_text(begun)))
            yield rows

    def _advance(self, rows: int) -> None:
        self._done += rows
        if self._progress:
            self._progress(self._done, self._total)


def _groups(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The same rows in tables of a row group each; `tables` are no longer than that."""
    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table)
        if sum(part.num_rows for part in waiting) >= ROW_GROUP_ROWS:
            whole = pa.concat_tables(waiting)
            yield whole.slice(0, ROW_GROUP_ROWS).combine_chunks()
            waiting = [whole.slice(ROW_GROUP_ROWS)]
    if any(part.num_rows for part in waiting):
        yield pa.concat_tables(waiting).combine_chunks()


def _kept_rows(shard: Shard, schema: pa.Schema, kind: ShardKind) -> Iterator[pa.Table]:
    """The rows of a shard that are the first of their hash, as tables of `schema`."""
    read = 0
    with reading(shard.path), kind.open(shard.path) as file:
        for batch in file.iter_batches(batch_size=ROW_GROUP_ROWS):
            kept = shard.first[read : read + batch.num_rows]
            read += batch.num_rows
            columns = [_column(batch, field, shard.path) for field in schema]
            table = pa.Table.from_arrays(columns, schema=schema)
            yield table if kept.all() else table.filter(pa.array(kept))
    if read != len(shard.first):
        raise damaged(shard.path, f"it has {read} rows, not {len(shard.first)}")


def _column(batch: pa.RecordBatch, field: pa.Field, path: Path) -> pa.Array:
    """One column of a batch as `field` has it; null where the batch lacks it."""
    if field.name not in batch.schema.names:
        return pa.nulls(batch.num_rows, field.type)
    column = batch.column(field.name)
    if not field.nullable and _has_nulls(column):
        raise damaged(path, f"column {field.name} has empty entries")
    return column if column.type == field.type else column.cast(field.type)


def _has_nulls(column: pa.Array) -> bool:
    if column.null_count:
        return True
    if pa.types.is_list(column.type):
        return _has_nulls(column.flatten())
    return pa.types.is_struct(column.type) and any(map(_has_nulls, column.flatten()))
