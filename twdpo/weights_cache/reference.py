"""Per-token log-probs of the reference model, kept exactly, in the same kind of shards as the weights.

Keyed by example hash, and by a fingerprint of all that decides the numbers (model, chat template, max length), which
is the caller's to make. Not for: computing them, or sums over tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from twdpo import __version__
from twdpo.errors import CacheError, MissingRows, RecipeMismatch, StorageError
from twdpo.weights_cache.durable import locked, make_folder, remove_strays, storing
from twdpo.weights_cache.index import DEFAULT_CACHE_BYTES, ShardIndex
from twdpo.weights_cache.manifest import DATA, MANIFEST, load_document, may_begin, save_document
from twdpo.weights_cache.rows import is_hash, list_array
from twdpo.weights_cache.schema import KEY, SCHEMA_VERSION, reference_schema, shard_metadata
from twdpo.weights_cache.shards import ShardBuffer, ShardKind, damaged, write_shard

Logps = npt.NDArray[np.float32]


class ReferenceStore:
    """Reference log-probs open for reading and adding; use it as a context manager, or call `close`.

    What is added can be read at once, and is durable after the next `flush`. Several workers may add to one folder;
    each sees its own additions and what was there at opening.
    """

    def __init__(
        self, folder: Path, fingerprint: str, *, shard_rows: int, shard_seconds: float, cache_bytes: int
    ) -> None:
        """For `open`, which checks and prepares the folder."""
        self.folder = folder
        self.fingerprint = fingerprint
        kind = ShardKind(kind="reference", fingerprint=fingerprint)
        self._schema = reference_schema()
        self._buffer = ShardBuffer(shard_rows=shard_rows, shard_seconds=shard_seconds)
        self._index = ShardIndex(folder / DATA, kind, self._schema, cache_bytes=cache_bytes)

    @classmethod
    def open(
        cls,
        folder: Path | str,
        fingerprint: str,
        description: Mapping[str, Any],
        *,
        shard_rows: int = 512,
        shard_seconds: float = 60.0,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
    ) -> Self:
        """Begin a store in `folder`, or go on with the one that is there.

        `description` (JSON types) says what went into `fingerprint`. Raises RecipeMismatch naming what differs where
        the store there has another fingerprint, CacheError, SchemaTooNew, CacheCorrupt or StorageError.
        """
        folder = Path(folder)
        make_folder(folder)
        with storing(folder), locked(folder):
            remove_strays(folder)
            if (folder / MANIFEST).exists():
                _refuse_another(folder, load_document(folder, "reference"), fingerprint, description)
            elif may_begin(folder):
                save_document(folder, _document(fingerprint, description))
            else:
                raise CacheError(f"{folder} is not empty and holds no reference log-probs; choose another folder")
            make_folder(folder / DATA)
            remove_strays(folder / DATA)
        return cls(folder, fingerprint, shard_rows=shard_rows, shard_seconds=shard_seconds, cache_bytes=cache_bytes)

    def __len__(self) -> int:
        return len(self._index) + len(self._buffer.rows)

    def __contains__(self, example_hash: object) -> bool:
        if not isinstance(example_hash, str):
            return False
        return example_hash in self._buffer.rows or bool(self._index.find([example_hash])[0] >= 0)

    def add(self, example_hash: str, chosen: npt.ArrayLike, rejected: npt.ArrayLike) -> bool:
        """Take one pair's log-probs (1-D, float32); False where they are there already.

        Raises ValueError where they are not one-dimensional and finite, and StorageError.
        """
        sides = tuple(np.array(logps, dtype=np.float32) for logps in (chosen, rejected))
        if not is_hash(example_hash) or any(side.ndim != 1 or not np.all(np.isfinite(side)) for side in sides):
            raise ValueError(f"reference log-probs of {example_hash!r} must be one-dimensional and finite")
        if example_hash in self:
            return False
        if self._buffer.add(example_hash, sides):
            self.flush()
        return True

    def get(self, example_hash: str) -> tuple[Logps, Logps]:
        """The log-probs of one pair: chosen, rejected (float32, one a token); raises MissingRows or CacheCorrupt."""
        if example_hash in self._buffer.rows:
            chosen, rejected = self._buffer.rows[example_hash]
            return chosen.copy(), rejected.copy()
        place = self._index.find([example_hash])
        if place[0] < 0:
            raise MissingRows(f"{self.folder} holds no reference log-probs of pair {example_hash}")
        group, _, positions = next(self._index.places(place))
        block, position = self._index.block(group), int(positions[0])
        if block.value(KEY, position) != example_hash:
            raise damaged(self.folder / DATA, f"the row of {example_hash} is not where the index has it")
        return block.entry("chosen_logps", position).copy(), block.entry("rejected_logps", position).copy()

    def flush(self) -> None:
        """Write what is buffered as a shard; raises StorageError, and then it stays buffered."""
        if not self._buffer.rows:
            return
        sides = list(self._buffer.rows.values())
        columns = {KEY: list(self._buffer.rows)}
        for position, name in enumerate(self._schema.names[1:]):
            columns[name] = list_array(self._schema.field(name), [side[position] for side in sides])
        table = pa.Table.from_pydict(columns, schema=self._schema)
        metadata = shard_metadata(kind="reference", fingerprint=self.fingerprint)
        self._index.add_shard(write_shard(self.folder / DATA, table, metadata))
        self._buffer.rows = {}

    def close(self) -> None:
        """Write what is buffered."""
        self.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        # After a failed write, trying again would only hide the first message.
        with suppress(*([StorageError] if isinstance(error, StorageError) else [])):
            self.close()


def _document(fingerprint: str, description: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "kind": "reference",
        "schema_version": SCHEMA_VERSION,
        "twdpo_version": __version__,
        "fingerprint": fingerprint,
        "description": dict(description),
    }


def _refuse_another(folder: Path, old: Mapping[str, Any], fingerprint: str, description: Mapping[str, Any]) -> None:
    if old.get("fingerprint") == fingerprint:
        return
    had = old.get("description") or {}
    names = [name for name in {**had, **description} if had.get(name) != description.get(name)]
    differences = [f"{name}: {had.get(name)} in the store, {description.get(name)} asked for" for name in names]
    raise RecipeMismatch(
        f"{folder} holds reference log-probs of something else "
        f"({'; '.join(differences) or 'another fingerprint'}); choose another folder"
    )
