"""Writing a cache: rows are gathered into shards, each of which is durable once written; a killed run goes on later.

Several workers, each with its own writer, may write into one folder at a time. Not for: computing the rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from twdpo.errors import CacheError, RecipeMismatch, StorageError
from twdpo.weights_cache.card import write_card
from twdpo.weights_cache.counts import refresh_counts
from twdpo.weights_cache.durable import locked, make_folder, remove_strays, storing
from twdpo.weights_cache.manifest import DATA, MANIFEST, Manifest, may_begin
from twdpo.weights_cache.recipe import Recipe
from twdpo.weights_cache.rejects import Reject, RejectLog
from twdpo.weights_cache.rows import WeightRow, check_row, rows_to_table
from twdpo.weights_cache.schema import KEY, SCHEMA_VERSION, shard_metadata, weights_schema
from twdpo.weights_cache.shards import ShardBuffer, ShardKind, list_shards, read_columns, write_shard


class CacheWriter:
    """A cache open for adding rows; use it as a context manager.

    `done`: hashes of all rows in finished shards, as of opening and by this writer since. Leaving the context writes
    what is buffered, also on an error or Ctrl-C, then the manifest's counts and the card.
    """

    def __init__(self, folder: Path, manifest: Manifest, *, shard_rows: int = 512, shard_seconds: float = 60.0) -> None:
        """For `open`, which checks and prepares the folder."""
        self.folder = folder
        self.recipe = manifest.recipe
        self.include_text = manifest.include_text
        self._data = folder / DATA
        self._kind = ShardKind(kind="weights", fingerprint=manifest.fingerprint)
        self._schema = weights_schema(manifest.recipe.layers, include_text=manifest.include_text)
        self._buffer = ShardBuffer(shard_rows=shard_rows, shard_seconds=shard_seconds)
        self._rejects = RejectLog(folder)
        self._write_failed = False
        self._closed = False
        self.done: set[str] = set()
        # Under the lock that a compaction holds while it removes shards.
        with storing(folder), locked(folder):
            for path in list_shards(self._data):
                self.done.update(read_columns(path, self._kind, [KEY]).column(KEY).to_pylist())

    @classmethod
    def open(
        cls,
        folder: Path | str,
        recipe: Recipe,
        *,
        dataset: Mapping[str, Any] | None = None,
        defaults: Mapping[str, Any] | None = None,
        include_text: bool = False,
        shard_rows: int = 512,
        shard_seconds: float = 60.0,
    ) -> Self:
        """Begin a cache in `folder`, or go on with the one that is there.

        `dataset` is added to the manifest's sources, `defaults` to what stage two takes from it. Raises RecipeMismatch,
        CacheError (no cache and not empty; begun with or without text), SchemaTooNew, CacheCorrupt or StorageError.
        """
        folder = Path(folder)
        make_folder(folder)
        with storing(folder), locked(folder):
            remove_strays(folder)
            # Looked for after the folder, not before: without locks, another worker may just have begun the cache.
            is_free = may_begin(folder)
            if (folder / MANIFEST).exists():
                old: Manifest | None = Manifest.load(folder)
            elif is_free:
                old = None
            else:
                raise CacheError(f"{folder} is not empty and holds no weights cache; choose another --out")
            if old:
                _refuse_another(folder, old, recipe, include_text=include_text)
            manifest = (old or Manifest(recipe=recipe, include_text=include_text)).with_source(dataset, defaults)
            # From here on an older program, which would write rows of its own kind, must refuse.
            manifest = replace(manifest, schema_version=SCHEMA_VERSION)
            if manifest != old:
                manifest.save(folder)
            write_card(folder, manifest)
            make_folder(folder / DATA)
            remove_strays(folder / DATA)
        return cls(folder, manifest, shard_rows=shard_rows, shard_seconds=shard_seconds)

    @property
    def rejected(self) -> set[str]:
        """The keys (`reject_key`) of all pairs in rejects.jsonl: a hash, or "data set:row" of a row without one."""
        return self._rejects.keys

    def add(self, row: WeightRow) -> bool:
        """Take one row; False where its hash is there already. Writes a shard when one is full or due.

        Raises ValueError for a row that breaks the format, and StorageError.
        """
        check_row(row, self.recipe.layers, include_text=self.include_text)
        if row.example_hash in self.done or row.example_hash in self._buffer.rows:
            return False
        if self._buffer.add(row.example_hash, row):
            self.flush()
        return True

    def reject(
        self, row_index: int, reason: str, example_hash: str | None = None, dataset_name: str | None = None
    ) -> bool:
        """List a pair in rejects.jsonl at once; False where it is listed already. Raises StorageError."""
        with self._noting_failure():
            return self._rejects.add(
                Reject(row=row_index, dataset=dataset_name, example_hash=example_hash, reason=reason)
            )

    def flush(self) -> None:
        """Write what is buffered as a shard; raises StorageError, and then the rows stay buffered."""
        with self._noting_failure():
            if self._buffer.rows:
                table = rows_to_table(list(self._buffer.rows.values()), self._schema)
                metadata = shard_metadata(kind="weights", fingerprint=self._kind.fingerprint)
                write_shard(self._data, table, metadata)
                self.done.update(self._buffer.rows)
                self._buffer.rows = {}
            self._rejects.sync()

    def close(self) -> None:
        """Write what is buffered, then the manifest with fresh counts, and the card. Closing twice does nothing."""
        if self._closed:
            return
        self.flush()
        with self._noting_failure():
            refresh_counts(self.folder)
        self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._write_failed:
            # Writing again would fail again, and hide the first message.
            return
        try:
            self.close()
        except StorageError:
            if not isinstance(error, StorageError):
                raise

    @contextmanager
    def _noting_failure(self) -> Iterator[None]:
        """Remember that a write failed, so that leaving the context does not try again."""
        try:
            yield
        except (StorageError, OSError):
            self._write_failed = True
            raise


def _refuse_another(folder: Path, old: Manifest, recipe: Recipe, *, include_text: bool) -> None:
    differences = old.recipe.differences(recipe)
    if differences:
        raise RecipeMismatch(
            f"{folder} was made with another recipe ({'; '.join(differences)}); "
            "choose another --out, or ask for the same"
        )
    if old.include_text != include_text:
        had, advice = ("with", "give it again") if old.include_text else ("without", "leave it out")
        raise CacheError(f"{folder} was begun {had} --include-text; {advice}, or choose another --out")
