"""Reading a cache: rows by example hash, or all of them in cache order, in memory that does not grow with the cache.

Not for: weights on another tokenizer's tokens, the sink fix or mixing, which happen at training time
(`pipeline/train`).
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from twdpo.errors import CacheError, MissingRows, StorageError
from twdpo.weights_cache.index import DECODERS, DEFAULT_CACHE_BYTES, Decoded, ShardIndex
from twdpo.weights_cache.manifest import DATA, Manifest
from twdpo.weights_cache.recipe import Recipe
from twdpo.weights_cache.rowfile import FOLDER as ROWS_FOLDER
from twdpo.weights_cache.rowfile import RowFile
from twdpo.weights_cache.rows import WeightRow, rows_of
from twdpo.weights_cache.schema import weights_schema
from twdpo.weights_cache.shards import Block, ShardKind, damaged

#: Hashes of a stream that are looked up together.
_WINDOW = 2048
#: Row groups of one layer that a stream decodes at a time. One alone is decoded in less time than it takes to get two
#: threads to take turns.
_SPAN = 4

#: Row groups of a block of some columns: what is computed of it takes several times its own memory.
_BLOCK_SPAN = 2

#: From here on a row file is worth its making, which decodes every group once and writes it out.
_MANY_GROUPS = 16
_TIMES_DECODED = 4

#: Units that a stream keeps: windows of hashes and units of row groups begin at different places.
_STREAM_KEEPS = 2
#: Units that wait, decoded, for their use.
_DECODED_AHEAD = 6

#: A unit of row groups, which of the rows asked for lie in it, and where.
_Part = tuple[int, npt.NDArray[np.int64], npt.NDArray[np.int64]]


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
        schema = weights_schema(layers, include_text=text and manifest.include_text)
        self._index = ShardIndex(folder / DATA, kind, schema, cache_bytes=cache_bytes)
        self._text = text and manifest.include_text
        # Texts weigh as much as a few layers.
        self._span = max(1, _SPAN // (len(layers) + 3 * self._text))
        self._row_file: RowFile | None = None

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

    def numbers(self, prefix: str) -> list[int]:
        """The numbers, as `rows` counts, of the pairs whose hash begins with `prefix`; reads no weights."""
        digits = prefix.lower()
        if not re.fullmatch(r"[0-9a-f]{1,32}", digits):
            return []
        found = self._index.find_prefix(digits)
        return np.searchsorted(self._index.first_rows(), found).tolist() if len(found) else []

    def missing(self, hashes: Sequence[str]) -> list[str]:
        """Those of `hashes` that have no row."""
        return [text for text, row in zip(hashes, self._index.find(hashes), strict=True) if row < 0]

    def get(self, example_hash: str) -> WeightRow:
        """The row of one pair; raises MissingRows."""
        return self.fetch([example_hash])[0]

    def prepare_shuffled(self, folder: Path | None = None) -> None:
        """Make `fetch` fast for hashes in any order, by a row file that is made once and found again.

        It lies in `folder`, by default the hidden folder .rows of the cache, and takes about 12 bytes a token and
        layer. Raises StorageError where it cannot be written.
        """
        if self._row_file is None:
            self._row_file = RowFile.of(folder or self.folder / ROWS_FOLDER, self._index, self.layers, text=self._text)

    def prepare_for(self, hashes: Sequence[str], window: int, *, of: int | None = None) -> bool:
        """Prepare for `fetch` of `hashes` in this order, `window` at a time; returns whether there is a row file now.

        of: how many there will be, where these are only the first. A row file is made where each row group would be
        decoded many times over. Where it cannot be written, `fetch` goes on without one.
        """
        places = self._index.find(hashes)
        groups = self._index.units_of(places[places >= 0])
        windows = np.arange(len(groups)) // window
        decoded = len(np.unique(windows * (self._index.groups + 1) + groups))
        decoded = decoded * of // max(1, len(hashes)) if of is not None else decoded
        if self._index.groups >= _MANY_GROUPS and decoded > _TIMES_DECODED * self._index.groups:
            with suppress(StorageError):
                self.prepare_shuffled()
        return self._row_file is not None

    def fetch(self, hashes: Sequence[str]) -> list[WeightRow]:
        """The rows of `hashes`, in that order; raises MissingRows.

        Each row group is decoded once a call. For hashes in no order, see `prepare_shuffled`.
        """
        places = self._index.find(hashes)
        missing = int(np.sum(places < 0))
        if missing:
            raise MissingRows(
                f"{missing} of {len(hashes)} pairs asked for have no weights in {self.folder}; "
                "run twdpo annotate on the same data set to add them"
            )
        if self._row_file is None:
            rows = self._assemble(hashes, self._parts(places, 1), self._index.block, copy=True)
            return [row for row in rows if row is not None]
        found = list(self._row_file.read(places))
        self._check(hashes, found)
        return found

    def join(self, hashes: Iterable[str]) -> Iterator[WeightRow | None]:
        """The row of each of `hashes`, in their order, or None where there is none; of a stream of any length.

        Made for streams in about the cache's order: row groups are decoded once each, ahead of their use. The rows'
        arrays are views that cannot be written, and keep a row group alive.
        """
        index, span = self._index, self._span
        with ThreadPoolExecutor(DECODERS) as decoders:
            decoding: dict[int, Future[Decoded]] = {}
            ahead: deque[tuple[list[str], list[_Part]]] = deque()
            # Not among the index's own: a stream does not come back, and memory that is used again is faster.
            kept: deque[tuple[int, Block]] = deque(maxlen=_STREAM_KEEPS)

            def block(unit: int) -> Block:
                for known, found in kept:
                    if known == unit:
                        return found
                done = decoding.pop(unit, None)
                made = index.block_of(done.result() if done else index.decode(unit, span))
                kept.append((unit, made))
                return made

            likely = 0
            for window in _windows(hashes):
                places = index.find(window, likely=likely)
                likely = int(places[-1]) + 1
                parts = self._parts(places, span)
                for unit, _, _ in parts:
                    # A stream in no order asks for all units at once; what is not decoded ahead is when it is used.
                    if len(decoding) == _DECODED_AHEAD:
                        break
                    if unit not in decoding and all(unit != known for known, _ in kept):
                        decoding[unit] = decoders.submit(index.decode, unit, span)
                ahead.append((window, parts))
                if len(ahead) > DECODERS:
                    yield from self._assemble(*ahead.popleft(), block, copy=False)
            for asked, parts in ahead:
                yield from self._assemble(asked, parts, block, copy=False)

    def rows(self, start: int = 0) -> Iterator[WeightRow]:
        """Every pair's row in cache order, from number `start` on.

        Its arrays are views that cannot be written, and keep a row group alive.
        """
        return self._numbered(self._index.first_rows()[start:], copy=False)

    def rows_at(self, numbers: npt.NDArray[np.int64]) -> Iterator[WeightRow]:
        """The rows of rising `numbers` int64[n], 0-based in cache order; they can be kept without their row groups."""
        return self._numbered(self._index.first_rows()[numbers], copy=True)

    def _numbered(self, places: npt.NDArray[np.int64], *, copy: bool) -> Iterator[WeightRow]:
        units = [(unit, rows) for unit, _, rows in self._index.places(places, self._span)]
        blocks = self._index.read_ahead((unit for unit, _ in units), self._span)
        for (_, positions), block in zip(units, blocks, strict=True):
            yield from rows_of(block, positions, self.layers, copy=copy)

    def blocks(self, columns: Sequence[str]) -> Iterator[tuple[Block, npt.NDArray[np.int64]]]:
        """Some columns of every pair in cache order, a few row groups at a time, with the positions that count there.

        For figures over a whole cache, which need not every column.
        """
        span = min(self._span, _BLOCK_SPAN)
        places = [(unit, rows) for unit, _, rows in self._index.places(self._index.first_rows(), span)]
        blocks = self._index.read_ahead((unit for unit, _ in places), span, columns)
        pool = pa.default_memory_pool()
        for (_, positions), block in zip(places, blocks, strict=True):
            yield block, positions
            # Else the allocators of the threads that decode keep what was decoded, and memory grows.
            pool.release_unused()

    def close(self) -> None:
        """Close the row file, if there is one; a shard that was read last is let go of with this object."""
        if self._row_file is not None:
            self._row_file.close()
            self._row_file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def _parts(self, places: npt.NDArray[np.int64], span: int) -> list[_Part]:
        """The units that hold the rows `places`; with each, indices into `places` and positions in the unit."""
        found = np.flatnonzero(places >= 0)
        return [(unit, found[indices], rows) for unit, indices, rows in self._index.places(places[found], span)]

    def _assemble(
        self, hashes: Sequence[str], parts: list[_Part], block: Callable[[int], Block], *, copy: bool
    ) -> list[WeightRow | None]:
        rows: list[WeightRow | None] = [None] * len(hashes)
        for unit, indices, positions in parts:
            found = rows_of(block(unit), positions, self.layers, copy=copy)
            first, last = int(indices[0]), int(indices[-1]) + 1
            if last - first == len(indices):
                # As in a stream in the cache's order; indices of a unit never fall.
                self._check(hashes[first:last], found)
                rows[first:last] = found
            else:
                places = indices.tolist()
                self._check([hashes[place] for place in places], found)
                for place, row in zip(places, found, strict=True):
                    rows[place] = row
        return rows

    def _check(self, asked: Sequence[str], found: Sequence[WeightRow]) -> None:
        if [row.example_hash for row in found] != list(asked):
            raise damaged(self.folder / DATA, "a row is not where the index has it")


def _windows(hashes: Iterable[str]) -> Iterator[list[str]]:
    stream = iter(hashes)
    while window := list(islice(stream, _WINDOW)):
        yield window


def _listed(layers: Sequence[int]) -> str:
    return ", ".join(str(layer) for layer in layers)
