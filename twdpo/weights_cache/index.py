"""Where each example hash stands in a folder of shards: an index from the key column alone, and reading by it.

40 bytes a row stay in memory, whatever the rows hold, and a bounded number of decoded row groups. Of several rows of
one hash the first in cache order wins. Not for: what a row means (`rows.py`), or writing.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock, local

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from twdpo.weights_cache.schema import KEY
from twdpo.weights_cache.shards import (
    Block,
    ShardKind,
    check_columns,
    damaged,
    digest_matches,
    list_shards,
    read_groups,
    reading,
)

DEFAULT_CACHE_BYTES = 64 << 20
#: Shards whose footers are kept: parsed anew for each row group, they would cost as much as its rows.
_SHARDS_KNOWN = 8
#: Threads that decode ahead of use: with these, two cores are kept busy while rows are made.
DECODERS = 2

_KEY_ONLY = pa.schema([pa.field(KEY, pa.string(), nullable=False)])

Keys = npt.NDArray[np.uint64]

_HALF = (1 << 64) - 1

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


#: A shard, and some of its row groups decoded.
Decoded = tuple[Path, pa.Table]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Units:
    """What is decoded at a time, over all shards: the first row of each, its shard and its row groups there."""

    starts: npt.NDArray[np.int64]
    homes: list[tuple[int, range]]

    @classmethod
    def of(cls, group_rows: Sequence[Sequence[int]], span: int) -> _Units:
        """Units of at most `span` row groups, none of them over two shards."""
        rows, homes = [0], []
        for shard, groups in enumerate(group_rows):
            for first in range(0, len(groups), span):
                homes.append((shard, range(first, min(first + span, len(groups)))))
                rows.append(sum(groups[first : first + span]))
        return cls(starts=np.cumsum(rows, dtype=np.int64)[:-1], homes=homes)


class ShardIndex:
    """The rows of a folder of shards by example hash; shards may be added, never taken away.

    Raises CacheCorrupt (or SchemaTooNew) naming the shard where one cannot be what it must be. Not for use by several
    threads at once.
    """

    def __init__(
        self, data: Path, kind: ShardKind, schema: pa.Schema = _KEY_ONLY, *, cache_bytes: int = DEFAULT_CACHE_BYTES
    ) -> None:
        """Index the shards in `data`; blocks hold the columns of `schema`, the key among them."""
        self._kind = kind
        self._schema = schema
        self._cache_bytes = cache_bytes
        self._paths: list[Path] = []
        self._keys: list[Keys] = []
        self._group_rows: list[list[int]] = []
        self._by_span: dict[int, _Units] = {}
        self._checked: set[int] = set()
        self._metadata: OrderedDict[int, pq.FileMetaData] = OrderedDict()
        self._blocks: OrderedDict[int, Block] = OrderedDict()
        # What is known of shards is shared with the threads that decode ahead of use.
        self._lock = Lock()
        self._of_thread = local()
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
        self._paths.append(path)
        self._keys.append(keys)
        self._group_rows.append(groups)
        self._stale = True

    @property
    def shards(self) -> tuple[Path, ...]:
        """The shards, in cache order."""
        return tuple(self._paths)

    @property
    def groups(self) -> int:
        """How many row groups there are."""
        return sum(map(len, self._group_rows))

    @property
    def total_rows(self) -> int:
        """All rows, those of a hash met before included."""
        return sum(map(sum, self._group_rows))

    def __len__(self) -> int:
        self._sort()
        return len(self._rows)

    def first_rows(self) -> npt.NDArray[np.int64]:
        """The numbers of the rows that count, in cache order: the first of each hash."""
        self._sort()
        return np.sort(self._rows)

    def find(self, hashes: Sequence[str], *, likely: int = -1) -> npt.NDArray[np.int64]:
        """The row of each hash, counted over all shards; -1 where there is none.

        `likely`: where the first of them may stand, with the others behind it, as in a stream in the cache's order.
        Where they do, nothing is searched for.
        """
        self._sort()
        found = np.full(len(hashes), -1, dtype=np.int64)
        well_formed = np.flatnonzero(np.fromiter(map(len, hashes), dtype=np.int64, count=len(hashes)) == 32)
        # What is not ASCII becomes a question mark, which is no digit either.
        digits = "".join([hashes[position] for position in well_formed.tolist()]).encode("ascii", "replace")
        asked = np.frombuffer(digits, dtype=np.uint8).reshape(-1, 32)
        hexadecimal = np.all(_NIBBLES[asked] != 255, axis=1)
        keys = pack_hashes(asked[hexadecimal].tobytes())
        if likely >= 0 and len(keys) == len(hashes) and self._is_run(keys, likely):
            return np.arange(likely, likely + len(keys))
        found[well_formed[hexadecimal]] = self._find_keys(keys)
        return found

    def find_prefix(self, digits: str) -> npt.NDArray[np.int64]:
        """The rows of all hashes that begin with `digits`, 1 to 32 lower-case hex digits; the key column is enough."""
        self._sort()
        low, high = (int(digits.ljust(32, filler), 16) for filler in "0f")
        first, last = np.uint64(low >> 64), np.uint64(high >> 64)
        near = slice(np.searchsorted(self._high, first), np.searchsorted(self._high, last, side="right"))
        ours = (self._high[near] > first) | (self._low[near] >= np.uint64(low & _HALF))
        ours &= (self._high[near] < last) | (self._low[near] <= np.uint64(high & _HALF))
        return np.sort(self._rows[near][ours])

    def block(self, group: int) -> Block:
        """A decoded row group, kept for the next time within the memory bound."""
        block = self._blocks.pop(group, None) or self.block_of(self.decode(group))
        self._blocks[group] = block
        while len(self._blocks) > 1 and sum(block.nbytes for block in self._blocks.values()) > self._cache_bytes:
            self._blocks.popitem(last=False)
        return block

    def read_ahead(self, units: Iterable[int], span: int = 1, columns: Sequence[str] | None = None) -> Iterator[Block]:
        """Decode units of `span` row groups in turn, none of them kept, ahead of their use; see `decode`."""
        with ThreadPoolExecutor(DECODERS) as decoders:
            ahead: deque[Future[Decoded]] = deque()
            for unit in units:
                ahead.append(decoders.submit(self.decode, unit, span, columns))
                if len(ahead) > DECODERS:
                    yield self.block_of(ahead.popleft().result())
            while ahead:
                yield self.block_of(ahead.popleft().result())

    def decode(self, unit: int, span: int = 1, columns: Sequence[str] | None = None) -> Decoded:
        """Decode a unit of `span` row groups, or some `columns` of it; several threads may do so at a time."""
        shard, groups = self._units(span).homes[unit]
        path = self._paths[shard]
        schema = self._schema if columns is None else pa.schema([self._schema.field(name) for name in columns])
        with reading(path):
            return path, read_groups(self._opened(shard), path, groups, schema)

    def block_of(self, decoded: Decoded) -> Block:
        """What was decoded, made accessible: apart from decoding, since it lets no other thread of Python run."""
        path, table = decoded
        with reading(path):
            block = Block(table, table.column_names)
            block.check_lengths()
            return block

    def units_of(self, rows: npt.NDArray[np.int64], span: int = 1) -> npt.NDArray[np.int64]:
        """The unit of `span` row groups, by its number over all shards, that holds each of `rows`."""
        return np.searchsorted(self._units(span).starts, rows, side="right") - 1

    def places(
        self, rows: npt.NDArray[np.int64], span: int = 1
    ) -> Iterator[tuple[int, npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
        """The units of `span` row groups that hold `rows`: unit, indices into `rows`, and their positions in it."""
        starts = self._units(span).starts
        units = self.units_of(rows, span)
        order = np.argsort(units, kind="stable")
        for indices in np.split(order, np.flatnonzero(np.diff(units[order])) + 1):
            if len(indices):
                unit = int(units[indices[0]])
                yield unit, indices, rows[indices] - starts[unit]

    def _check_digest(self, shard: int) -> None:
        if shard not in self._checked:
            # Page checksums cover pages only: a flipped bit in a header or a footer could still change numbers.
            if not digest_matches(self._paths[shard]):
                raise damaged(self._paths[shard], "its bytes are not those that were written")
            self._checked.add(shard)

    def _opened(self, shard: int) -> pq.ParquetFile:
        """The shard, open for this thread alone, which lets go of it when it opens another, or ends."""
        known: tuple[int, pq.ParquetFile] | None = getattr(self._of_thread, "opened", None)
        if known is None or known[0] != shard:
            path = self._paths[shard]
            with self._lock:
                self._check_digest(shard)
                metadata = self._metadata_of(shard)
            file = pq.ParquetFile(path, metadata=metadata, page_checksum_verification=True)
            check_columns(file, path, self._schema)
            known = self._of_thread.opened = (shard, file)
        return known[1]

    def _metadata_of(self, shard: int) -> pq.FileMetaData:
        metadata = self._metadata.pop(shard, None)
        if metadata is None:
            with self._kind.open(self._paths[shard]) as file:
                metadata = file.metadata
        self._metadata[shard] = metadata
        if len(self._metadata) > _SHARDS_KNOWN:
            self._metadata.popitem(last=False)
        return metadata

    def _units(self, span: int) -> _Units:
        self._sort()
        if span not in self._by_span:
            self._by_span[span] = _Units.of(self._group_rows, span)
        return self._by_span[span]

    def _sort(self) -> None:
        if not self._stale:
            return
        keys = np.concatenate(self._keys) if self._keys else np.empty((0, 2), dtype=np.uint64)
        self._keys = [keys]
        # A stable sort: of equal keys the row that comes first in the cache stays first.
        order = np.lexsort((keys[:, 1], keys[:, 0]))
        keys = keys[order]
        new = np.ones(len(keys), dtype=bool)
        new[1:] = np.any(keys[1:] != keys[:-1], axis=1)
        self._high, self._low = np.ascontiguousarray(keys[new, 0]), np.ascontiguousarray(keys[new, 1])
        self._rows: npt.NDArray[np.int64] = order[new].astype(np.int64)
        self._by_span = {}
        self._stale = False
        # A shard none of whose rows count is never read, and may be a copy of another in the place of one that is lost.
        ends = np.cumsum([0, *map(sum, self._group_rows)])
        counting = np.bincount(np.searchsorted(ends, self._rows, side="right") - 1, minlength=len(self._paths))
        for shard in np.flatnonzero(counting == 0).tolist():
            self._check_digest(shard)

    def _is_run(self, keys: Keys, first: int) -> bool:
        """Whether these are the keys of the rows from `first` on; never so where a hash stands twice in the cache."""
        (stored,) = self._keys
        return len(self._rows) == len(stored) and np.array_equal(stored[first : first + len(keys)], keys)

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
