"""Where each example hash stands in a folder of shards: an index from the key column alone, and reading by it.

24 bytes a row stay in memory, whatever the rows hold, and a bounded number of decoded row groups. Of several rows of
one hash the first in cache order wins. Not for: what a row means (`rows.py`), or writing.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Lock

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from twdpo.weights_cache.schema import KEY
from twdpo.weights_cache.shards import Block, ShardKind, damaged, digest_matches, list_shards, read_block, reading

DEFAULT_CACHE_BYTES = 128 << 20
_OPEN_FILES = 8

Keys = npt.NDArray[np.uint64]

_NIBBLES = np.full(256, 255, dtype=np.uint8)
_NIBBLES[np.frombuffer(b"0123456789abcdef", dtype=np.uint8)] = np.arange(16)


def pack_hashes(text: bytes) -> Keys:
    """Hashes written one after another, 32 hex digits each, as [n, 2] big-endian halves; ValueError if not hex."""
    nibbles = _NIBBLES[np.frombuffer(text, dtype=np.uint8)].reshape(-1, 32)
    if np.any(nibbles == 255):
        raise ValueError("a key is not 32 lower-case hex digits")
    packed = (nibbles[:, 0::2] << 4) | nibbles[:, 1::2]
    return np.ascontiguousarray(packed).view(">u8").astype(np.uint64)


def pack_column(column: pa.ChunkedArray) -> Keys:
    """The key column of a table as `pack_hashes` has it; ValueError where an entry is no hash."""
    keys = column.cast(pa.string()).combine_chunks()
    offsets = keys.buffers()[1]
    ends = (
        np.frombuffer(offsets, dtype=np.int32)[keys.offset : keys.offset + len(keys) + 1] if len(keys) else np.zeros(1)
    )
    if keys.null_count or np.any(np.diff(ends) != 32):
        raise ValueError("a key is not 32 hex digits long")
    if not len(keys):
        return np.empty((0, 2), dtype=np.uint64)
    return pack_hashes(bytes(memoryview(keys.buffers()[2])[int(ends[0]) : int(ends[-1])]))


class ShardIndex:
    """The rows of a folder of shards by example hash; shards may be added, never taken away.

    Raises CacheCorrupt (or SchemaTooNew) naming the shard where one cannot be what it must be. Not for use by several
    threads at once.
    """

    def __init__(
        self, data: Path, kind: ShardKind, columns: Sequence[str], *, cache_bytes: int = DEFAULT_CACHE_BYTES
    ) -> None:
        self._kind = kind
        self._columns = tuple(dict.fromkeys((KEY, *columns)))
        self._cache_bytes = cache_bytes
        self._paths: list[Path] = []
        self._keys: list[Keys] = []
        self._group_rows: list[int] = []
        self._group_home: list[tuple[int, int]] = []
        self._checked: set[int] = set()
        self._files: OrderedDict[int, pq.ParquetFile] = OrderedDict()
        self._blocks: OrderedDict[int, Block] = OrderedDict()
        # Decoding goes on in another thread, ahead of its use; files and blocks are shared with it.
        self._reading = Lock()
        self._stale = True
        for path in list_shards(data):
            self.add_shard(path)

    def add_shard(self, path: Path) -> None:
        """Take in one more shard, after those already there."""
        with reading(path), self._kind.open(path) as file:
            groups = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
            keys = pack_column(file.read(columns=[KEY]).column(KEY))
            if len(keys) != sum(groups) or len(keys) != file.metadata.num_rows:
                raise damaged(path, "its row counts disagree")
        shard = len(self._paths)
        self._paths.append(path)
        self._keys.append(keys)
        self._group_rows += groups
        self._group_home += [(shard, group) for group in range(len(groups))]
        self._stale = True

    @property
    def shards(self) -> tuple[Path, ...]:
        """The shards, in cache order."""
        return tuple(self._paths)

    @property
    def groups(self) -> int:
        """How many row groups there are."""
        return len(self._group_rows)

    @property
    def total_rows(self) -> int:
        """All rows, those of a hash met before included."""
        return sum(self._group_rows)

    def __len__(self) -> int:
        self._sort()
        return len(self._rows)

    def first_rows(self) -> npt.NDArray[np.int64]:
        """The numbers of the rows that count, in cache order: the first of each hash."""
        self._sort()
        return np.sort(self._rows)

    def find(self, hashes: Sequence[str]) -> npt.NDArray[np.int64]:
        """The row of each hash, counted over all shards; -1 where there is none."""
        self._sort()
        found = np.full(len(hashes), -1, dtype=np.int64)
        well_formed = np.flatnonzero(np.fromiter(map(len, hashes), dtype=np.int64, count=len(hashes)) == 32)
        # What is not ASCII becomes a question mark, which is no digit either.
        digits = "".join([hashes[position] for position in well_formed.tolist()]).encode("ascii", "replace")
        asked = np.frombuffer(digits, dtype=np.uint8).reshape(-1, 32)
        hexadecimal = np.all(_NIBBLES[asked] != 255, axis=1)
        found[well_formed[hexadecimal]] = self._find_keys(pack_hashes(asked[hexadecimal].tobytes()))
        return found

    def block(self, group: int) -> Block:
        """A decoded row group, by its number over all shards, kept for the next time within the memory bound."""
        with self._reading:
            block = self._blocks.pop(group, None) or self._read(group)
            self._blocks[group] = block
            while len(self._blocks) > 1 and sum(block.nbytes for block in self._blocks.values()) > self._cache_bytes:
                self._blocks.popitem(last=False)
            return block

    def read_ahead(self, groups: Iterable[int]) -> Iterator[Block]:
        """Decode row groups one after another, none of them kept: while one is worked on, the next is decoded."""
        with ThreadPoolExecutor(1) as decoder:
            ahead: deque[Future[Block]] = deque()
            for group in groups:
                ahead.append(decoder.submit(self.read, group))
                if len(ahead) > 1:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()

    def read(self, group: int) -> Block:
        """Decode a row group, by its number over all shards, without keeping it."""
        with self._reading:
            return self._read(group)

    def _read(self, group: int) -> Block:
        shard, local = self._group_home[group]
        path = self._paths[shard]
        if shard not in self._checked:
            # Page checksums cover pages only: a flipped bit in a header or a footer could still change numbers.
            if not digest_matches(path):
                raise damaged(path, "its bytes are not those that were written")
            self._checked.add(shard)
        return read_block(self._file(shard), path, local, self._columns)

    def groups_of(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The row group, by its number over all shards, of each of `rows`."""
        self._sort()
        return np.searchsorted(self._group_starts, rows, side="right") - 1

    def places(self, rows: npt.NDArray[np.int64]) -> Iterator[tuple[int, npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
        """The row groups that hold `rows`: group, indices into `rows`, and the rows' positions in the group."""
        groups = self.groups_of(rows)
        order = np.argsort(groups, kind="stable")
        for indices in np.split(order, np.flatnonzero(np.diff(groups[order])) + 1):
            if len(indices):
                group = int(groups[indices[0]])
                yield group, indices, rows[indices] - self._group_starts[group]

    def close(self) -> None:
        """Close the files held open."""
        while self._files:
            self._files.popitem()[1].close()

    def _file(self, shard: int) -> pq.ParquetFile:
        file = self._files.pop(shard, None) or self._kind.open(self._paths[shard])
        self._files[shard] = file
        if len(self._files) > _OPEN_FILES:
            self._files.popitem(last=False)[1].close()
        return file

    def _sort(self) -> None:
        if not self._stale:
            return
        keys = np.concatenate(self._keys) if self._keys else np.empty((0, 2), dtype=np.uint64)
        # A stable sort: of equal keys the row that comes first in the cache stays first.
        order = np.lexsort((keys[:, 1], keys[:, 0]))
        keys = keys[order]
        new = np.ones(len(keys), dtype=bool)
        new[1:] = np.any(keys[1:] != keys[:-1], axis=1)
        self._high, self._low = np.ascontiguousarray(keys[new, 0]), np.ascontiguousarray(keys[new, 1])
        self._rows: npt.NDArray[np.int64] = order[new].astype(np.int64)
        self._group_starts = np.concatenate([[0], np.cumsum(self._group_rows)[:-1]]).astype(np.int64)
        self._stale = False

    def _find_keys(self, keys: Keys) -> npt.NDArray[np.int64]:
        found = np.full(len(keys), -1, dtype=np.int64)
        places = np.searchsorted(self._high, keys[:, 0])
        open_ = np.arange(len(keys))
        while len(open_):
            # More than one step only where two hashes share their first 64 bits.
            open_ = open_[places[open_] < len(self._high)]
            open_ = open_[self._high[places[open_]] == keys[open_, 0]]
            match = self._low[places[open_]] == keys[open_, 1]
            found[open_[match]] = self._rows[places[open_[match]]]
            open_ = open_[~match]
            places[open_] += 1
        return found
