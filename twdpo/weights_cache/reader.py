"""Reading a cache: rows by example hash, or all of them in cache order, in memory that does not grow with the cache.

Not for: weights on another tokenizer's tokens, the sink fix or mixing, which happen at training time
(`pipeline/train`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from twdpo.errors import CacheError, MissingRows
from twdpo.weights_cache.index import DEFAULT_CACHE_BYTES, ShardIndex
from twdpo.weights_cache.manifest import DATA, Manifest
from twdpo.weights_cache.recipe import Recipe
from twdpo.weights_cache.rows import WeightRow, row_of
from twdpo.weights_cache.schema import KEY, weights_schema
from twdpo.weights_cache.shards import Block, ShardKind, damaged


class WeightsCache:
    """A cache open for reading, as it was when opened. Not for use by several threads at once.

    Every row is checked to be the one asked for, every shard against the digest in its name and every page against its
    checksum, so that damage raises CacheCorrupt and never gives wrong weights.
    """

    def __init__(
        self, folder: Path, manifest: Manifest, layers: tuple[int, ...], *, text: bool, cache_bytes: int
    ) -> None:
        """For `open`, which checks the folder."""
        self.folder = folder
        self.manifest = manifest
        self.layers = layers
        kind = ShardKind(kind="weights", fingerprint=manifest.fingerprint)
        columns = weights_schema(layers, include_text=text and manifest.include_text).names
        self._index = ShardIndex(folder / DATA, kind, columns, cache_bytes=cache_bytes)

    @classmethod
    def open(
        cls,
        folder: Path | str,
        *,
        layers: Sequence[int] | None = None,
        text: bool = True,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
    ) -> Self:
        """Open the cache in `folder`; only `layers` (default: all that are stored) and, with `text`, texts are read.

        `cache_bytes` bounds the decoded row groups kept. Raises CacheError (no cache, or no such layer), CacheCorrupt
        or SchemaTooNew.
        """
        folder = Path(folder)
        manifest = Manifest.load(folder)
        stored = manifest.recipe.layers
        wanted = stored if layers is None else tuple(layers)
        missing = [layer for layer in wanted if layer not in stored]
        if missing:
            raise CacheError(
                f"{folder} holds no weights of layer {_listed(missing)}, only of {_listed(stored)}; choose one of those"
            )
        return cls(folder, manifest, wanted, text=text, cache_bytes=cache_bytes)

    @property
    def recipe(self) -> Recipe:
        """How the weights were made."""
        return self.manifest.recipe

    def __len__(self) -> int:
        """How many different pairs have weights."""
        return len(self._index)

    def __contains__(self, example_hash: object) -> bool:
        return isinstance(example_hash, str) and bool(self._index.find([example_hash])[0] >= 0)

    def missing(self, hashes: Sequence[str]) -> list[str]:
        """Those of `hashes` that have no row."""
        return [text for text, row in zip(hashes, self._index.find(hashes), strict=True) if row < 0]

    def get(self, example_hash: str) -> WeightRow:
        """The row of one pair; raises MissingRows."""
        return self.fetch([example_hash])[0]

    def fetch(self, hashes: Sequence[str]) -> list[WeightRow]:
        """The rows of `hashes`, in that order, each row group decoded once; raises MissingRows."""
        places = self._index.find(hashes)
        missing = int(np.sum(places < 0))
        if missing:
            raise MissingRows(
                f"{missing} of {len(hashes)} pairs asked for have no weights in {self.folder}; "
                "run twdpo annotate on the same data set to add them"
            )
        found: list[WeightRow | None] = [None] * len(hashes)
        for group, indices, positions in self._index.places(places):
            block = self._index.block(group)
            for index, position in zip(indices.tolist(), positions.tolist(), strict=True):
                found[index] = self._row(block, position, hashes[index])
        return [row for row in found if row is not None]

    def rows(self) -> Iterator[WeightRow]:
        """Every pair's row in cache order; its arrays are views that cannot be written, and keep a row group alive."""
        for group, _, positions in self._index.places(self._index.first_rows()):
            block = self._index.read(group)
            for position in positions.tolist():
                yield row_of(block, position, self.layers, copy=False)

    def close(self) -> None:
        """Close the files held open."""
        self._index.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def _row(self, block: Block, position: int, example_hash: str) -> WeightRow:
        if position >= block.rows or block.value(KEY, position) != example_hash:
            raise damaged(self.folder / DATA, f"the row of {example_hash} is not where the index has it")
        return row_of(block, position, self.layers, copy=True)


def _listed(layers: Sequence[int]) -> str:
    return ", ".join(str(layer) for layer in layers)
